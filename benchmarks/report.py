"""How results are printed."""

from __future__ import annotations

from collections.abc import Sequence


def table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    print(f"\n{heading}\n")
    for row in (columns, ["-" * width for width in widths], *rows):
        first, *others = zip(row, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]).rstrip())
    print(flush=True)


def at_least(goal: float, value: float, what: str) -> None:
    """Print whether a ratio is as large as its goal."""
    _ratio(what, value, f"at least {round(goal, 2):g}", is_met=value >= goal)


def at_most(goal: float, value: float, what: str) -> None:
    """Print whether a ratio is as small as its goal."""
    _ratio(what, value, f"at most {round(goal, 2):g}", is_met=value <= goal)


def _ratio(what: str, value: float, goal: str, *, is_met: bool) -> None:
    print(f"{what}: {value:.2f} (goal: {goal}; {'met' if is_met else 'NOT MET'})", flush=True)
