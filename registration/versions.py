"""OpenEMR's version numbers in a form that sorts."""

from __future__ import annotations

import re

_LIMIT = 10_000
_VERSION = re.compile(
    r"v?(?P<major>[0-9]{1,4})\.(?P<minor>[0-9]{1,4})(?:\.(?P<patch>[0-9]{1,4}))?"
    r"(?:\.(?P<dotted_level>[0-9]{1,4}))?(?P<tag>-[0-9A-Za-z.]+)?(?: ?\((?P<level>[0-9]{1,4})\))?",
    re.ASCII | re.IGNORECASE,
)


def sort_key(version: str) -> int | None:
    """Return a number that orders versions, or None for one that cannot be read.

    `7.0.3 (1)` is patch level 1 of 7.0.3 and follows it; `7.0.4-dev` precedes 7.0.4. The forms are those of
    OpenEMR's version.php: major.minor.patch, an optional tag, and the patch level in brackets.
    """
    match = _VERSION.fullmatch(version)
    if match is None or (match["level"] and match["dotted_level"]):
        return None
    key = 0
    for part in (match["major"], match["minor"], match["patch"], match["level"] or match["dotted_level"]):
        key = key * _LIMIT + int(part or 0)
    return key * 2 + (match["tag"] is None)
