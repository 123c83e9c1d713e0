"""The versions that pyproject.toml allows are those that were tested: constraints.txt lies within each range."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
UNBOUNDED = {"pyarrow"}  # a major version every few months, each compatible so far


def pins(name: str) -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(one.name): Version(next(iter(one.specifier)).version) for one in found}


def faults(requirements: list[str], tested: dict[str, Version]) -> list[str]:
    """What is not tested, or tested with a version that is not allowed."""
    found = []
    for one in map(Requirement, requirements):
        version = tested.get(canonicalize_name(one.name))
        if version is None:
            found.append(f"{one.name}: no version was tested")
        elif not one.specifier.contains(version):
            found.append(f"{one}: tested with {version}")
    return found


def beyond(requirement: str, tested: Version) -> bool:
    """Whether the range has no upper end, or reaches past the next major version (past 1 below 1)."""
    ends = [Version(part.version) for part in Requirement(requirement).specifier if part.operator == "<"]
    return not ends or min(ends) > Version(str(tested.major + 1))


def light_and(*extras: str) -> list[str]:
    return PROJECT["dependencies"] + [
        one for extra in extras for one in EXTRAS[extra] if not one.startswith("lambda-grpo[")
    ]


def test_what_was_tested_is_allowed() -> None:
    assert faults(light_and("train", "tasks", "gguf", "docs", "dev"), pins("constraints.txt")) == []
    assert faults(light_and("verl"), pins("constraints-verl.txt")) == []


def test_no_range_reaches_past_the_next_major_version() -> None:
    tested = pins("constraints.txt")
    wide = [
        one
        for one in light_and("train", "tasks", "gguf", "docs")
        if beyond(one, tested[canonicalize_name(Requirement(one).name)])
    ]
    assert {Requirement(one).name for one in wide} == UNBOUNDED


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("trl>=1.16,<1.17", ""),
        ("trl>=1.18", "tested with 1.16.0"),
        ("trl<1.16", "tested with 1.16.0"),
        ("nothing>=1", "no version was tested"),
    ],
)
def test_a_fault_is_found(requirement: str, message: str) -> None:
    found = faults([requirement], {"trl": Version("1.16.0")})
    assert [message in one for one in found] == ([True] if message else [])


def test_a_wide_range_is_found() -> None:
    assert beyond("rich>=13", Version("15.0.0"))
    assert beyond("rich>=13,<17", Version("15.0.0"))
    assert not beyond("rich>=13,<16", Version("15.0.0"))
    assert not beyond("peft>=0.18,<1", Version("0.21.2"))
