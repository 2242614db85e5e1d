"""Every module has its tests, in the file that is named after it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from registration import ROOT

TESTS = ROOT / "tests"
WITHOUT = {
    "__init__": "put together in test_application",
    "models": "columns without behaviour, which test_migrations compares with the schema",
}

MODULES = [ROOT / "application.py", ROOT / "config.py", ROOT / "logger"]
MODULES += [file for file in (ROOT / "registration").rglob("*.py") if "migrations" not in file.parts]


@pytest.mark.parametrize("name", sorted({module.stem for module in MODULES} - WITHOUT.keys()))
def test_a_module_has_its_tests(name: str) -> None:
    file = TESTS / f"test_{name}.py"

    assert file.exists()
    assert any(function.startswith("test_") for function in functions_in(file))


def functions_in(file: Path) -> list[str]:
    tree = ast.parse(file.read_text())
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
