"""What a broadcast may say."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.errors import InvalidEmailMessageException
from registration.messages import LONGEST_CONTENTS, LONGEST_TITLE, Message, compose


def test_a_message_is_its_title_and_its_contents() -> None:
    assert compose("Update now", "There is a hole.\n") == Message(subject="Update now", text="There is a hole.\n")


def test_white_space_is_trimmed_off_the_title_but_not_off_the_contents() -> None:
    assert compose(" \tUpdate now\r\n", "  indented\n\n") == Message(subject="Update now", text="  indented\n\n")


@pytest.mark.parametrize("title", ["x", "x" * LONGEST_TITLE, "\N{POLICE CARS REVOLVING LIGHT}" * LONGEST_TITLE])
def test_a_title_has_1_to_200_characters(title: str) -> None:
    assert compose(title, "x").subject == title


@pytest.mark.parametrize("title", ["", " ", "\n", "x" * (LONGEST_TITLE + 1)])
def test_a_title_of_another_length_is_refused(title: str) -> None:
    with pytest.raises(InvalidEmailMessageException, match="1 to 200 characters"):
        compose(title, "x")


@pytest.mark.parametrize(
    "breaker", ["\r", "\n", "\r\n", "\x00", "\t", "\x0b", "\x0c", "\x1b", "\x7f", "\x85", "\u2028", "\u2029"]
)
def test_a_title_is_one_line_without_control_characters(breaker: str) -> None:
    with pytest.raises(InvalidEmailMessageException, match="one line"):
        compose(f"a{breaker}Bcc: bob@example.org", "x")


@pytest.mark.parametrize(
    "word",
    ["=?utf-8?q?x?=", "=?utf-8?q?Hi there?=", "=?UTF-8?B?SGk=?=", "=?utf-8*en?Q?a?b?=", "=?utf 8?q?x?=", "=??q??="],
)
def test_a_title_holds_no_encoded_word(word: str) -> None:
    with pytest.raises(InvalidEmailMessageException, match="encoded word"):
        compose(f"Update {word} now", "x")


@pytest.mark.parametrize("title", ["What=?", "a =? b ?= c", "=?x?=", "why=?what?n?=", "=?q?="])
def test_a_title_may_hold_what_only_begins_like_one(title: str) -> None:
    assert compose(title, "x").subject == title


@pytest.mark.parametrize("contents", ["x", "x" * LONGEST_CONTENTS, "\u20ac" * LONGEST_CONTENTS])
def test_contents_have_1_to_100000_characters(contents: str) -> None:
    assert compose("x", contents).text == contents


@pytest.mark.parametrize("contents", ["", " ", "\r\n\t", "x" * (LONGEST_CONTENTS + 1)])
def test_contents_of_another_length_are_refused(contents: str) -> None:
    with pytest.raises(InvalidEmailMessageException, match="1 to 100,000 characters"):
        compose("x", contents)


@pytest.mark.parametrize("control", ["\x00", "\x08", "\x0b", "\x1b", "\x7f", "\x85"])
def test_contents_hold_no_control_characters_but_tabs_and_line_breaks(control: str) -> None:
    with pytest.raises(InvalidEmailMessageException, match="control characters"):
        compose("x", f"a{control}b")


@pytest.mark.parametrize("place", ["title", "contents", "html"])
def test_a_character_that_was_lost_is_pointed_at(place: str) -> None:
    parts = {"title": "x", "contents": "x", "html": "x"} | {place: "Gr\ufffd\ufffde"}
    with pytest.raises(InvalidEmailMessageException, match=f"The {place} holds \ufffd where a character was lost"):
        compose(**parts)


@pytest.mark.parametrize("contents", ["a\tb\nc\r\nd\re", "{{subject}} {{#if}}", "<b>&amp;</b>", "a\u2028b", "\u202ea"])
def test_other_contents_stay_as_they_were_written(contents: str) -> None:
    assert compose("x", contents).text == contents


@pytest.mark.parametrize(
    ("html", "where"),
    [
        ("<p>Text</p><!-- ", "a comment"),
        ("<html><body>Text<!-- </body></html>", "a comment"),
        ("<p>Text</p><a href='x", "a tag"),
        ("<style>p{}", "<style>"),
        ("<p>Text<textarea></p>", "<textarea>"),
        ("<xmp>Text", "<xmp>"),
    ],
)
def test_html_that_would_swallow_the_opt_out_link_is_refused(html: str, where: str) -> None:
    with pytest.raises(InvalidEmailMessageException, match=f"where {where} would hide it. Close that"):
        compose("x", "x", html)


@given(st.text(), st.text())
@settings(deadline=None)
def test_a_message_never_starts_another_header_or_holds_nul(title: str, contents: str) -> None:
    try:
        message = compose(title, contents)
    except InvalidEmailMessageException:
        return
    assert message.subject.splitlines() == [message.subject]
    assert not any(unicodedata.category(character) == "Cc" for character in message.subject)
    assert "\x00" not in message.text
    assert message.text == contents


@pytest.mark.parametrize(("title", "contents"), [("\u200b \u2060", "b"), ("a", "\u200d\n\u200b")])
def test_what_nobody_would_see_is_no_message(title: str, contents: str) -> None:
    with pytest.raises(InvalidEmailMessageException, match="must have 1 to"):
        compose(title, contents)


def test_a_byte_order_mark_is_no_part_of_a_message() -> None:
    message = compose("\ufeffUpdate now", "\ufeff# Hole", "\ufeff<p>Hole</p>")

    assert message == compose("Update now", "# Hole", "<p>Hole</p>")
    for title, contents, html in (("\ufeff", "b", None), ("a", "\ufeff", None), ("a", "b", "\ufeff ")):
        with pytest.raises(InvalidEmailMessageException, match="must have 1 to"):
            compose(title, contents, html)


@pytest.mark.parametrize("name", ["@notice.txt", "@/tmp/notice\n", "@my notice.txt", "@C:\\Ann Lee\\notice.html"])
def test_a_file_name_in_place_of_its_text_is_refused(name: str) -> None:
    with pytest.raises(InvalidEmailMessageException, match="--data-urlencode contents@notice"):
        compose("a", name)
    with pytest.raises(InvalidEmailMessageException, match="--data-urlencode html@notice"):
        compose("a", "b", name)

    assert compose("a", f"{name.strip()}\nis here").text
    assert compose("a", "Write to board@example.org").text
    assert compose("a", "@everybody Update now").text


def test_what_is_too_long_is_told_how_long_it_is_and_what_is_empty_is_not() -> None:
    with pytest.raises(InvalidEmailMessageException, match=r"100,000 characters\. There are 100,001\.$"):
        compose("a", "b" * 100_001)
    with pytest.raises(InvalidEmailMessageException, match=r"200 characters\. There are 201\.$"):
        compose("a" * 201, "b")
    with pytest.raises(InvalidEmailMessageException, match=r"100,000 characters\.$"):
        compose("a", "   ")
