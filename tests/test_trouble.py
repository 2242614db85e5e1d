"""What a sender does about calls that go wrong, by their outcomes alone."""

from __future__ import annotations

import pytest

from registration.mailers import Outcome, Verdict
from registration.trouble import (
    ALL_IS_WELL,
    FIRST_REST_SECONDS,
    LONGEST_REST_SECONDS,
    MOST_REFUSED,
    UNREACHED_SECONDS,
    Advice,
    Trouble,
)

NOW = 1000.0


def judge(trouble: Trouble, *verdicts: Verdict, now: float = NOW, due_at: float | None = None) -> Advice:
    outcomes = [Outcome(verdict, reason=f"It is {verdict.name}.") for verdict in verdicts]
    return trouble.judge(outcomes, now, due_at=now if due_at is None else due_at)


def test_nothing_is_to_be_done_about_what_was_accepted() -> None:
    assert judge(Trouble(), Verdict.ACCEPTED, Verdict.ACCEPTED) == ALL_IS_WELL


def test_one_that_is_throttled_slows_all_down() -> None:
    assert judge(Trouble(), Verdict.ACCEPTED, Verdict.THROTTLED) == Advice(None, slow_down=True, rest_seconds=0.0)


def test_one_that_is_held_up_holds_its_broadcast() -> None:
    assert judge(Trouble(), Verdict.ACCEPTED, Verdict.HELD).hold == "It is HELD."


def test_what_is_held_up_without_a_reason_is_held_all_the_same() -> None:
    assert Trouble().judge([Outcome(Verdict.HELD)], NOW, due_at=NOW).hold == ""


def test_calls_without_an_answer_let_all_rest_longer_and_longer() -> None:
    trouble = Trouble()
    rests = [
        judge(trouble, Verdict.UNKNOWN, now=NOW + turn * LONGEST_REST_SECONDS).rest_seconds for turn in range(2000)
    ]

    assert rests[:3] == [0.0, FIRST_REST_SECONDS, 2 * FIRST_REST_SECONDS]
    assert set(rests[3:]) == {LONGEST_REST_SECONDS}


def test_calls_that_were_under_way_when_a_rest_began_do_not_make_it_longer() -> None:
    trouble = Trouble()
    judge(trouble, Verdict.UNKNOWN)
    judge(trouble, Verdict.UNKNOWN)
    under_way = [judge(trouble, Verdict.UNKNOWN, now=NOW + 10.0, due_at=NOW + 0.1).rest_seconds for _ in range(50)]

    assert set(under_way) == {0.0}
    assert judge(trouble, Verdict.UNKNOWN, now=NOW + FIRST_REST_SECONDS).rest_seconds == 2 * FIRST_REST_SECONDS


def test_a_rest_covers_what_is_due_until_its_end() -> None:
    trouble = Trouble()
    judge(trouble, Verdict.UNKNOWN)
    assert (trouble.is_unanswered, trouble.rests_at(NOW)) == (False, False)

    judge(trouble, Verdict.UNKNOWN)

    end = NOW + FIRST_REST_SECONDS
    assert (trouble.is_unanswered, trouble.rests_at(end - 0.1), trouble.rests_at(end)) == (True, True, False)


def test_an_answer_to_a_call_that_was_under_way_counts_as_one() -> None:
    trouble = Trouble()
    judge(trouble, Verdict.UNKNOWN)
    judge(trouble, Verdict.UNKNOWN)
    judge(trouble, Verdict.ACCEPTED, due_at=NOW - 1.0)

    assert not trouble.is_unanswered


@pytest.mark.parametrize("between", [(Verdict.ACCEPTED,), (Verdict.REFUSED,), (Verdict.UNKNOWN, Verdict.ACCEPTED)])
def test_an_answer_in_between_begins_the_rests_anew(between: tuple[Verdict, ...]) -> None:
    trouble = Trouble()
    judge(trouble, Verdict.UNKNOWN)
    judge(trouble, Verdict.UNKNOWN)
    judge(trouble, *between)

    assert judge(trouble, Verdict.UNKNOWN, now=NOW + LONGEST_REST_SECONDS).rest_seconds == 0.0


def test_a_service_out_of_reach_slows_down_at_once_and_holds_after_a_while() -> None:
    trouble = Trouble()

    assert judge(trouble, Verdict.UNREACHED) == Advice(None, slow_down=True, rest_seconds=0.0)
    assert judge(trouble, Verdict.UNREACHED, now=NOW + UNREACHED_SECONDS - 0.1).hold is None
    assert judge(trouble, Verdict.UNREACHED, now=NOW + UNREACHED_SECONDS).hold == "It is UNREACHED."


def test_a_call_that_reached_it_begins_the_while_anew() -> None:
    trouble = Trouble()
    judge(trouble, Verdict.UNREACHED)
    judge(trouble, Verdict.THROTTLED, now=NOW + 1.0)

    assert judge(trouble, Verdict.UNREACHED, now=NOW + 3600.0).hold is None


def test_address_after_address_refused_holds_the_broadcast_once_and_begins_anew() -> None:
    trouble = Trouble()
    holds = [judge(trouble, Verdict.REFUSED).hold for _ in range(2 * MOST_REFUSED)]

    expected = [*[False] * (MOST_REFUSED - 1), True] * 2
    assert [hold is not None and "one address after another" in hold for hold in holds] == expected


def test_what_is_to_be_tried_alone_is_not_judged_yet() -> None:
    trouble = Trouble()
    holds = [judge(trouble, Verdict.REFUSED, Verdict.APART, Verdict.APART).hold for _ in range(MOST_REFUSED)]

    assert [hold is not None for hold in holds] == [*[False] * (MOST_REFUSED - 1), True]


def test_one_that_is_accepted_begins_the_count_of_refusals_anew() -> None:
    trouble = Trouble()
    judge(trouble, *[Verdict.REFUSED] * (MOST_REFUSED - 1))
    judge(trouble, Verdict.REFUSED, Verdict.ACCEPTED)

    assert judge(trouble, Verdict.REFUSED).hold is None
