"""The network that an IP address is counted under: whoever has one address in it can usually have the rest."""

from __future__ import annotations

import ipaddress


def network_of(ip_address: str | None, *, ipv4: int, ipv6: int) -> str:
    """Return the network of an address, by the lengths of the prefixes; all unknown addresses are one."""
    if ip_address is None:
        return "unknown"
    address = ipaddress.ip_address(ip_address)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    prefix = ipv4 if address.version == 4 else ipv6
    host_bits = address.max_prefixlen - prefix
    return f"{type(address)(int(address) >> host_bits << host_bits)}/{prefix}"
