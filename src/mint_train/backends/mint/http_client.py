"""The connection to the service: what changes the adapter is sent once, and a silence is noticed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from mint_train.backends.mint.answers import ACCEPTED, AnswerTooLargeError, check_encoding, read_whole

SENT_ONCE = frozenset({"forward_backward", "optim_step", "save_weights", "save_weights_for_sampler"})
"""Requests that a service may carry out twice when it gets them twice."""
RETRIEVE, HEARTBEAT = "retrieve_future", "session_heartbeat"
FATE_UNKNOWN = 424
"""The status of an answer that this module makes up; the SDK repeats 408, 409, 429 and 5xx only."""
REFUSED = 421
"""The same for an answer that is neither followed nor waited for, with a sentence that says why."""
PAUSE_SECONDS = 0.5
SHOWN = 300
"""Characters of an answer that a message repeats."""
IDLE_CONNECTIONS = 20
KEEP_ALIVE = httpx.Limits(
    max_connections=1000, max_keepalive_connections=IDLE_CONNECTIONS, keepalive_expiry=30.0
)


class Connection(httpx.AsyncClient):
    """The SDK's HTTP client, with the two things that the SDK leaves out.

    The SDK sends every request again whose answer is lost, for minutes, and a service need not notice that it
    has seen it before: an optimiser step would be applied twice. Here such a request is sent once; where it
    is not known whether it was carried out, the SDK is told so by the status `FATE_UNKNOWN`.

    The SDK also asks for a result for as long as it takes, a dead service included: `failing_seconds` tells
    for how long it has asked in vain.
    """

    def __init__(self) -> None:
        super().__init__(
            follow_redirects=True,
            limits=KEEP_ALIVE,
            headers=ACCEPTED,
            event_hooks={"response": [stay_at_origin, check_answer]},
        )
        self._failing_since: dict[str, float] = {}
        self.heard_at = time.monotonic()
        """When the last answer came that was not an error of the server."""
        self.round_trip = float("inf")
        """Seconds of the request that was answered fastest."""

    async def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        """Send a request as httpx does, and read its answer up to a bound.

        Raises:
            httpx.TransportError: there was no answer, and asking again does no harm.
        """
        name, sent_at = request.url.path.rpartition("/")[2], time.monotonic()
        try:
            response = await self._first_answer(request, IDLE_CONNECTIONS if name == RETRIEVE else 0, options)
            if not stream:
                response = await read_whole(response)
        except (LeavesOriginError, AnswerTooLargeError) as error:
            return made_up(REFUSED, request, str(error))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            self._note(name, failed=True)  # nothing was sent yet
            raise
        except httpx.RequestError as error:
            # a poll that times out is not a failure: the result is still being computed
            if not (name == RETRIEVE and isinstance(error, httpx.ReadTimeout)):
                self._note(name, failed=True)
            if name in SENT_ONCE:
                return made_up(FATE_UNKNOWN, request, str(error) or type(error).__name__)
            raise
        if response.status_code == httpx.codes.PAYMENT_REQUIRED:  # the SDK would wait for an hour
            says = " ".join(response.text.split())
            return made_up(REFUSED, request, f"wants to be paid (HTTP 402); it says: {says[:SHOWN]}")
        forget_stream(response)
        self._note(name, failed=response.is_server_error)
        if not response.is_server_error:
            self.heard_at = time.monotonic()
            self.round_trip = min(self.round_trip, self.heard_at - sent_at)
        if name in SENT_ONCE and may_be_done(response):
            return made_up(FATE_UNKNOWN, request, f"HTTP {response.status_code}")
        if name == RETRIEVE and response.is_server_error:
            await asyncio.sleep(PAUSE_SECONDS)  # the SDK would ask again at once
        return response

    async def _first_answer(
        self, request: httpx.Request, repeats: int, options: dict[str, Any]
    ) -> httpx.Response:
        """Send a request, and again at once as often as allowed where its connection turns out to be closed.

        A network may close idle connections without a word. The SDK asks for a result again after up to
        30 s, in which the connection that its heartbeat left idle is closed as well, and so on for minutes.
        """
        for _ in range(repeats):
            try:
                return await super().send(request, stream=True, **options)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                continue
        return await super().send(request, stream=True, **options)

    def failing_seconds(self) -> float:
        """Return for how many seconds polling or the session's heartbeat has been failing."""
        now = time.monotonic()
        return max((now - self._failing_since.get(name, now) for name in (RETRIEVE, HEARTBEAT)), default=0.0)

    def _note(self, name: str, *, failed: bool) -> None:
        if failed:
            self._failing_since.setdefault(name, time.monotonic())
        else:
            self._failing_since.pop(name, None)


def forget_stream(response: httpx.Response) -> None:
    """Let go of the stream of a response that has been read, which refers to the response.

    With it, the bodies of every request and answer would stay until Python looks for garbage.
    """
    if response.is_stream_consumed:
        response.stream = httpx.ByteStream(b"")


def may_be_done(response: httpx.Response) -> bool:
    """Return whether a request may have been carried out although its answer is an error.

    A 4xx refuses it, and a 503 has not taken it up.
    """
    return response.is_server_error and response.status_code != httpx.codes.SERVICE_UNAVAILABLE


def made_up(status: int, request: httpx.Request, reason: str) -> httpx.Response:
    """Make the answer that stands for one that is lost or refused."""
    return httpx.Response(status, json={"detail": reason}, request=request)


class LeavesOriginError(Exception):
    """A redirect to another origin, which would get the key and the rows."""


async def stay_at_origin(response: httpx.Response) -> None:
    """Refuse a redirect to another scheme, host or port.

    Raises:
        LeavesOriginError: with the other origin.
    """
    if not response.has_redirect_location:
        return
    target = response.url.join(response.headers["location"])
    if origin(target) != origin(response.url):
        raise LeavesOriginError(
            f"sends its requests on to {target.scheme}://{target.host}"
            f"{'' if target.port is None else f':{target.port}'}, which is another origin and gets neither "
            "key nor rows; if you trust it, set MINT_BASE_URL to it"
        )


async def check_answer(response: httpx.Response) -> None:
    """Refuse compression without a bound, and let go of the body of a redirect, which nobody reads.

    Raises:
        AnswerTooLargeError: naming the compression.
    """
    check_encoding(response)
    if response.has_redirect_location:
        await response.aclose()
        response.stream = httpx.ByteStream(b"")
        response.is_closed = response.is_stream_consumed = False


def origin(url: httpx.URL) -> tuple[str, str, int | None]:
    """Return scheme, host and port, where they are not the scheme's own."""
    return url.scheme, url.host, url.port
