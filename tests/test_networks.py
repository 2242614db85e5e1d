"""Which addresses are counted together."""

from __future__ import annotations

import pytest

from registration.networks import network_of


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.254", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("192.0.2.1", "::ffff:192.0.2.9", True),
        ("2001:db8:0:1200::1", "2001:db8:0:12ff:8000::2", True),
        ("2001:db8:0:1200::1", "2001:db8:0:1300::1", False),
        ("0.0.2.1", "::2", False),
        (None, None, True),
        (None, "192.0.2.1", False),
    ],
)
def test_addresses_of_one_network_are_counted_together(one: str | None, other: str | None, *, same: bool) -> None:
    assert (network_of(one, ipv4=24, ipv6=56) == network_of(other, ipv4=24, ipv6=56)) is same


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("192.0.2.77", "192.0.2.77/32"),
        ("::ffff:192.0.2.77", "192.0.2.77/32"),
        ("2001:db8:1234:5678::1", "2001:db8:1234::/48"),
        (None, "unknown"),
    ],
)
def test_a_network_is_written_as_usual(address: str | None, written: str) -> None:
    assert network_of(address, ipv4=32, ipv6=48) == written
