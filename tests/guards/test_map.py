"""docs/map.md names every module, with the first line of what it says of itself."""

from __future__ import annotations

import ast
import re

from registration import ROOT

from .test_imports import FILES

ROWS = re.findall(r"^\| `([^`]+)` \| (.+) \|$", (ROOT / "docs" / "map.md").read_text(), re.MULTILINE)


def test_the_map_has_every_module_once_and_says_what_it_is() -> None:
    expected = {}
    for file in FILES:
        name = str(file.relative_to(ROOT)).removeprefix("registration/").removesuffix("/__init__.py")
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        expected[name.replace("__init__.py", "registration/__init__.py")] = docstring.split("\n")[0]

    assert {name.rstrip("/"): line for name, line in ROWS} == expected
    assert len(ROWS) == len(expected)
