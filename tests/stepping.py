"""A sender's work without its threads: one look and one lot of calls at a time, in the order of the calls."""

from __future__ import annotations

from registration.sender import Sender


def step(sender: Sender) -> bool:
    """Let a sender look, and make the calls of one lot; return whether there was anything to do."""
    tended = sender.look()
    for call in (lot := sender._claim_lot()):
        sender._carry_out(call)
    return bool(lot) or tended


def work(sender: Sender) -> None:
    """Let a sender work until it has nothing to do."""
    while step(sender):
        pass
