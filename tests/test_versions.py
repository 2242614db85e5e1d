"""The order of OpenEMR's versions."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.versions import sort_key

NUMBERS = st.tuples(*[st.integers(0, 9999)] * 4)
LARGEST_KEY = 2**63 - 1
"""What the database's BIGINT holds."""


def test_versions_have_the_order_of_their_releases() -> None:
    in_order = [
        "4.2",
        "5.0.2",
        "5.0.2 (1)",
        "5.0.10",
        "7.0.3-dev",
        "7.0.3",
        "7.0.3 (1)",
        "7.0.3 (2)",
        "7.0.3 (10)",
        "7.0.4-dev",
        "7.0.4-rc.1 (1)",
        "7.0.4 (1)",
        "7.1.0",
        "10.0.0",
    ]
    keys = [sort_key(version) for version in in_order]

    assert None not in keys
    assert all(older < newer for older, newer in pairwise(keys))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7.0.3 (1)", "7.0.3.1"),
        ("7.0.3 (1)", "7.0.3(1)"),
        ("7.0.3 (0)", "7.0.3"),
        ("v7.0.3", "7.0.3"),
        ("V7.0.3", "7.0.3"),
        ("7.0", "7.0.0"),
        ("07.0.03", "7.0.3"),
    ],
)
def test_two_spellings_of_one_version_have_the_same_place(one: str, other: str) -> None:
    assert sort_key(one) == sort_key(other) is not None


@pytest.mark.parametrize(
    "version",
    [
        "",
        "7",
        "banana",
        "7.x",
        "7.0.3 banana",
        "7.0.3 (1) ",
        " 7.0.3",
        "7.0.3\n",
        "7.0.3 ()",
        "7.0.3 (-1)",
        "7.0.3.1 (1)",
        "7.0.3.1.2",
        "7..3",
        "-7.0.3",
        "7.0.10000",
        "7.0.\u0663",
        "7.0.\u00b2",
        "7,0,3",
    ],
)
def test_what_cannot_be_read_has_no_place(version: str) -> None:
    assert sort_key(version) is None


@given(NUMBERS, NUMBERS)
@settings(deadline=None)
def test_numbers_decide_from_left_to_right(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    keys = [sort_key("{}.{}.{} ({})".format(*numbers)) for numbers in (one, other)]

    assert (keys[0] < keys[1], keys[0] == keys[1]) == (one < other, one == other)


@given(NUMBERS)
@settings(deadline=None)
def test_a_tagged_version_comes_right_before_its_release(numbers: tuple[int, ...]) -> None:
    tagged = sort_key("{}.{}.{}-dev ({})".format(*numbers))

    assert tagged + 1 == sort_key("{}.{}.{} ({})".format(*numbers))


@given(st.one_of(st.text(), st.from_regex(r"v?[0-9.]+(-\w+)?( ?\([0-9]+\))?", fullmatch=True)))
@settings(deadline=None)
def test_any_text_has_a_place_that_the_database_holds_or_none(version: str) -> None:
    key = sort_key(version)

    assert key is None or 0 <= key <= LARGEST_KEY
