"""Cells that a spreadsheet would calculate."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from registration.spreadsheets import guard, unguard


@given(st.text(st.sampled_from("=+-@'\t\rab")))
def test_a_guarded_cell_is_no_formula_and_comes_back_as_it_was(cell: str) -> None:
    assert not guard(cell).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert unguard(guard(cell)) == cell
