"""Answers of bounded size: a few compressed megabytes may be gigabytes."""

from __future__ import annotations

import time

import httpx

MOST_BYTES = 512_000_000
"""Bytes of one answer, decompressed; the logprobs of a large batch are a few megabytes."""
ENCODINGS = ("", "identity", "gzip", "deflate")
"""Compression that makes at most a thousand bytes of one; others, and two at once, make more."""
ACCEPTED = {"Accept-Encoding": "gzip, deflate"}
TOO_LARGE = f"sends an answer of more than {MOST_BYTES // 1_000_000} MB, which is not read"


class AnswerTooLargeError(Exception):
    """An answer that is larger than any that is asked for."""


def check_encoding(response: httpx.Response) -> None:
    """Refuse compression that was not asked for, before anything is decompressed.

    Raises:
        AnswerTooLargeError: its size is not known to have a bound.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ENCODINGS:
        raise AnswerTooLargeError(f"sends an answer compressed by {encoding[:50]!r}, which is not read")


async def read_whole(response: httpx.Response) -> httpx.Response:
    """Read a streamed response, and return one that holds its content.

    Raises:
        AnswerTooLargeError: it is too large.
    """
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            await response.aclose()
            raise AnswerTooLargeError(TOO_LARGE)
    kept = [
        (name, value)
        for name, value in response.headers.raw
        if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
    ]
    return httpx.Response(
        response.status_code,
        headers=kept,
        content=b"".join(parts),
        request=response.request,
        extensions=response.extensions,
        history=response.history,
    )


def get(url: str, seconds: float) -> httpx.Response:
    """Get a page within some seconds.

    Raises:
        httpx.HTTPError: it cannot be had, or not in time.
        httpx.InvalidURL: it is not an address.
        AnswerTooLargeError: it is too large.
    """
    end = time.monotonic() + seconds
    with httpx.stream("GET", url, timeout=seconds, headers=ACCEPTED) as response:
        check_encoding(response)
        parts, size = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise AnswerTooLargeError(TOO_LARGE)
            if time.monotonic() > end:
                raise httpx.ReadTimeout("its answer came too slowly", request=response.request)
        return httpx.Response(response.status_code, content=b"".join(parts), request=response.request)
