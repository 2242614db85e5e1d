"""What people see of a broadcast in a terminal."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest

from registration import terminal
from registration.models import BroadcastStatus

from .factories import NOON, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_summary_has_the_bar_the_rate_what_failed_and_the_time_left() -> None:
    line = terminal.summary(progress(), NOON)

    assert line == "[#####.....]  52%  4,700 of 9,001 sent  2 failed  14.0 a second  5:12 left"


def test_a_summary_of_the_end_has_no_rate_and_no_time_left() -> None:
    ended = progress(status=BroadcastStatus.SENT, sent=8999, remaining=0, rate=0.0, expected_end=None)

    assert terminal.summary(ended, NOON) == "[##########] 100%  8,999 of 9,001 sent  2 failed"


def test_a_summary_says_what_a_broadcast_does_that_is_not_sending() -> None:
    assert terminal.summary(progress(status=BroadcastStatus.PAUSED, expected_end=None), NOON).endswith("  paused")


def test_a_broadcast_to_nobody_is_done() -> None:
    assert "100%" in terminal.summary(progress(recipients=0, sent=0, failed=0, remaining=0), NOON)


def test_the_state_is_a_sentence_with_the_reason_and_when_it_goes_on() -> None:
    held = progress(
        status=BroadcastStatus.PAUSED, reason="Sending is paused in Amazon SES.", resume_at=NOON + timedelta(minutes=1)
    )

    assert (
        terminal.state(held)
        == "Broadcast 7 is paused. Sending is paused in Amazon SES. It tries again at 2026-11-23 12:01 UTC."
    )


@pytest.mark.parametrize(
    ("how", "resend", "advice"),
    [
        ({"failed": 0}, False, "Nobody gets it again. --resend sends it to everybody once more."),
        ({"failed": 0}, True, "Nobody gets it again."),
        ({"failed": 1}, True, "Nobody gets it again. `broadcast retry 7` sends it to those who have not got it."),
        (
            {"failed": 0, "status": BroadcastStatus.CANCELLED},
            False,
            (
                "Nobody gets it again. `broadcast retry 7` sends it to those who have not got it."
                " --resend sends it to everybody once more."
            ),
        ),
    ],
)
def test_who_repeats_a_broadcast_is_told_what_helps_those_who_have_not_got_it(
    how: dict[str, Any], resend: bool, advice: str
) -> None:
    assert terminal.advice_after(progress(**how), resend=resend) == advice


def test_details_leave_out_what_there_is_not() -> None:
    lines = terminal.details(progress(urgent=True), NOON).splitlines()

    assert lines[0] == "Broadcast 7 is sending."
    assert "  urgent        yes" in lines
    assert "  left          4,299" in lines
    assert not any("ended" in line for line in lines)


def test_a_table_lines_up() -> None:
    lines = terminal.table([progress(), progress(broadcast_id=11, recipients=5, title="Grüße")]).splitlines()

    assert lines == [
        "id  started               status   recipients   sent  failed   left  title",
        " 7  2026-11-23 12:00 UTC  sending       9,001  4,700       2  4,299  Update now",
        "11  2026-11-23 12:00 UTC  sending           5  4,700       2  4,299  Grüße",
    ]


def test_a_terminal_gets_one_line_that_is_drawn_again() -> None:
    stream = Terminal()
    screen = terminal.Screen(stream)

    screen.show(progress(), NOON)
    screen.show(progress(sent=4800), NOON)
    screen.say("That is all.")

    first, second, last = stream.getvalue().split("\r\x1b[K")[1:]
    assert "4,700 of" in first
    assert "4,800 of" in second
    assert last == "That is all.\n"
    assert "\n" not in first + second


@pytest.mark.parametrize("columns", [40, 80])
def test_no_line_that_is_drawn_again_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Only the last row of a line that wraps would be drawn over, and each look would leave one more above."""
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()

    terminal.Screen(stream).show(progress(recipients=1_000_000, sent=900_000), NOON)

    line = stream.getvalue().removeprefix("\r\x1b[K")
    assert len(line) < columns
    assert "900,000" in line


def test_a_file_gets_a_plain_line_now_and_then() -> None:
    stream = io.StringIO()
    screen = terminal.Screen(stream)

    for seconds in range(25):
        screen.show(progress(sent=seconds), NOON + timedelta(seconds=seconds))

    lines = stream.getvalue().splitlines()
    assert [line.split("%  ")[1].split(" of ")[0] for line in lines] == ["0", "10", "20"]
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said", "clock"),
    [
        (0, "less than a minute", "0:00"),
        (61, "about 1 minute", "1:01"),
        (3540, "about 59 minutes", "59:00"),
        (7300, "about 2 hours", "2:01:40"),
        (200_000, "about 2 days", "55:33:20"),
    ],
)
def test_durations_are_said_and_counted(seconds: float, said: str, clock: str) -> None:
    assert (terminal.duration(seconds), terminal.clock(seconds)) == (said, clock)


def test_what_became_of_the_messages_is_one_line_without_what_there_was_not() -> None:
    told = {"accepted": 4700, "delivered": 4650, "delayed": 0, "softBounced": 0, "hardBounced": 12}
    told |= {"complained": 1, "rejected": 0}

    assert terminal.feedback(told) == "Of 4,700 accepted: 4,650 delivered, 12 bounced for good, 1 reported as spam."


def test_nothing_is_said_before_anything_was_told() -> None:
    names = ("accepted", "delivered", "delayed", "softBounced", "hardBounced", "complained", "rejected")

    assert terminal.feedback(dict.fromkeys(names, 0)) == ""
