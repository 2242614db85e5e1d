"""README's examples do what they say, and its commands exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask_migrate import upgrade
from werkzeug.serving import make_server

from config import DEVELOPMENT_PIN
from registration import ROOT, create_sender

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```sh\n(curl .*?)\n```\n```json\n(.*?)\n```", README, re.DOTALL)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture
def server_url(settings: dict[str, str], make_application: Callable[[str], Flask], sqlite_url: str) -> Iterator[str]:
    settings |= {"SECRET_PIN": DEVELOPMENT_PIN, "BROADCAST_WAIT_SECONDS": "10"}
    application = make_application(sqlite_url.replace("test.db", "readme.db"))
    with application.app_context():
        upgrade()
    server = make_server("127.0.0.1", 0, application, threaded=True)
    sender = create_sender(application)
    threads = [threading.Thread(target=server.serve_forever), threading.Thread(target=sender.run)]
    for thread in threads:
        thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    sender.stop()
    for thread in threads:
        thread.join()
    server.server_close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="install curl to try README's examples")
def test_the_examples_answer_what_readme_says(server_url: str) -> None:
    assert len(EXAMPLES) >= 6
    for command, expected in EXAMPLES:
        arguments = shlex.split(command.replace("\\\n", " ").replace("http://127.0.0.1:5000", server_url))
        output = subprocess.run([*arguments, "--silent"], capture_output=True, check=True, timeout=30).stdout
        assert without_ids(json.loads(output)) == without_ids(json.loads(expected)), command


def without_ids(answer: Any) -> Any:
    """Return an answer with every product id and every time replaced by a word."""
    if isinstance(answer, dict):
        return {name: without_ids(value) for name, value in answer.items()}
    if isinstance(answer, list):
        return [without_ids(value) for value in answer]
    if UUID.fullmatch(str(answer)):
        return "a uuid"
    return "a time" if TIME.fullmatch(str(answer)) else answer


def test_every_make_target_that_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    code = [*blocks, *re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))]
    named = {target for text in code for target in re.findall(r"\bmake\s+([a-z-]+)", text)}
    assert named >= {"run", "test", "lint", "bench", "crash-test"}
    assert named <= targets


def test_every_file_that_readme_and_the_guides_link_to_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_table_of_readme_and_the_guides_is_whole() -> None:
    """A row that an empty line separates from its table is shown as text."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for table in re.findall(r"(?:^ *\|.*\n)+", text, re.MULTILINE):
            rows = [row.strip() for row in table.splitlines()]
            assert len(rows) > 2, f"{page.name}: {table}"
            assert re.fullmatch(r"\|(?::?-+:?\|)+", rows[1]), f"{page.name}: {table}"
