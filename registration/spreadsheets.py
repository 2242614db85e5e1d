"""Cells that a spreadsheet would calculate.

https://owasp.org/www-community/attacks/CSV_Injection
"""

from __future__ import annotations

_GUARDED = ("=", "+", "-", "@", "\t", "\r", "'")
"""How such a cell begins, or one that could be taken for a guarded one."""


def guard(cell: str) -> str:
    """Return a cell that a spreadsheet shows instead of calculating it."""
    return f"'{cell}" if cell.startswith(_GUARDED) else cell


def unguard(cell: str) -> str:
    """Return what `guard` was given."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_GUARDED) else cell
