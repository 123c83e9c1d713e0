"""A number and what surrounds it in an answer, such as `$18`, `18 dollars`, `18 km/h`, read as the number.

Units do not change the value. What could be a formula stays as it is: `2xy`, `2 pi`, `5 m`, `18 million`.
"""

import re
from decimal import Decimal

_E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?!\w)")
_MOST_ZEROS = 300

_WRAPPED = re.compile(
    r"\\(?:text|math)(?:bf|rm|it|sf|tt|normal)?\s*\{([^{}]*)\}|\(([^(),]*)\)|\[([^\[\],]*)\]|\$([^$]*)\$"
    r"|\*+([^*]*)\*+|_+([^_]*)_+|`+([^`]*)`+|\"([^\"]*)\""
)
_NUMBER = re.compile(
    r"(?:[~≈=]|\\approx)?\s*(?P<minus>[-+]?)\s*(?:US|USD\s)?(?:\\?\$|[€£¥₹])?\s*(?P<sign>[-+]?)"
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?P<percent>\s*\\?%|\s*percent\b)?(?P<unit>[^\d,^]*)(?:\^[23])?"
)
_SHORT_UNITS = r"[cmk]m|[km]?g|m[lL]|ft|lbs?|hrs?|oz|[ap]m|[ck]?m/s|mph"
_UNIT = re.compile(
    rf"\s*(?:°[CF]?|[€£])?(?:\s*(?:{_SHORT_UNITS})\b)?(?:\s+(?=[a-z]*[aeiou])[A-Za-z]{{3,}}|\s+of\b)*"
    r"(?:\s*/\s*[a-z]+|\s+per\s+[a-z]+)?[²³]?\s*[.;:?]?\s*",
    re.IGNORECASE,
)
_NO_UNIT = re.compile(
    r"\b(?:pi|sin|cos|tan|log|exp|sqrt|mod|and|minus|plus|times|over|hundreds?|thousands?|[mbtr]+illions?|dozens?|halves)\b",
    re.IGNORECASE,
)


def without_powers(text: str) -> str:
    """A text with its numbers in e-notation written out, for 300 zeros at most.

    >>> without_powers("5e-05 and 6.02e23, not e5")
    '0.00005 and 602000000000000000000000, not e5'
    """
    return _E_NOTATION.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    if abs(int(match[2])) > _MOST_ZEROS:
        return match[0]
    return f"{Decimal(match[0]):f}"


def quantity(text: str) -> str | None:
    """The number of a text that holds only that number, units, a currency, brackets or bold type.

    >>> quantity(r"\\textbf{(073)}"), quantity("$1,250.50 per week."), quantity("- 3"), quantity(r"5\\%")
    ('73', '1250.50', '-3', '5\\\\%')
    >>> [quantity(text) for text in ("2xy", "2 pi", "18 million", "3, 4", "x")]
    [None, None, None, None, None]
    """
    text = text.strip()
    while match := _WRAPPED.fullmatch(text.removesuffix(".")):
        text = next(part for part in match.groups() if part is not None).strip()
    found = _NUMBER.fullmatch(text)
    if not found or not _UNIT.fullmatch(found["unit"]) or _NO_UNIT.search(found["unit"]):
        return None
    minus = "-" if "-" in (found["minus"], found["sign"]) else ""
    number = found["number"].replace(",", "").lstrip("0")
    number = number if number[:1].isdigit() else f"0{number}"
    return f"{minus}{number}" + (r"\%" if found["percent"] else "")
