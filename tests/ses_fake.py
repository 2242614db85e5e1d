"""A small stand-in for Amazon SES v2 on 127.0.0.1: what moto lacks, namely bulk calls, faults and lost replies."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What the next call gets.

    `accept` says whether its messages count as sent; `entries` overrides the status of addresses in a bulk call;
    `drop` closes the connection in place of a reply; `delay` is in seconds.
    """

    accept: bool = True
    status: int = 200
    code: str = ""
    text: str = ""
    entries: dict[str, tuple[str, str]] = field(default_factory=dict)
    drop: bool = False
    delay: float = 0.0
    body: bytes | None = None


@dataclass
class Accepted:
    """A message that SES took responsibility for."""

    address: str
    subject: str
    text: str
    tags: dict[str, str]
    message_id: str
    request: dict[str, Any]
    at: float


class SesFake:
    """Remembers what it accepted and how it was called."""

    def __init__(self) -> None:
        self.port = 0
        self.accepted: list[Accepted] = []
        self.calls: list[str] = []
        self.answers: deque[Answer] = deque()
        self.usual = Answer()
        self.max_send_rate = 1000.0
        self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def addresses(self) -> list[str]:
        return [message.address for message in self.accepted]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.split(b" ", 2)
                length = next(
                    (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b""
                )
                body = await reader.readexactly(int(length.partition(b":")[2] or 0))
                reply = await self._reply(f"{method.decode()} {path.decode()}", body)
                if reply is None:
                    break
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _reply(self, call: str, body: bytes) -> bytes | None:
        self.calls.append(call)
        if call == "GET /v2/email/account":
            return _http(200, {"SendQuota": {"MaxSendRate": self.max_send_rate, "Max24HourSend": 50_000.0}})
        answer = self.answers.popleft() if self.answers else self.usual
        result = self._accept(json.loads(body), answer)
        if answer.delay:
            await asyncio.sleep(answer.delay)
        if answer.drop:
            return None
        if answer.status == 200:
            return _http(200, result, answer.body)
        return _http(answer.status, {"message": answer.text}, answer.body, error=answer.code)

    def _accept(self, request: dict[str, Any], answer: Answer) -> dict[str, Any]:
        if "Content" in request:
            simple = request["Content"]["Simple"]
            message_id = self._take(
                request, request, simple["Subject"]["Data"], simple["Body"]["Text"]["Data"], "EmailTags", answer
            )
            return {"MessageId": message_id}
        template = request["DefaultContent"]["Template"]
        data = json.loads(template["TemplateData"])
        subject = _render(template["TemplateContent"]["Subject"], data)
        text = _render(template["TemplateContent"]["Text"], data)
        results = []
        for entry in request["BulkEmailEntries"]:
            status, error = answer.entries.get(entry["Destination"]["ToAddresses"][0], ("SUCCESS", ""))
            result = {"Status": status, "Error": error}
            if status == "SUCCESS":
                result["MessageId"] = self._take(request, entry, subject, text, "ReplacementTags", answer)
            results.append(result)
        return {"BulkEmailEntryResults": results}

    def _take(
        self, request: dict[str, Any], entry: dict[str, Any], subject: str, text: str, tags: str, answer: Answer
    ) -> str:
        message_id = f"0100-{len(self.accepted) + 1:06d}"
        destination = entry["Destination"]
        assert list(destination) == ["ToAddresses"], "nobody may see another recipient"
        assert len(destination["ToAddresses"]) == 1, "nobody may see another recipient"
        if answer.accept:
            self.accepted.append(
                Accepted(
                    address=destination["ToAddresses"][0],
                    subject=subject,
                    text=text,
                    tags={tag["Name"]: tag["Value"] for tag in entry.get(tags, [])},
                    message_id=message_id,
                    request=request,
                    at=time.monotonic(),
                )
            )
        return message_id


@contextmanager
def running() -> Iterator[SesFake]:
    """Serve in a thread of its own until the block ends."""
    fake = SesFake()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(fake.serve, "127.0.0.1", 0, limit=2**24))
    fake.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="ses-fake")
    thread.start()
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(server: asyncio.Server) -> None:
    server.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _render(template: str, data: dict[str, str]) -> str:
    """Fill in `{{name}}` once, as SES does: what was filled in is not looked at again."""
    before, _, rest = template.partition("{{")
    if not rest:
        return before
    name, _, after = rest.partition("}}")
    return before + data[name.strip()] + _render(after, data)


def _http(status: int, payload: dict[str, Any], body: bytes | None = None, *, error: str = "") -> bytes:
    content = json.dumps(payload).encode() if body is None else body
    type_header = f"x-amzn-ErrorType: {error}\r\n" if error else ""
    head = (
        f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\n{type_header}Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
