"""An OpenAI-compatible endpoint: concurrent requests, retries, and a cache on disk by what is asked."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import openai

from mint_train.plugin import JudgeError, PluginError

NO_KEY = "none"
"""What is sent to a server of one's own, which asks for no key."""


@dataclass
class Endpoint:
    """A model behind an endpoint."""

    model: str
    base_url: str | None
    key_variable: str
    """The environment variable of the key."""
    request: dict[str, Any]
    """What is sent beside the text, such as the temperature."""
    cache: Path
    concurrency: int
    retries: int
    timeout: float
    asked: int = 0
    """Requests that were answered by the endpoint."""
    cached: int = 0
    """Answers that were taken from the cache."""
    tokens_in: int = 0
    tokens_out: int = 0
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """Open the client.

        Raises:
            PluginError: no key is set for OpenAI's own service, or a key is given as the variable's name.
        """
        if not self.key_variable.isidentifier():
            raise PluginError("--set key_variable takes the name of an environment variable, not a key")
        self.key = os.environ.get(self.key_variable, "")
        if not self.key and self.base_url is None:
            raise PluginError(f"no key: set {self.key_variable}, or name a server with --set base_url=URL")
        self.client = openai.OpenAI(
            api_key=self.key or NO_KEY,
            base_url=self.base_url,
            max_retries=self.retries,
            timeout=self.timeout,
        )

    def ask_all(self, texts: Sequence[str]) -> list[str]:
        """Return the answers to some texts, in their order; equal texts are asked once.

        Raises:
            JudgeError: the endpoint refuses, or keeps failing. Nothing is asked after the first failure,
                and what was answered stays in the cache.
        """
        distinct = list(dict.fromkeys(texts))
        failures: list[JudgeError] = []

        def ask_unless_failed(text: str) -> str:
            # A thread takes its next text before the pool can be shut down.
            if failures:
                raise failures[0]
            try:
                return self.ask(text)
            except JudgeError as error:
                failures.append(error)
                raise

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            answers = dict(zip(distinct, pool.map(ask_unless_failed, distinct), strict=True))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [answers[text] for text in texts]

    def ask(self, text: str) -> str:
        """Return the answer to one text, from the cache if it is there.

        Raises:
            JudgeError: the endpoint refuses, or keeps failing.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], **self.request}
        kept = self.cache / f"{self._digest(body)}.json"
        known = read_kept(kept)
        if known is not None:
            with self.lock:
                self.cached += 1
            return known
        try:
            response = self.client.chat.completions.create(**body)
            answer = response.choices[0].message.content or ""
        except (openai.OpenAIError, IndexError, AttributeError, ValueError, TypeError) as error:
            raise self._failed(error) from None
        with self.lock:
            self.asked += 1
            if response.usage is not None:
                self.tokens_in += response.usage.prompt_tokens
                self.tokens_out += response.usage.completion_tokens
        keep(kept, answer)
        return answer

    def _digest(self, body: dict[str, Any]) -> str:
        asked = json.dumps({"base_url": self.base_url, **body}, sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def _failed(self, error: Exception) -> JudgeError:
        """Return the error for a request that failed; a server may repeat the key, which is never shown."""
        where = self.base_url or "OpenAI"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            given = "the key in" if self.key else "requests without a key: set"
            return JudgeError(f"{where} refuses {given} {self.key_variable}")
        said = " ".join(str(error).split())[:300]
        if self.key:
            said = said.replace(self.key, "...")
        tries = f" after {self.retries} retries" if not isinstance(error, openai.BadRequestError) else ""
        return JudgeError(f"{where} failed{tries}: {type(error).__name__}: {said}")


def read_kept(path: Path) -> str | None:
    """Return an answer in the cache; None where there is none, or it is broken."""
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))["answer"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answer if isinstance(answer, str) else None


def keep(path: Path, answer: str) -> None:
    """Keep an answer, whole or not at all.

    Raises:
        JudgeError: the disk refuses.
    """
    beside = path.with_name(f".{path.name[:16]}.{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"answer": answer}, ensure_ascii=False), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise JudgeError(f"the cache {path.parent} cannot be written: {error.strerror or error}") from error
