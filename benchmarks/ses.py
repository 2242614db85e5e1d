"""A stand-in for Amazon SES, versions 1 and 2, that accepts everything at once and costs as little as Python can.

Run as a process: it prints its port, and at the end of its input the number of messages it accepted.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

_V1 = (
    b'<SendEmailResponse xmlns="http://ses.amazonaws.com/doc/2010-12-01/"><SendEmailResult><MessageId>0100-0'
    b"</MessageId></SendEmailResult></SendEmailResponse>"
)
_ENTRY = b'{"Status":"SUCCESS","MessageId":"0100018bcfe568d2-5b7b1a0e-1a3c-4f0e-9d0b-000000000000-000000"}'
_ACCOUNT = b'{"SendQuota":{"MaxSendRate":100000,"Max24HourSend":-1,"SentLast24Hours":0}}'

accepted = 0


class Ses(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with nothing received."""
        self.transport = cast("asyncio.Transport", transport)
        self.received = b""

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        self.received += data
        while (head_end := self.received.find(b"\r\n\r\n") + 4) > 3:
            head = self.received[:head_end].lower()
            length_at = head.find(b"content-length:")
            length = int(head[length_at + 15 : head.find(b"\r", length_at)]) if length_at >= 0 else 0
            if b"expect: 100-continue" in head and len(self.received) == head_end:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            if len(self.received) < head_end + length:
                return
            body, self.received = self.received[head_end : head_end + length], self.received[head_end + length :]
            self.transport.write(_answer(head, body))


def _answer(head: bytes, body: bytes) -> bytes:
    global accepted  # noqa: PLW0603
    if head.startswith(b"get /v2/email/account"):
        return _http(_ACCOUNT, b"application/json")
    if b"outbound-bulk-emails" in head[:80]:
        entries = body.count(b'"ReplacementTags"')
        accepted += entries
        return _http(b'{"BulkEmailEntryResults":[%s]}' % b",".join([_ENTRY] * entries), b"application/json")
    accepted += 1
    if b"outbound-emails" in head[:80]:
        return _http(b'{"MessageId":"0100-0"}', b"application/json")
    return _http(_V1, b"text/xml")


def _http(body: bytes, kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(body), body)


async def main() -> None:
    """Serve until the input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Ses, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print(accepted, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
