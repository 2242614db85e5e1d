"""What a sender does about calls that go wrong, by their outcomes alone."""

from __future__ import annotations

import pytest

from registration.mailers import Outcome, Verdict
from registration.trouble import (
    FIRST_REST_SECONDS,
    LONGEST_REST_SECONDS,
    MOST_REFUSED,
    UNREACHED_SECONDS,
    Advice,
    Trouble,
    Troubles,
)

NOW = 1000.0
NOTHING_TO_DO = Advice(None, slow_down=False)


def judge(trouble: Trouble, *verdicts: Verdict, now: float = NOW, due_at: float | None = None) -> Advice:
    outcomes = [Outcome(verdict, reason=f"It is {verdict.name}.") for verdict in verdicts]
    return trouble.judge(outcomes, now, due_at=now if due_at is None else due_at)


def rest_of(trouble: Trouble, now: float) -> float:
    """Return for how many whole seconds from now on there is to be no call."""
    return float(next(second for second in range(100) if trouble.may_claim(now + second)))


def test_nothing_is_to_be_done_about_what_was_accepted() -> None:
    assert judge(Trouble(), Verdict.ACCEPTED, Verdict.ACCEPTED) == NOTHING_TO_DO


def test_one_that_is_throttled_slows_all_down() -> None:
    assert judge(Trouble(), Verdict.ACCEPTED, Verdict.THROTTLED) == Advice(None, slow_down=True)


def test_one_that_is_held_up_holds_its_broadcast() -> None:
    assert judge(Trouble(), Verdict.ACCEPTED, Verdict.HELD).hold == "It is HELD."


def test_what_is_held_up_without_a_reason_is_held_all_the_same() -> None:
    assert Trouble().judge([Outcome(Verdict.HELD)], NOW, due_at=NOW).hold == ""


@pytest.mark.parametrize("verdict", [Verdict.UNKNOWN, Verdict.UNREACHED])
def test_calls_without_an_answer_let_a_sender_rest_longer_and_longer(verdict: Verdict) -> None:
    trouble = Trouble()
    rests, now = [], NOW
    for _ in range(2000):
        judge(trouble, verdict, now=now)
        rests.append(rest_of(trouble, now))
        now += LONGEST_REST_SECONDS

    assert rests[:7] == [0.0, 0.0, 0.0, *(FIRST_REST_SECONDS * factor for factor in (1, 2, 4, 8))]
    assert set(rests[7:]) == {LONGEST_REST_SECONDS}


def test_calls_that_were_under_way_when_a_rest_began_do_not_make_it_longer() -> None:
    trouble = Trouble()
    for _ in range(2):
        judge(trouble, Verdict.UNKNOWN, Verdict.UNKNOWN)
    for _ in range(50):
        judge(trouble, Verdict.UNKNOWN, now=NOW + 10.0, due_at=NOW + 0.1)

    assert rest_of(trouble, NOW) == FIRST_REST_SECONDS
    judge(trouble, Verdict.UNKNOWN, now=NOW + FIRST_REST_SECONDS)
    assert rest_of(trouble, NOW + FIRST_REST_SECONDS) == 2 * FIRST_REST_SECONDS


@pytest.mark.parametrize(("recipients", "unanswered"), [(1, 4), (2, 2), (50, 2)])
def test_it_is_unanswered_from_the_second_call_or_the_fourth_of_one_to_the_first_answer(
    recipients: int, unanswered: int
) -> None:
    trouble = Trouble()
    for number in range(1, 7):
        verdict = Verdict.UNKNOWN if number % 2 else Verdict.UNREACHED
        judge(trouble, *[verdict] * recipients, due_at=NOW - 1.0)
        assert trouble.is_unanswered is (number >= unanswered)

    judge(trouble, Verdict.ACCEPTED)
    assert not trouble.is_unanswered


@pytest.mark.parametrize(
    "between", [(Verdict.ACCEPTED,), (Verdict.REFUSED,), (Verdict.THROTTLED,), (Verdict.UNKNOWN, Verdict.ACCEPTED)]
)
def test_an_answer_in_between_begins_the_rests_anew(between: tuple[Verdict, ...]) -> None:
    trouble, later = Trouble(), NOW + LONGEST_REST_SECONDS
    for _ in range(2):
        judge(trouble, Verdict.UNKNOWN, Verdict.UNKNOWN)
    judge(trouble, *between)
    judge(trouble, Verdict.UNKNOWN, Verdict.UNKNOWN, now=later)

    assert rest_of(trouble, later) == 0.0


def test_a_service_out_of_reach_holds_after_a_while() -> None:
    trouble = Trouble()

    assert judge(trouble, Verdict.UNREACHED) == NOTHING_TO_DO
    assert judge(trouble, Verdict.UNREACHED, now=NOW + UNREACHED_SECONDS - 0.1).hold is None
    assert judge(trouble, Verdict.UNREACHED, now=NOW + UNREACHED_SECONDS).hold == "It is UNREACHED."


def test_a_call_without_an_answer_is_no_sign_that_the_service_can_be_reached() -> None:
    trouble = Trouble()
    judge(trouble, Verdict.UNREACHED)

    assert judge(trouble, Verdict.UNKNOWN, now=NOW + UNREACHED_SECONDS).hold is None
    assert judge(trouble, Verdict.UNREACHED, now=NOW + UNREACHED_SECONDS).hold == "It is UNREACHED."


def test_a_while_without_calls_says_nothing_of_the_service() -> None:
    """After a pause another sender may get through where this one does not, and would be held up at once."""
    trouble, later = Trouble(), NOW + 60.0
    judge(trouble, Verdict.UNREACHED)
    assert judge(trouble, Verdict.UNREACHED, now=NOW + UNREACHED_SECONDS).hold is not None

    assert judge(trouble, Verdict.UNREACHED, now=later).hold is None
    assert judge(trouble, Verdict.UNREACHED, now=later + LONGEST_REST_SECONDS).hold is not None


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


def unanswered() -> Trouble:
    trouble = Trouble()
    for _ in range(2):
        judge(trouble, Verdict.UNKNOWN, Verdict.UNKNOWN, now=NOW - LONGEST_REST_SECONDS)
    return trouble


def test_while_it_is_unanswered_one_call_at_a_time_is_tried() -> None:
    trouble = unanswered()
    assert trouble.may_claim(NOW)

    trouble.begin_probe("probe")

    assert [trouble.may_leave(lease) for lease in ("claimed before", "probe")] == [False, True]
    assert not trouble.may_claim(NOW)
    trouble.end_probe("claimed before")
    assert not trouble.may_claim(NOW)
    trouble.end_probe("probe")
    assert trouble.may_claim(NOW)
    assert not trouble.may_leave("probe")


def test_an_answer_to_another_call_ends_the_wait_for_a_probe() -> None:
    trouble = unanswered()
    trouble.begin_probe("probe")

    judge(trouble, Verdict.ACCEPTED)

    assert trouble.may_claim(NOW)
    assert trouble.may_leave("any")


def judged(troubles: Troubles, broadcast_id: int, *verdicts: Verdict) -> bool:
    troubles.judge(broadcast_id, [Outcome(verdict) for verdict in verdicts], NOW, due_at=NOW)
    return troubles.of(broadcast_id).is_unanswered


def test_a_broadcast_without_answers_makes_the_others_try_once_and_no_more() -> None:
    troubles = Troubles()
    assert not judged(troubles, 2, Verdict.ACCEPTED)
    for _ in range(2):
        judged(troubles, 1, Verdict.UNKNOWN, Verdict.UNKNOWN)

    assert [troubles.of(broadcast_id).is_unanswered for broadcast_id in (1, 2, 3)] == [True] * 3
    assert [troubles.of(broadcast_id).may_claim(NOW) for broadcast_id in (1, 2, 3)] == [False, True, True]
    assert not judged(troubles, 2, Verdict.ACCEPTED)
    assert judged(troubles, 1, Verdict.UNKNOWN)
    assert not troubles.of(2).is_unanswered


def test_a_new_broadcast_is_not_suspected_when_the_last_call_was_answered() -> None:
    troubles = Troubles()
    for _ in range(2):
        judged(troubles, 1, Verdict.UNKNOWN, Verdict.UNKNOWN)
    judged(troubles, 2, Verdict.ACCEPTED)

    assert not troubles.of(3).is_unanswered
    assert troubles.of(1).is_unanswered


def test_what_is_refused_in_one_broadcast_is_not_held_against_another() -> None:
    troubles, refused = Troubles(), [Outcome(Verdict.REFUSED)] * (MOST_REFUSED - 1)

    holds = [troubles.judge(number, refused, NOW, due_at=NOW).hold for number in (1, 2)]

    assert holds == [None, None]
