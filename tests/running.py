"""A sender at work in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from flask import Flask

from registration import create_sender
from registration.mailers import Mailer
from registration.sender import Sender


@contextmanager
def running(sender: Sender) -> Iterator[None]:
    """Let a sender work until the block ends, and see it end."""
    thread = threading.Thread(target=sender.run)
    thread.start()
    try:
        yield
    finally:
        sender.stop()
        thread.join(60)
    assert not thread.is_alive()


@contextmanager
def sending(application: Flask, mailer: Mailer | None = None) -> Iterator[None]:
    """Let a sender of an application work until the block ends, with another mailer if one is given."""
    sender = create_sender(application)
    with running(sender if mailer is None else replace(sender, mailer=mailer)):
        yield
