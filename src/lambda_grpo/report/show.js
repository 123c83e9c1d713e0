"use strict";
// Text of models is data: it reaches the page through these functions only, as text nodes. Characters that
// would be invisible, or turn the text around, are shown by name.

const Show = (() => {
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]|[\ud800-\udfff]/gu;

  function name(char) {
    return `‹U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`;
  }

  /** The text with hidden characters named, for attributes, options and SVG. */
  function visible(text) {
    return text.replace(HIDDEN, name);
  }

  /** Append text to an element, hidden characters marked as such. */
  function append(element, text) {
    let from = 0;
    for (const match of text.matchAll(HIDDEN)) {
      element.append(text.slice(from, match.index), make("span", "hidden-char", name(match[0])));
      from = match.index + match[0].length;
    }
    element.append(text.slice(from));
    return element;
  }

  /** An element with a class and, if given, text. */
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  /** At most `limit` characters, never half a surrogate pair. */
  function cut(text, limit) {
    if (text.length <= limit) return text;
    const end = /[\ud800-\udbff]/.test(text[limit - 1]) ? limit - 1 : limit;
    return text.slice(0, end) + "…";
  }

  const grouped = new Intl.NumberFormat("en");

  /** A number for reading: three significant digits below 100, whole above. */
  function number(value) {
    if (value === null || value === undefined) return "–";
    if (Number.isInteger(value) || Math.abs(value) >= 100) return grouped.format(Math.round(value));
    return String(Number(value.toPrecision(3))).replace("-", "−");
  }

  /** A count with its noun. */
  function plural(count, word) {
    return `${number(count)} ${word}${count === 1 ? "" : "s"}`;
  }

  function signed(value) {
    if (value === null || value === undefined) return "–";
    const shown = Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2);
    return Number(shown) === 0 ? "0.00" : (value > 0 ? "+" : "") + shown.replace("-", "−");
  }

  function percent(value) {
    if (value === null || value === undefined) return "–";
    const shown = value * 100;
    return `${shown !== 0 && Math.abs(shown) < 9.95 ? shown.toFixed(1) : shown.toFixed(0)}%`;
  }

  return { visible, append, make, cut, number, plural, signed, percent };
})();
