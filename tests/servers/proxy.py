"""A bad network before a server: an HTTP/1.1 proxy that delays all messages and spoils some requests."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

Kind = Literal["drop", "lose", "slow", "truncate", "error", "error-after"]
"""What may happen to a request.

- drop: the connection is reset before the request reaches the server;
- lose: the server answers, and the connection is reset before the answer is passed on;
- slow: the request reaches the server seconds late;
- truncate: the connection ends in the middle of the answer;
- error: the proxy answers 500 in the server's place;
- error-after: the server answers, and the proxy answers 500.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)
LARGEST_HEAD = 64 * 1024
FRAMING_HEADERS = (b"host:", b"content-", b"transfer-encoding:")
ERROR_BODY = b"a fault of the proxy"


@dataclass
class Proxy:
    """A running proxy; what it does may be changed while it runs."""

    target: str
    """The server's address, `http://host:port`."""
    delay: float = 0.0
    """Seconds that each request takes to the server, and each answer back."""
    rate: float = 0.0
    """The chance that a request is spoilt."""
    kinds: tuple[Kind, ...] = KINDS
    paths: tuple[str, ...] = ()
    """The last parts of the paths that may be spoilt; none stands for all."""
    slow_seconds: float = 3.0
    at_most: int | None = None
    """How many requests are spoilt before the network is a good one again."""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by the last part of their path."""
    spoilt: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    bare: bool = False
    """Whether only those headers are passed on without which a message cannot be read."""
    change: Callable[[str, Any], Any] | None = None
    """Changes a request's JSON, given the last part of its path."""
    url: str = ""

    def __post_init__(self) -> None:
        self.reseed(0)

    def heal(self) -> None:
        """Make the network a good one, which nothing has happened on yet."""
        self.delay = self.rate = 0.0
        self.kinds, self.paths, self.at_most, self.bare, self.change = KINDS, (), None, False, None
        self.requests.clear()
        self.spoilt.clear()
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Choose which requests are spoilt."""
        self._random = random.Random(seed)

    def fault(self, name: str) -> Kind | None:
        """Note a request, and choose what happens to it."""
        self.requests[name] += 1
        chance, kind = self._random.random(), self._random.choice(self.kinds)
        if chance >= self.rate or (self.paths and name not in self.paths):
            return None
        if self.at_most is not None and self.spoilt.total() >= self.at_most:
            return None
        self.spoilt[name, kind] += 1
        return kind

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass the requests of one client's connection on, until either side has had enough."""
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while request := await next_request(reader, server[0] if server else None):
                name = request.split(b" ", 2)[1].rpartition(b"/")[2].decode()
                fault = self.fault(name)
                if self.change is not None and request.startswith(b"POST"):
                    request = changed(request, partial(self.change, name))
                await asyncio.sleep(self.delay + (self.slow_seconds if fault == "slow" else 0.0))
                if fault == "drop":
                    writer.transport.abort()
                    return
                if fault == "error":
                    answer = server_error()
                else:
                    address = urlsplit(self.target)
                    server = server or await asyncio.open_connection(address.hostname, address.port)
                    server[1].write(stripped(request) if self.bare else request)
                    answer = await read_message(server[0])
                    answer = stripped(answer) if self.bare else answer
                await asyncio.sleep(self.delay)
                if fault == "lose" or not answer:
                    writer.transport.abort()
                    return
                if fault == "error-after":
                    answer = server_error()
                if fault == "truncate":
                    head, separator, body = answer.partition(b"\r\n\r\n")
                    writer.write(head + separator + body[: len(body) // 2])
                    return
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):  # the last when the proxy ends
            writer.transport.abort()
        finally:
            for side in (writer, server[1] if server else None):
                if side is not None:
                    with suppress(OSError):
                        side.close()


def changed(request: bytes, change: Callable[[Any], Any]) -> bytes:
    """Change the JSON of a request."""
    head, separator, body = request.partition(b"\r\n\r\n")
    if not body:
        return request
    body = json.dumps(change(json.loads(body))).encode()
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length:")]
    return b"\r\n".join([*lines, b"Content-Length: " + str(len(body)).encode()]) + separator + body


def stripped(message: bytes) -> bytes:
    """Drop all headers but those that frame and type a message."""
    head, separator, body = message.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    kept = [line for line in lines if line.lower().startswith(FRAMING_HEADERS)]
    return b"\r\n".join([first, *kept]) + separator + body


async def next_request(reader: asyncio.StreamReader, server: asyncio.StreamReader | None) -> bytes:
    """Read a client's next request; nothing where the client, or the server that is idle, has hung up."""
    request = asyncio.ensure_future(read_message(reader))
    if server is not None:
        closed = asyncio.ensure_future(server.read(1))  # a server sends nothing before it is asked
        await asyncio.wait({request, closed}, return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        await asyncio.gather(closed, return_exceptions=True)
        if not request.done():
            request.cancel()
            return b""
    return await request


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """Read one request or answer with its body; nothing where the other side has hung up."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return b""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:-2])
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return head + await read_chunks(reader)
    return head + await reader.readexactly(int(headers.get(b"content-length", 0)))


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a chunked body as it came."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if not size:
            return body


def server_error() -> bytes:
    """Make an answer with status 500."""
    length = str(len(ERROR_BODY)).encode()
    return b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: " + length + b"\r\n\r\n" + ERROR_BODY


@contextmanager
def running_proxy(proxy: Proxy) -> Iterator[Proxy]:
    """Run a proxy on a free port, in a thread of its own."""
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def run() -> None:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=LARGEST_HEAD)
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        try:
            await asyncio.get_running_loop().create_future()  # until the loop is stopped
        finally:
            server.close()

    def serve() -> None:
        task = loop.create_task(run())
        loop.run_forever()
        for left in asyncio.all_tasks(loop):
            left.cancel()
        loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), task, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
