"""Chromium, as it is installed on this machine."""

from __future__ import annotations

import shutil

MISSING = "Chromium is not installed (Debian: apt-get install chromium)"


def path() -> str | None:
    """Return where Chromium is, if it is anywhere."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
