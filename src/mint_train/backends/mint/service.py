"""The service as it is spoken to: its address and key, and each of its failures as one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from json import JSONDecodeError
from typing import Any, Generic, TypeVar

import httpx
from pydantic import SecretStr

from mint_train.backends.mint.http_client import FATE_UNKNOWN, REFUSED, SHOWN, Connection
from mint_train.backends.mint.waiting import Wait, in_thread
from mint_train.errors import BackendError, MintTrainError, ServiceError, UserError
from mint_train.sdk import SDK_VERSION, mint

Result = TypeVar("Result")

API = "/api/v1"
LOAD_STATE = "load the state"
"""What a service is asked to do with a state; one that it does not have is the user's to find."""

TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\\x1b\[[0-9;]*[A-Za-z]")
FULL = re.compile(r"maximum number of lora adapters|no (free|available) (adapter|lora)", re.IGNORECASE)
GONE = re.compile(r"not (loaded|found)|expired|unloaded|no longer|unknown (model|session)", re.IGNORECASE)
"""What services say of an adapter, a session or a result that they had."""


@dataclass(frozen=True, slots=True)
class Service:
    """The address that is spoken to, and the key, kept out of every message."""

    url: str
    key: SecretStr
    connection: Connection = field(default_factory=Connection, repr=False, compare=False)
    tell: Callable[[str], None] = field(default=lambda _: None, repr=False, compare=False)
    """Tells the user one line, of a long wait."""

    @contextmanager
    def translated(self, doing: str, *, running: bool = False) -> Iterator[None]:
        """Raise whatever the SDK raises as this project's, without the key in it.

        Args:
            doing: what the service is asked to do.
            running: an adapter is in training, so that what is not found has been lost.
        """
        try:
            yield
        except MintTrainError:
            raise
        except Exception as error:
            raise self.explain(error, doing, running=running) from None

    def wait(self, future: Future[Result], timeout: float | None = None, doing: str = "answer") -> Result:
        """Wait for a future of the SDK's, but not for a service that has fallen silent.

        Raises:
            ServiceError: nothing was heard for `PATIENCE_SECONDS`.
            TimeoutError: the timeout is over.
        """
        return Wait(self.connection, self.url, doing, self.tell).until(future, timeout)

    def call(self, doing: str, function: Callable[[], Result], *, running: bool = False) -> Result:
        """Call a function of the SDK's that blocks until it has its answer.

        Raises:
            MintTrainError: it fails, or nothing was heard of the service for `PATIENCE_SECONDS`.
        """
        with self.translated(doing, running=running):
            return self.wait(in_thread(function), doing=doing)

    def hide_key(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self.key.get_secret_value(), "***")

    def explain(self, error: BaseException, doing: str, *, running: bool = False) -> MintTrainError:
        """Say in one line what failed and what to do next."""
        text = self.hide_key(" ".join(TERMINAL_CODE.sub("", str(error)).split()))
        # the cause of a traceback stands at its end
        says = (text if len(text) <= SHOWN else f"... {text[-SHOWN:]}") or type(error).__name__
        where = f"the service at {self.url}"
        if is_unknown_request(error):
            return BackendError(
                f"{where} does not know what tinker {SDK_VERSION} asks for, to {doing}; check MINT_BASE_URL, "
                f"which ends before /api/v1; another version of the SDK may fit; it says: {says}"
            )
        if FULL.search(text):
            return BackendError(
                f"{where} has no slot left for an adapter ({says}); a slot is free again once its run's "
                "session has expired, on SkyRL five minutes after the run has ended"
            )
        if isinstance(error, mint.AuthenticationError):
            return UserError(f"{where} does not accept the key in MINT_API_KEY (HTTP 401): check or renew it")
        if isinstance(error, mint.PermissionDeniedError):
            return UserError(f"{where} does not let this key {doing} (HTTP 403): ask its operator for access")
        if running and is_loss(error) and GONE.search(text):
            return ServiceError(f"{where} has lost what it needs to {doing}; it says: {says}")
        if doing.startswith(LOAD_STATE) and is_not_found(error):
            return missing_state(where, doing.removeprefix(LOAD_STATE).strip(), says)
        if isinstance(error, mint.NotFoundError):
            return UserError(f"{where} cannot {doing} (HTTP 404): check MINT_BASE_URL; it says: {says}")
        if "must start with the 'tml-' prefix" in text:
            return UserError(f"{where} takes keys that start with tml-; the one in MINT_API_KEY does not")
        if isinstance(error, mint.APIResponseValidationError | JSONDecodeError):
            if running:
                return ServiceError(f"{where} was asked to {doing}, and its answer was cut off or garbled")
            return UserError(f"{where} is not a training service: check MINT_BASE_URL ({text})")
        if isinstance(error, mint.APIStatusError) and error.status_code == REFUSED:
            return BackendError(f"{where} {self.hide_key(error.response.json()['detail'])}")
        if isinstance(error, mint.APIStatusError) and error.status_code == FATE_UNKNOWN:
            reason = error.response.json()["detail"]
            return ServiceError(f"{where} may or may not have done what it was asked: to {doing} ({reason})")
        if isinstance(error, mint.APITimeoutError | TimeoutError):
            return ServiceError(f"{where} did not answer in time while asked to {doing}; try again later")
        if isinstance(error, mint.APIConnectionError | httpx.TransportError):
            return ServiceError(f"{where} cannot be reached to {doing}: {text or type(error).__name__}")
        kind = ServiceError if may_pass(error) else BackendError
        return kind(f"{where} failed to {doing}: {says}")


@dataclass(frozen=True, slots=True)
class ServiceFuture(Generic[Result]):
    """An SDK future whose failures are this project's errors."""

    future: Future[Result]
    service: Service
    doing: str
    running: bool = True
    """Whether an adapter is in training, so that what is not found has been lost."""
    check: Callable[[Result], None] | None = None
    """Raises what is wrong with an answer."""

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the answer."""
        with self.service.translated(self.doing, running=self.running):
            answer = self.service.wait(self.future, timeout, self.doing)
        if self.check is not None:
            self.check(answer)
        return answer


def is_unknown_request(error: BaseException) -> bool:
    """Return whether a service has no such route, or refuses a field of a request."""
    if not isinstance(error, mint.APIStatusError):
        return False
    if error.status_code == httpx.codes.NOT_FOUND:
        body: Any = error.body  # what web frameworks answer for an unknown route
        return isinstance(body, dict) and body.get("detail") == "Not Found"
    return error.status_code in (
        httpx.codes.METHOD_NOT_ALLOWED,
        httpx.codes.UNSUPPORTED_MEDIA_TYPE,
        httpx.codes.UNPROCESSABLE_ENTITY,
    )


def missing_state(where: str, state: str, says: str) -> UserError:
    """Say that a service does not have a state, and what to do."""
    return UserError(
        f"{where} does not have {state}, which may have been deleted: name another state, or the service "
        f"that has it in MINT_BASE_URL; it says: {says}"
    )


def is_not_found(error: BaseException) -> bool:
    """Return whether a service answers that it does not have what is asked for, at once or as a result."""
    # TuFT's answer comes when the result is awaited; the SDK makes a plain exception of it
    late = not isinstance(error, mint.APIStatusError) and "Error code: 404" in str(error)
    return late or isinstance(error, mint.NotFoundError)


def is_loss(error: BaseException) -> bool:
    """Return whether a service answers with this kind of error when it has lost something."""
    # the SDK makes plain exceptions of what a result could not be had for
    return not isinstance(error, mint.APIStatusError) or isinstance(
        error, mint.NotFoundError | mint.BadRequestError
    )


def may_pass(error: BaseException) -> bool:
    """Return whether trying again may succeed."""
    if isinstance(error, mint.RequestFailedError):
        return error.category is not mint.types.RequestErrorCategory.User
    status: Any = getattr(error, "status_code", None)
    if status is not None:
        return bool(status >= httpx.codes.INTERNAL_SERVER_ERROR) or status in (
            httpx.codes.REQUEST_TIMEOUT,
            httpx.codes.TOO_EARLY,
            httpx.codes.TOO_MANY_REQUESTS,
        )
    return isinstance(error, CancelledError)
