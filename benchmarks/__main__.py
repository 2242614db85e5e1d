"""Runs the benchmarks that are named, or all of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from tests import mariadb

from . import count, engine, feedback, pace, registrations, scale, versions, wake_up, workers

BENCHMARKS: dict[str, Callable[[mariadb.Server], object]] = {
    "registrations": registrations.run,
    "count": count.run,
    "engine": engine.run,
    "scale": scale.run,
    "wake-up": wake_up.run,
    "pace": pace.run,
    "versions": versions.run,
    "feedback": feedback.run,
    "workers": workers.run,
}


def main() -> None:
    """Run each benchmark on a database server of its own, with durable commits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of: {', '.join(BENCHMARKS)}")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark called {unknown[0]}; choose from: {', '.join(BENCHMARKS)}")
    if not mariadb.is_installed():
        parser.exit(1, f"{mariadb.MISSING}\n")
    for name in names:
        begun_at = time.monotonic()
        with mariadb.running(durable=True) as server:
            BENCHMARKS[name](server)
        print(f"({time.monotonic() - begun_at:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
