"""Limits on registrations a minute: from one network, and altogether."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import RedisStorage, Storage
from limits.strategies import FixedWindowRateLimiter

from .errors import TooManyRegistrationsException
from .networks import network_of

STORAGE_SECONDS = 0.2
"""What a shared storage may take; a request waits for it."""
AWAY_SECONDS = 10.0
"""After a failure of the shared storage nobody asks it for so long; each process counts for itself meanwhile."""
PREFIXES = {"ipv4": 24, "ipv6": 56}
"""What belongs to one clinic: an office's IPv4 network, and what a provider gives one site of IPv6 (RFC 6177)."""

log = logging.getLogger(__name__)


class Memory(Storage):
    """Counts in this process. The package's own storage starts a thread every ten milliseconds, at 90 µs a request."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, tuple[float, int]] = {}
        self._turn = threading.Lock()
        self._sweep_at = 0.0

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        """Return what a storage of this kind raises: nothing."""
        return ()

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to a count, which begins with its first addition and ends `expiry` seconds later; return it."""
        now = time.time()
        with self._turn:
            if now >= self._sweep_at:
                self.counts = {name: count for name, count in self.counts.items() if count[0] > now}
                self._sweep_at = now + expiry
            ends_at, number = self.counts.get(key, (0.0, 0))
            if ends_at <= now:
                ends_at, number = now + expiry, 0
            self.counts[key] = ends_at, number + amount
        return number + amount

    def get(self, key: str) -> int:
        """Return a count."""
        ends_at, number = self.counts.get(key, (0.0, 0))
        return number if ends_at > time.time() else 0

    def get_expiry(self, key: str) -> float:
        """Return when a count ends, in seconds since 1970."""
        return self.counts.get(key, (time.time(), 0))[0]

    def check(self) -> bool:
        """Return that it works."""
        return True

    def reset(self) -> int:
        """Forget all counts; return how many there were."""
        number = len(self.counts)
        self.counts = {}
        return number

    def clear(self, key: str) -> None:
        """Forget a count."""
        self.counts.pop(key, None)


class Limits:
    """Counts the registrations of a minute, which begins with the first of them; for any number of threads.

    A limit of 0 is none. `storage` is the URL of a Redis that several processes share; empty, this one counts alone.
    """

    def __init__(self, *, per_network: int, altogether: int, storage: str = "") -> None:
        self._per_network = RateLimitItemPerMinute(per_network, namespace="network") if per_network else None
        self._altogether = RateLimitItemPerMinute(altogether, namespace="altogether") if altogether else None
        self._own = FixedWindowRateLimiter(Memory())
        self._storage = _connect(storage) if storage else None
        self._shared = FixedWindowRateLimiter(self._storage) if self._storage else self._own
        self._away_until = 0.0

    def admit(self, ip_address: str | None) -> None:
        """Count a registration. Raises TooManyRegistrationsException, with how long to wait, for one too many.

        Who is refused for his network does not use up what is left for others; and when nothing is left for
        anybody, no more networks are remembered, so that memory has a bound.
        """
        if self._storage is None or time.monotonic() < self._away_until:
            self._admit(self._own, ip_address)
            return
        try:
            self._admit(self._shared, ip_address)
        except TooManyRegistrationsException:
            raise
        except Exception:
            # Whatever is wrong with the storage is no reason to refuse anybody. Its name may lead elsewhere by now.
            self._away_until = time.monotonic() + AWAY_SECONDS
            self._storage.storage.connection_pool.disconnect(inuse_connections=False)
            log.warning("the storage of the limits is away; each process counts for itself", exc_info=True)
            self._admit(self._own, ip_address)

    def _admit(self, limiter: FixedWindowRateLimiter, ip_address: str | None) -> None:
        if self._altogether is not None and not limiter.test(self._altogether):
            raise _refusal(limiter, self._altogether)
        if self._per_network is not None:
            network = network_of(ip_address, **PREFIXES)
            if not limiter.hit(self._per_network, network):
                raise _refusal(limiter, self._per_network, network)
        if self._altogether is not None and not limiter.hit(self._altogether):
            raise _refusal(limiter, self._altogether)


def _refusal(limiter: FixedWindowRateLimiter, item: RateLimitItem, *names: str) -> TooManyRegistrationsException:
    seconds = limiter.get_window_stats(item, *names).reset_time - time.time()
    return TooManyRegistrationsException(retry_after=timedelta(seconds=min(max(seconds, 1.0), 60.0)))


def _connect(url: str) -> RedisStorage:
    return RedisStorage(url, socket_connect_timeout=STORAGE_SECONDS, socket_timeout=STORAGE_SECONDS)
