"""OpenEMR's version numbers in a form that sorts, and ranges of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from .errors import InvalidVersionRangeException

MOST_INSTALLATIONS = 100
"""Of one registration; what was seen longest ago is forgotten. Anybody can report any text for any address."""
LONGEST_LABEL, LONGEST_RANGE = 64, 200
"""Characters of a version or a distribution, as an installation reports it, and of a range of versions."""

_LIMIT, _NUMBERS = 10_000, 4
_LARGEST_KEY = 2**63 - 1
_VERSION = re.compile(
    r"v?(?P<major>[0-9]{1,4})\.(?P<minor>[0-9]{1,4})(?:\.(?P<patch>[0-9]{1,4}))?"
    r"(?:\.(?P<dotted_level>[0-9]{1,4}))?(?P<tag>-[0-9A-Za-z.]+)?(?: ?\((?P<level>[0-9]{1,4})\))?",
    re.ASCII | re.IGNORECASE,
)
_MAJOR = re.compile(r"v?[0-9]{1,4}", re.ASCII | re.IGNORECASE)
_SERIES = re.compile(r"v?([0-9]{1,4}(?:\.[0-9]{1,4}){0,2})\.\*", re.ASCII | re.IGNORECASE)
_CLAUSE = re.compile(r"(<=|>=|<|>|==|!=|~=)\s*(.+)", re.ASCII)
_EXAMPLES = "Good ones are <7.0.3.1 and >=6.0.0,<7.0.2."

Interval = tuple[int, int]
"""The first and the last of the keys in it."""


@dataclass(frozen=True)
class Range:
    """A range of versions: as it was written, and as intervals of keys, in order and apart from each other."""

    text: str
    intervals: tuple[Interval, ...]


def is_label(text: str) -> bool:
    """Return whether a text can be what an installation reports as its version or its distribution."""
    return len(text) <= LONGEST_LABEL and text.isprintable()


def sort_key(version: str) -> int | None:
    """Return a number that orders versions, or None for one that cannot be read.

    `7.0.3 (1)` is patch level 1 of 7.0.3 and follows it; `7.0.4-dev` precedes 7.0.4. The forms are those of
    OpenEMR's version.php: major.minor.patch, an optional tag, and the patch level in brackets.
    """
    match = _VERSION.fullmatch(version)
    if match is None or (match["level"] and match["dotted_level"]):
        return None
    return _key(_numbers(match), is_release=match["tag"] is None)


def parse_range(text: str) -> Range:
    """Return the range that a text in the style of PEP 440's specifiers stands for: clauses, all of which hold.

    A version compares by its place in the order alone, so `<7.0.4` holds for 7.0.4-dev, which precedes it, and
    `==7.0.3` does not for 7.0.3 (1), but `==7.0.3.*` does. A clause may name a version by its first number: 8 is
    8.0.0. Raises InvalidVersionRangeException, also for a range that no version is in.
    """
    if len(text) > LONGEST_RANGE:
        raise InvalidVersionRangeException(f"The range of versions has more than {LONGEST_RANGE} characters.")
    clauses = [clause.strip() for clause in text.split(",")]
    if not all(clauses):
        nothing = f"There is nothing beside a comma in `{text.strip()}`." if any(clauses) else "The range is empty."
        raise InvalidVersionRangeException(f"{nothing} {_EXAMPLES}")
    intervals = reduce(_both, map(_intervals, clauses), [(0, _LARGEST_KEY)])
    if not intervals:
        raise InvalidVersionRangeException(f"No version is in the range `{text}`. {_EXAMPLES}")
    return Range(",".join(clauses), tuple(intervals))


def _numbers(match: re.Match[str]) -> list[int]:
    """Return the numbers that a version has; a patch level is the fourth."""
    level = match["level"] or match["dotted_level"]
    parts = [match["major"], match["minor"], match["patch"] or (level and "0"), level]
    return [int(part) for part in parts if part]


def _key(numbers: Sequence[int], *, is_release: bool, rest: int = 0) -> int:
    """Return the key of a version; `rest` stands for the numbers that it lacks."""
    key = 0
    for number in [*numbers, *[rest] * (_NUMBERS - len(numbers))]:
        key = key * _LIMIT + number
    return key * 2 + is_release


def _intervals(clause: str) -> list[Interval]:
    """Return the keys for which a clause holds; some may be empty."""
    split = _CLAUSE.fullmatch(clause)
    operator, version = split.groups() if split else ("", "")
    if operator != "~=" and _MAJOR.fullmatch(version):
        version += ".0"  # not after ~=, which would let every later version be compatible with 8
    if operator in ("==", "!=") and (series := _SERIES.fullmatch(version)):
        first, last = _series([int(number) for number in series[1].split(".")])
    elif (key := sort_key(version)) is not None:
        first = last = key
    else:
        raise InvalidVersionRangeException(f"`{clause}` is no range of versions. {_EXAMPLES}")
    if operator == "~=" and (match := _VERSION.fullmatch(version)):
        last = _series(_numbers(match)[:-1])[1]
    below, above = (0, first - 1), (last + 1, _LARGEST_KEY)
    return {
        "==": [(first, last)],
        "~=": [(first, last)],
        "!=": [below, above],
        "<": [below],
        "<=": [(0, last)],
        ">": [above],
        ">=": [(first, _LARGEST_KEY)],
    }[operator]


def _series(numbers: Sequence[int]) -> Interval:
    """Return the keys of all versions that begin with these numbers, tagged ones included."""
    return _key(numbers, is_release=False), _key(numbers, is_release=True, rest=_LIMIT - 1)


def _both(one: Sequence[Interval], other: Sequence[Interval]) -> list[Interval]:
    """Return what is in both of two sequences of intervals."""
    pairs = [(max(a, c), min(b, d)) for a, b in one for c, d in other]
    return [(first, last) for first, last in pairs if first <= last]
