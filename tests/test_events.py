"""What an event of the mail service says."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registration import events
from registration.events import Event, UnreadableEventError

from . import ses_events
from .ses_events import KINDS

ALL_KINDS = KINDS | {"send": (ses_events.send, None)}
ABOUT_THE_MAIL = {"send", "reject", "rendering failure"}
"""Events that have no time of their own."""


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("wrap", [str, ses_events.by_sns])
def test_an_event_says_what_became_of_which_message_and_whose_it_was(kind: str, wrap: Any) -> None:
    make, expected = ALL_KINDS[kind]
    body = make(7, message_id="0100-of-seven", address="ann@example.org")

    event = events.read(wrap(body))

    assert event == Event(
        event_id=event.event_id,
        feedback=expected,
        message_id="0100-of-seven",
        delivery_id=7,
        product="",
        recipients=("ann@example.org",),
        at=ses_events.AT + timedelta(seconds=kind not in ABOUT_THE_MAIL),
    )


def test_the_id_of_an_event_does_not_depend_on_the_address() -> None:
    one, other, later = (
        events.read(ses_events.delivery(1, address=address, seconds=seconds))
        for address, seconds in (("ann@example.org", 0), ("other@example.org", 0), ("ann@example.org", 1))
    )

    assert one.recipients != other.recipients
    assert one.event_id == other.event_id != later.event_id


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_no_damage_to_an_event_is_more_than_unreadable(kind: str, data: st.DataObject) -> None:
    event = json.loads(KINDS[kind][0](7))
    junk = st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    )
    place: Any = event
    while isinstance(place, dict) and place:
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict) or data.draw(st.booleans()):
            place[name] = data.draw(junk)
            break
        place = place[name]

    with suppress(UnreadableEventError):
        assert len(events.read(json.dumps(event)).event_id) == 64
