"""A small stand-in for Amazon SES v2 on 127.0.0.1: what moto lacks, namely bulk calls, faults and lost replies.

`running` serves in a thread and remembers every message. `spawned` serves in a process of its own, fast enough for
thousands of messages a second; it counts, keeps limits as SES does, and loses replies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP, default
from pathlib import Path
from typing import Any, cast


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
    html: str
    headers: dict[str, str]
    tags: dict[str, str]
    message_id: str
    request: dict[str, Any]
    at: float

    @property
    def mail(self) -> EmailMessage:
        """Return the mail as its recipient's program reads it."""
        mail = EmailMessage(policy=SMTP.clone(max_line_length=900))
        mail["From"] = self.request["FromEmailAddress"]
        mail["To"] = self.address
        if answers := self.request.get("ReplyToAddresses"):
            mail["Reply-To"] = answers
        mail["Subject"] = self.subject
        for name, value in self.headers.items():
            mail[name] = value
        mail["Feedback-ID"] = f"{self.tags['ses:feedback-id-a']}:1.us-east-1.fake:AmazonSES"
        mail.set_content(self.text, cte="base64")
        mail.add_alternative(self.html, subtype="html", cte="base64")
        return message_from_bytes(bytes(mail), policy=default)


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
            return _http(
                200,
                {"SendQuota": {"MaxSendRate": self.max_send_rate, "Max24HourSend": 50_000.0, "SentLast24Hours": 120.0}},
            )
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
            parts = simple["Subject"], simple["Body"]["Text"], simple["Body"]["Html"]
            written = [part["Data"] for part in parts]
            return {"MessageId": self._take(request, request, written, simple["Headers"], "EmailTags", answer)}
        template = request["DefaultContent"]["Template"]
        assert len(template["TemplateData"].encode()) <= 262_144
        results = []
        for entry in request["BulkEmailEntries"]:
            status, error = answer.entries.get(entry["Destination"]["ToAddresses"][0], ("SUCCESS", ""))
            result = {"Status": status, "Error": error}
            if status == "SUCCESS":
                written = [_render(template["TemplateContent"][part], _data(template, entry)) for part in _PARTS]
                headers = template["Headers"] + entry.get("ReplacementHeaders", [])
                result["MessageId"] = self._take(request, entry, written, headers, "ReplacementTags", answer)
            results.append(result)
        return {"BulkEmailEntryResults": results}

    def _take(
        self,
        request: dict[str, Any],
        entry: dict[str, Any],
        written: list[str],
        headers: list[dict[str, str]],
        tags: str,
        answer: Answer,
    ) -> str:
        message_id = f"0100-{len(self.accepted) + 1:06d}"
        destination = entry["Destination"]
        assert list(destination) == ["ToAddresses"], "nobody may see another recipient"
        assert len(destination["ToAddresses"]) == 1, "nobody may see another recipient"
        if answer.accept:
            subject, text, html = written
            self.accepted.append(
                Accepted(
                    address=destination["ToAddresses"][0],
                    subject=subject,
                    text=text,
                    html=html,
                    headers=_checked(headers),
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


_PARTS = ("Subject", "Text", "Html")


def _data(template: dict[str, Any], entry: dict[str, Any]) -> dict[str, str]:
    """Return the data of one entry: its own over the common ones, name by name."""
    replacement = entry.get("ReplacementEmailContent", {}).get("ReplacementTemplate", {})
    own: dict[str, str] = json.loads(replacement.get("ReplacementTemplateData", "{}"))
    return {**json.loads(template["TemplateData"]), **own}


def _checked(headers: list[dict[str, str]]) -> dict[str, str]:
    """Return headers that SES takes: https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_MessageHeader.html."""
    found = {header["Name"]: header["Value"] for header in headers}
    assert len(found) == len(headers) <= 15
    for name, value in found.items():
        assert re.fullmatch(r"[!-9;-@A-~]{1,126}", name)
        assert re.fullmatch(r"[ -~]{1,995}", value)
        assert len(name + value) <= 996
    return found


def _render(template: str, data: dict[str, str]) -> str:
    """Fill in `{{name}}` once and without escaping, as SES does: what was filled in is not looked at again."""
    return re.sub(r"{{(\w+)}}", lambda match: data[match[1]], template)


def _http(status: int, payload: dict[str, Any], body: bytes | None = None, *, error: str = "") -> bytes:
    content = json.dumps(payload).encode() if body is None else body
    type_header = f"x-amzn-ErrorType: {error}\r\n" if error else ""
    head = (
        f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\n{type_header}Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass
class Conduct:
    """How the process behaves. Times are in seconds."""

    latency: float = 0.0
    rate: float = math.inf
    """Recipients it accepts within any one second."""
    granted: float = 0.0
    """The sending rate that GetAccount tells; `rate` if 0, and 100,000 if that is infinite."""
    whole_calls: bool = False
    """Refuse a bulk call that is over the rate as a whole, not only the entries over it."""
    bulk_calls: float = math.inf
    """Bulk calls it answers within any one second; more of them are refused."""
    quota: float = math.inf
    lost: float = 0.0
    """The share of calls that are accepted but not answered."""
    lost_kinds: str = "drop,500,hang"
    seed: int = 1


class Window:
    """What happened within the last second, and the most that ever did."""

    def __init__(self) -> None:
        self.events: deque[tuple[float, int]] = deque()
        self.total = self.peak = 0

    def at(self, now: float) -> int:
        while self.events and self.events[0][0] <= now - 1.0:
            self.total -= self.events.popleft()[1]
        return self.total

    def add(self, now: float, number: int) -> None:
        self.events.append((now, number))
        self.total = self.at(now) + number
        self.peak = max(self.peak, self.total)


class Counts:
    """What the process counts; `reset` begins anew."""

    def __init__(self, conduct: Conduct) -> None:
        self.conduct = conduct
        self.random = random.Random(conduct.seed)
        self.copies: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self.asked, self.accepted, self.bulk = Window(), Window(), Window()
        self.calls = self.bulk_calls = self.in_flight = self.most_in_flight = 0
        self.refused_calls = self.refused_messages = self.lost_calls = 0
        self.first = self.last = 0.0

    def report(self) -> dict[str, Any]:
        accepted = self.copies.total()
        return {
            "accepted": accepted,
            "recipients": len(self.copies),
            "duplicates": accepted - len(self.copies),
            "calls": self.calls,
            "bulk_calls": self.bulk_calls,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "peak_asked": self.asked.peak,
            "peak_accepted": self.accepted.peak,
            "refused_calls": self.refused_calls,
            "refused_messages": self.refused_messages,
            "lost_calls": self.lost_calls,
            "lost_messages": self.unanswered.total(),
            "first": self.first,
            "seconds": self.last - self.first,
        }

    def answer(self, path: bytes, body: bytes) -> tuple[bytes, bool]:
        """Return the reply to a call, and whether it is to be lost."""
        if path == b"/v2/email/account":
            granted = self.conduct.granted or (100_000.0 if math.isinf(self.conduct.rate) else self.conduct.rate)
            quota = -1.0 if math.isinf(self.conduct.quota) else self.conduct.quota
            used = float(self.copies.total())
            return _http(
                200, {"SendQuota": {"MaxSendRate": granted, "Max24HourSend": quota, "SentLast24Hours": used}}
            ), False
        request = json.loads(body)
        entries = request.get("BulkEmailEntries") or [request]
        addresses = [entry["Destination"]["ToAddresses"][0] for entry in entries]
        statuses = self._judge(addresses, bulk="BulkEmailEntries" in request)
        taken = [address for address, status in zip(addresses, statuses, strict=True) if status == "SUCCESS"]
        self.copies.update(taken)
        self.refused_messages += len(addresses) - len(taken)
        lost = bool(taken) and self.random.random() < self.conduct.lost
        if lost:
            self.lost_calls += 1
            self.unanswered.update(taken)
        return self._reply(statuses, bulk="BulkEmailEntries" in request), lost

    def _judge(self, addresses: list[str], *, bulk: bool) -> list[str]:
        now = time.monotonic()
        self.calls += 1
        self.first, self.last = self.first or now, now
        self.asked.add(now, len(addresses))
        if bulk:
            self.bulk_calls += 1
            if self.bulk.at(now) >= self.conduct.bulk_calls:
                self.refused_calls += 1
                return [""] * len(addresses)
            self.bulk.add(now, 1)
        left = self.conduct.quota - self.copies.total()
        free = self.conduct.rate - self.accepted.at(now)
        if min(left, free) < len(addresses) and (self.conduct.whole_calls or not bulk):
            self.refused_calls += 1
            return ["" if left >= len(addresses) else "quota"] * len(addresses)
        number = int(max(0, min(left, free, len(addresses))))
        self.accepted.add(now, number)
        rest = "ACCOUNT_DAILY_QUOTA_EXCEEDED" if left < free else "ACCOUNT_THROTTLED"
        return ["SUCCESS"] * number + [rest] * (len(addresses) - number)

    def _reply(self, statuses: list[str], *, bulk: bool) -> bytes:
        if statuses[0] == "":
            return _http(429, {"message": "Maximum sending rate exceeded."}, error="TooManyRequestsException")
        if statuses[0] == "quota":
            return _http(400, {"message": "Daily message quota exceeded."}, error="LimitExceededException")
        if not bulk:
            return _http(200, {"MessageId": f"0100-{self.calls}"})
        results = [
            {"Status": status, "MessageId": f"0100-{self.calls}-{number}"}
            if status == "SUCCESS"
            else {"Status": status, "Error": "Refused."}
            for number, status in enumerate(statuses)
        ]
        return _http(200, {"BulkEmailEntryResults": results})


class Connection(asyncio.Protocol):
    """One connection to the process."""

    def __init__(self, process: list[Counts]) -> None:
        self.process = process
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n") + 4) > 3:
            head = self.received[:end]
            at = head.lower().find(b"content-length:")
            length = int(head[at + 15 : head.find(b"\r", at)]) if at >= 0 else 0
            if len(self.received) < end + length:
                return
            body, self.received = self.received[end : end + length], self.received[end + length :]
            self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        counts = self.process[0]
        if path.startswith(b"/control"):
            self.transport.write(_http(200, self._control(path, body)))
            return
        reply, lost = counts.answer(path, body)
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        finish = self._lose if lost else self.transport.write
        loop = asyncio.get_running_loop()
        if counts.conduct.latency:
            loop.call_later(counts.conduct.latency, self._end, counts, finish, reply)
        else:
            self._end(counts, finish, reply)

    def _end(self, counts: Counts, finish: Any, reply: bytes) -> None:
        counts.in_flight -= 1
        if not self.transport.is_closing():
            finish(reply)

    def _lose(self, _: bytes) -> None:
        kind = self.process[0].random.choice(self.process[0].conduct.lost_kinds.split(","))
        if kind == "drop":
            self.transport.close()
        elif kind == "500":
            self.transport.write(_http(500, {"message": "Internal failure"}, error="InternalFailure"))

    def _control(self, path: bytes, body: bytes) -> dict[str, Any]:
        counts = self.process[0]
        if body:
            conduct = Conduct(**{**asdict(counts.conduct), **json.loads(body)})
            if path == b"/control/reset":
                counts = self.process[0] = Counts(conduct)
            counts.conduct = conduct
        if path == b"/control/copies":
            return {"copies": counts.copies, "unanswered": counts.unanswered}
        return counts.report()


@dataclass
class SpawnedFake:
    """A fake in a process of its own."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def read(self) -> dict[str, Any]:
        """Return what was counted."""
        return dict(self._control(""))

    def copies(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return how many messages each address was sent, and how many of them in calls without an answer."""
        answer = self._control("/copies")
        return answer["copies"], answer["unanswered"]

    def change(self, **conduct: Any) -> None:
        """Behave differently from now on."""
        self._control("", conduct)

    def reset(self, **conduct: Any) -> None:
        """Begin to count anew, with the conduct of a new process changed as told."""
        self._control("/reset", asdict(Conduct(**conduct)))

    def _control(self, path: str, conduct: dict[str, Any] | None = None) -> Any:
        body = None if conduct is None else json.dumps(conduct).encode()
        with urllib.request.urlopen(f"{self.url}/control{path}", data=body, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def spawned(**conduct: Any) -> Iterator[SpawnedFake]:
    """Serve in a process of its own until the block ends."""
    command = [sys.executable, "-m", "tests.ses_fake"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        fake = SpawnedFake(int(process.stdout.readline()))
        fake.reset(**conduct)
        try:
            yield fake
        finally:
            process.communicate()


async def _serve(port: int, conduct: Conduct) -> None:
    """Serve until standard input ends, having printed the port."""
    loop = asyncio.get_running_loop()
    process = [Counts(conduct)]
    server = await loop.create_server(lambda: Connection(process), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    for option in fields(Conduct):
        kind = {"float": float, "int": int, "bool": bool, "str": str}[str(option.type)]
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=kind, default=option.default)
    chosen = vars(parser.parse_args())
    asyncio.run(_serve(chosen.pop("port"), Conduct(**chosen)))
