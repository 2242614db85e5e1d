"""README's table of settings is config.py's."""

from __future__ import annotations

import re
from dataclasses import Field, fields
from typing import Any

import pytest

from config import Config
from registration import ROOT

ROW = re.compile(r"^\| *`(?P<name>[A-Z][A-Z0-9_]+)` *\|(?P<default>.*?)(?<!\\)\|(?P<meaning>.*)\|\s*$", re.MULTILINE)

ROWS = [match.groupdict() for match in ROW.finditer((ROOT / "README.md").read_text())]
DECLARED: dict[str, Field[Any]] = {declared.name: declared for declared in fields(Config)}


def plain(cell: str) -> str:
    """Return the words of a cell, whatever their formatting."""
    return " ".join(cell.replace("`", "").replace("\\|", "|").split())


def default_of(declared: Field[Any]) -> str:
    """Return a default in README's words."""
    if required := declared.metadata["required"]:
        return "required" if required == "always" else f"required {required}"
    if isinstance(declared.default, bool):
        return str(declared.default).lower()
    return f"{declared.default:g}" if isinstance(declared.default, float) else str(declared.default) or "empty"


def test_the_table_has_every_setting_once_in_the_same_order() -> None:
    assert [row["name"] for row in ROWS] == list(DECLARED)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_setting_has_its_default_and_its_meaning(row: dict[str, str]) -> None:
    declared = DECLARED[row["name"]]

    assert plain(row["default"]).lower() == plain(default_of(declared)).lower()
    assert plain(row["meaning"]) == plain(declared.metadata["meaning"])
