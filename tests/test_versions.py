"""The order of OpenEMR's versions."""

from __future__ import annotations

import operator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.errors import InvalidVersionRangeException
from registration.versions import LONGEST_RANGE, Range, is_label, parse_range, sort_key

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


OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
SOME_VERSIONS = st.builds(
    lambda numbers, tag: "{}.{}.{}{} ({})".format(*numbers[:3], tag, numbers[3]),
    st.tuples(st.integers(6, 8), *[st.integers(0, 2)] * 2, st.sampled_from([0, 1, 2, 9999])),
    st.sampled_from(["", "-dev"]),
)
"""Few enough to meet, and at the ends of a series."""
CLAUSES = st.tuples(st.sampled_from(sorted(OPERATORS)), SOME_VERSIONS)


def is_in(version: str, written: Range) -> bool:
    key = sort_key(version)
    return key is not None and any(first <= key <= last for first, last in written.intervals)


def range_or_none(text: str) -> Range | None:
    try:
        return parse_range(text)
    except InvalidVersionRangeException:
        return None


@given(st.lists(CLAUSES, min_size=1, max_size=5), st.lists(SOME_VERSIONS, min_size=1))
@settings(deadline=None)
def test_a_range_agrees_with_comparing_versions(clauses: list[tuple[str, str]], candidates: list[str]) -> None:
    written = range_or_none(", ".join(f"{sign} {version}" for sign, version in clauses))

    for candidate in [*candidates, *(version for _, version in clauses)]:
        holds = all(OPERATORS[sign](sort_key(candidate), sort_key(version)) for sign, version in clauses)
        assert (written is not None and is_in(candidate, written)) == holds


@given(st.lists(CLAUSES, min_size=1, max_size=5))
@settings(deadline=None)
def test_the_intervals_of_a_range_are_in_order_and_apart(clauses: list[tuple[str, str]]) -> None:
    written = range_or_none(",".join(sign + version for sign, version in clauses))

    if written is not None:
        ends = [end for interval in written.intervals for end in interval]
        assert ends == sorted(ends)
        assert all(last + 1 < first for (_, last), (first, _) in pairwise(written.intervals))
        assert 0 <= ends[0] <= ends[-1] <= LARGEST_KEY


@given(st.lists(st.integers(6, 8), min_size=2, max_size=4), SOME_VERSIONS)
@settings(deadline=None)
def test_a_compatible_version_is_at_least_this_one_and_of_its_series(numbers: list[int], candidate: str) -> None:
    version = ".".join(map(str, numbers))
    series = ".".join(map(str, numbers[:-1]))

    assert parse_range(f"~={version}").intervals == parse_range(f">={version},=={series}.*").intervals
    belongs = candidate.replace("-dev", "").replace(" (", ".").startswith(f"{series}.")
    assert is_in(candidate, parse_range(f"=={series}.*")) == belongs


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("<7.0.3.1", ["7.0.3", "7.0.3 (0)", "5.0.2", "7.0.3.1-dev"], ["7.0.3 (1)", "7.0.4-dev"]),
        (">=6.0.0,<7.0.2", ["6.0.0", "7.0.1 (3)", "7.0.2-dev"], ["5.0.2 (9)", "7.0.2", "6.0.0-dev"]),
        ("<8", ["7.9.9 (9)", "8.0.0-dev"], ["8.0.0", "8.0.0 (1)"]),
        (">= v7,<8", ["7.0.0", "7.0.3 (1)"], ["7.0.0-dev", "6.1.0", "8.0.0"]),
        ("==8", ["8.0.0", "8.0"], ["8.0.0 (1)", "8.0.1"]),
        ("==7.0.3", ["7.0.3"], ["7.0.3 (1)", "7.0.3-dev"]),
        ("==7.0.3 (1)", ["7.0.3.1"], ["7.0.3"]),
        ("==7.0.3.*", ["7.0.3", "7.0.3 (9999)", "7.0.3-dev"], ["7.0.2 (9999)", "7.0.4-dev"]),
        ("!=7.0.*", ["6.9.9", "7.1.0-dev"], ["7.0.0-dev", "7.0.9 (9)"]),
        ("~=7.0.2", ["7.0.2", "7.0.9 (1)"], ["7.0.2-dev", "7.1.0-dev"]),
        ("~= v7.0.3.1", ["7.0.3 (1)", "7.0.3 (2)"], ["7.0.3", "7.0.4-dev"]),
    ],
)
def test_what_is_in_a_range(text: str, inside: list[str], outside: list[str]) -> None:
    written = parse_range(text)

    for version in inside:
        assert is_in(version, written), version
    for version in outside:
        assert not is_in(version, written), version


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "7.0.3", "<", "<banana", "~=7", "<70000", "=7.0.3", "===7.0.3", "<>7.0.3", "<7.0.3,", "<7.0.*",
     "~=7.0.*", "==*", "<7.0.3 >6.0", "<7.0.3.1.2", "<7.0.\u0663", "<7.0,>8.0"],
)  # fmt: skip
def test_a_range_that_cannot_be_read_is_refused_and_a_good_one_shown(text: str) -> None:
    with pytest.raises(InvalidVersionRangeException, match=r"<7\.0\.3\.1"):
        parse_range(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<7.0.3, ", "nothing beside a comma in `<7.0.3,`"),
        (">=6.0.0,,<7.0.2", "nothing beside a comma in `>=6.0.0,,<7.0.2`"),
        (" ", "The range is empty"),
        (",", "The range is empty"),
    ],
)
def test_a_clause_that_is_missing_is_said_to_be_so(text: str, reason: str) -> None:
    with pytest.raises(InvalidVersionRangeException, match=reason):
        parse_range(text)


def test_the_length_of_a_range_has_a_limit() -> None:
    padded = "<7.0.3" + " " * (LONGEST_RANGE - 6)

    assert parse_range(padded).text == "<7.0.3"
    with pytest.raises(InvalidVersionRangeException, match="200"):
        parse_range(padded + " ")


@given(st.one_of(st.text(max_size=220), st.from_regex(r"([<>=!~]{1,2} ?[0-9v.*()-]{1,9},?){1,4}", fullmatch=True)))
@settings(deadline=None)
def test_any_text_is_a_range_or_refused(text: str) -> None:
    written = range_or_none(text)

    assert written is None or written.intervals


@pytest.mark.parametrize("text", ["7.0.3 (1)", "x" * 64, "", "\u00e9\u2603"])
def test_what_is_short_and_printable_is_a_label(text: str) -> None:
    assert is_label(text)


@pytest.mark.parametrize("text", ["x" * 65, "a\nb", "a\x00b", "a\u202eb"])
def test_what_is_long_or_unprintable_is_no_label(text: str) -> None:
    assert not is_label(text)
