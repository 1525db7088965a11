"""Waits and answers of a service have bounds: silence is broken, and a bomb is not read."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hostile import Answer, running
from pydantic import SecretStr

from mint_train.backends.mint import answers, waiting
from mint_train.backends.mint.http_client import Connection
from mint_train.backends.mint.session import open_session
from mint_train.backends.mint.waiting import Wait, in_thread
from mint_train.errors import MintTrainError, ServiceError

pytestmark = pytest.mark.attacks

MIB = 1 << 20


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "TOLD_SECONDS", 0.2)
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.05)


def open_on(url: str, tell: Callable[[str], None] = lambda _: None) -> Any:
    return open_session("tiny", url, SecretStr("tml-x"), tell)


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("silent_from", ["create_session", "get_server_capabilities"])
def test_a_service_that_accepts_and_never_answers_is_given_up(silent_from: str) -> None:
    over = threading.Event()

    def answer(path: str) -> Answer:
        if path.endswith(silent_from):
            over.wait(60)
        return Answer(body={"session_id": "a", "type": "create_session"})

    told: list[str] = []
    with running(answer) as service:
        began = time.monotonic()
        with pytest.raises(ServiceError, match=f"the service at {service.url} has not answered for"):
            open_on(service.url, told.append)
        assert time.monotonic() - began < 20
        over.set()
    doing = {"create_session": "open a session", "get_server_capabilities": "name its models"}[silent_from]
    assert len(told) >= 2
    assert all(line.startswith(f"waiting for the service at {service.url} to {doing}: ") for line in told)


def connection(**given: Any) -> Any:
    return type("Heard", (), {"heard_at": 0.0, "failing_seconds": lambda _: 0.0, **given})()


def test_a_long_wait_is_told_of_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    told: list[str] = []
    heard = connection()
    wait = Wait(heard, "http://a", "compute logprobs", told.append)
    for second in range(500):
        clock[0] = float(second)
        heard.heard_at = clock[0]
        wait.look()
    assert [line.split(": ")[1] for line in told] == [f"{n} s so far" for n in (15, 30, 60, 120, 240, 480)]
    heard.failing_seconds = lambda: 20.0
    clock[0] = heard.heard_at = 960.0
    wait.look()
    assert told[-1].endswith("compute logprobs: 960 s so far; it cannot be reached for 20 s")
    clock[0] += waiting.PATIENCE_SECONDS + 1
    with pytest.raises(ServiceError, match="has not answered for 5 minutes while asked to compute logprobs"):
        wait.look()


def test_a_timeout_and_a_failure_of_the_function_are_told_apart() -> None:
    never: Future[None] = Future()
    with pytest.raises(TimeoutError):
        Wait(connection(heard_at=time.monotonic()), "a", "b").until(never, 0.05)
    with pytest.raises(KeyError):
        Wait(connection(), "a", "b").until(in_thread(lambda: {}["x"]))
    assert Wait(connection(), "a", "b").until(in_thread(lambda: 7)) == 7


@cache  # several tests send the same
def squeezed(kind: str, size: int) -> tuple[bytes, str]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if kind != "deflate" else 15)
    content = b"".join(packer.compress(bytes(MIB)) for _ in range(size // MIB)) + packer.flush()
    return (gzip.compress(content), "gzip, gzip") if kind == "twice" else (content, kind)


@pytest.mark.parametrize("kind", ["gzip", "deflate", "twice", "br"])
@pytest.mark.parametrize("where", ["healthz", "openapi.json", "create_session", "get_server_capabilities"])
def test_a_compressed_bomb_is_not_read(monkeypatch: pytest.MonkeyPatch, kind: str, where: str) -> None:
    monkeypatch.setattr(answers, "MOST_BYTES", 4 * MIB)
    bomb, encoding = squeezed(kind, 32 * MIB)

    def answer(path: str) -> Answer:
        if path.endswith(where):
            return Answer(body=bomb, headers={"Content-Encoding": encoding})
        return Answer(body={"session_id": "a", "type": "create_session", "supported_models": []})

    with running(answer) as service:
        if where == "openapi.json":
            open_on(service.url).close()  # a service that does not describe itself is not worse for it
            return
        with pytest.raises(MintTrainError, match="sends an answer") as refused:
            open_on(service.url)
    assert "\n" not in str(refused.value)


def test_a_compressed_answer_is_read() -> None:
    def answer(path: str) -> Answer:
        body = json.dumps({"session_id": "a", "type": "create_session", "supported_models": []}).encode()
        if path.endswith("healthz"):
            return Answer()
        return Answer(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})

    with running(answer) as service:
        open_on(service.url).close()
        assert "gzip, deflate" in service.received
        assert "zstd" not in service.received


@pytest.mark.parametrize(("name", "arrives"), [("retrieve_future", True), ("optim_step", False)])
def test_a_result_is_asked_for_again_where_idle_connections_are_closed_without_a_word(
    name: str, arrives: bool
) -> None:
    """The network answers one request on each connection, and resets it at the second."""
    asked: list[bytes] = []
    connections: list[Any] = []

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        await asyncio.sleep(0.1)  # so that five requests at once need five connections
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        with suppress(asyncio.IncompleteReadError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.transport.abort()

    async def ask() -> int:
        server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Connection() as connection:
            await asyncio.gather(*(connection.get(f"http://127.0.0.1:{port}/a") for _ in range(5)))
            status = (await connection.post(f"http://127.0.0.1:{port}/{name}")).status_code
        await asyncio.gather(*connections)
        return status

    assert (asyncio.run(ask()) == 200) is arrives
    assert len(asked) == (5 + 5 + 1 if arrives else 5 + 1), "what changes the adapter is sent once"
