"""The MinT backend: the SDK itself, wrapped so that each of its failures is one clear line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx
from pydantic import SecretStr

from mint_train.errors import BackendError, MintTrainError, UserError
from mint_train.sdk import Datum, mint, types

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")

KEY_PREFIXES = ("sk-", "tml-", "eyJ")
CONNECT_SECONDS = 10.0
SHOWN = 300
"""Characters of a service's answer that a message repeats: it may be a whole web page."""
HEALTH_PATH = "/api/v1/healthz"


@dataclass(frozen=True, slots=True)
class Service:
    """The address that is spoken to, and the key, kept out of every message."""

    url: str
    key: SecretStr

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Raise the SDK's errors as this project's, without the key in them."""
        try:
            yield
        except MintTrainError:
            raise
        except (mint.TinkerError, httpx.HTTPError, TimeoutError, CancelledError, ValueError) as error:
            raise self.explain(error, doing) from None

    def explain(self, error: BaseException, doing: str) -> MintTrainError:
        """Say in one line what failed and what to do next."""
        text = " ".join(str(error).split()).replace(self.key.get_secret_value(), "***")
        where = f"the service at {self.url}"
        if isinstance(error, mint.AuthenticationError):
            return UserError(f"{where} does not accept the key in MINT_API_KEY (HTTP 401): check or renew it")
        if isinstance(error, mint.PermissionDeniedError):
            return UserError(f"{where} does not let this key {doing} (HTTP 403): ask its operator for access")
        if isinstance(error, mint.NotFoundError):
            return UserError(
                f"{where} cannot {doing} (HTTP 404): check MINT_BASE_URL; it says: {text[:SHOWN]}"
            )
        if "must start with the 'tml-' prefix" in text:
            return UserError(f"{where} takes keys that start with tml-; the one in MINT_API_KEY does not")
        if isinstance(error, mint.APIResponseValidationError):
            return UserError(f"{where} is no training service: check MINT_BASE_URL ({text})")
        if isinstance(error, mint.APITimeoutError | TimeoutError):
            return BackendError(f"{where} did not answer in time while asked to {doing}; try again later")
        if isinstance(error, mint.APIConnectionError | httpx.TransportError):
            return BackendError(f"{where} cannot be reached to {doing}: {text or type(error).__name__}")
        return BackendError(f"{where} failed to {doing}: {text[:SHOWN] or type(error).__name__}")


@dataclass(frozen=True, slots=True)
class ServiceFuture(Generic[Result]):
    """An SDK future whose failures are this project's errors."""

    future: Any
    service: Service
    doing: str

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the answer."""
        with self.service.translated(self.doing):
            answer: Result = self.future.result(timeout)
            return answer


class MintTrainingClient:
    """One adapter in training on the service; see `backends.base.TrainingClient` for the calls."""

    def __init__(self, client: mint.TrainingClient, service: Service) -> None:
        self.client = client
        self.service = service

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that the service names for the base model."""
        try:
            tokenizer: PreTrainedTokenizerBase = self.client.get_tokenizer()
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the base model's tokenizer cannot be loaded from the hub: {reason}") from error
        return tokenizer

    def forward(self, data: list[Datum], loss_fn: str) -> ServiceFuture[types.ForwardBackwardOutput]:
        """Submit a forward without gradients."""
        return self._submit("compute logprobs", lambda: self.client.forward(data, loss_fn))  # type: ignore[arg-type]

    def forward_backward_custom(
        self,
        data: list[Datum],
        loss_fn: Callable[[list[Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]],
    ) -> ServiceFuture[types.ForwardBackwardOutput]:
        """Wait for the logprobs, compute the loss here, and submit its gradients."""
        return self._submit("compute gradients", lambda: self.client.forward_backward_custom(data, loss_fn))

    def optim_step(self, adam_params: types.AdamParams) -> ServiceFuture[types.OptimStepResponse]:
        """Submit an update."""
        return self._submit("update the adapter", lambda: self.client.optim_step(adam_params))

    def save_state(self, name: str) -> ServiceFuture[types.SaveWeightsResponse]:
        """Submit a save of weights and optimiser."""
        return self._submit("save the state", lambda: self.client.save_state(name))

    def load_state_with_optimizer(self, path: str) -> ServiceFuture[types.LoadWeightsResponse]:
        """Submit a load of weights and optimiser."""
        return self._submit(f"load the state {path}", lambda: self.client.load_state_with_optimizer(path))

    def save_weights_for_sampler(self, name: str) -> ServiceFuture[types.SaveWeightsForSamplerResponse]:
        """Submit a save of the weights for sampling."""
        return self._submit("save the weights", lambda: self.client.save_weights_for_sampler(name))

    def _submit(self, doing: str, call: Callable[[], Any]) -> ServiceFuture[Any]:
        with self.service.translated(doing):
            return ServiceFuture(call(), self.service, doing)


def open_mint_client(
    model: str, rank: int, seed: int, base_url: str | None, api_key: SecretStr | None
) -> MintTrainingClient:
    """Check key, address and model, and create a LoRA training client on the service.

    Raises:
        UserError: there is no key, it is of the wrong kind or refused, or the service lacks the model.
        BackendError: the service cannot be reached or fails.
    """
    service = Service((base_url or os.environ["TINKER_BASE_URL"]).rstrip("/"), check_key(api_key))
    check_reachable(service)
    with service.translated("open a session"):
        client = mint.ServiceClient(base_url=service.url, api_key=service.key.get_secret_value())
    with service.translated("name its models"):
        supported = client.get_server_capabilities().supported_models
    check_model(model, [str(entry.model_name) for entry in supported], service)
    with service.translated(f"create an adapter for {model}"):
        training_client = client.create_lora_training_client(
            base_model=model, rank=rank, seed=seed, train_mlp=True, train_attn=True, train_unembed=True
        )
    return MintTrainingClient(training_client, service)


def check_key(api_key: SecretStr | None) -> SecretStr:
    """Refuse a missing key or one of no known kind, before anything is sent.

    Raises:
        UserError: without showing the key.
    """
    if api_key is None:
        raise UserError("no key for MinT: set MINT_API_KEY, or train on this machine with --backend local")
    if not api_key.get_secret_value().startswith(KEY_PREFIXES):
        raise UserError(
            f"the key in MINT_API_KEY is of no known kind: it must start with {' or '.join(KEY_PREFIXES[:2])}"
        )
    return api_key


def check_reachable(service: Service) -> None:
    """Ask for an answer, any answer, within seconds: the SDK itself would retry for minutes.

    Raises:
        BackendError: there is none.
        UserError: the address is no URL.
    """
    try:
        status = httpx.get(service.url + HEALTH_PATH, timeout=CONNECT_SECONDS).status_code
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise UserError(f"MINT_BASE_URL={service.url} is no address: {error}") from None
    except httpx.TimeoutException:
        raise BackendError(
            f"the service at {service.url} did not answer within {CONNECT_SECONDS:.0f} s; try again later, "
            "or check MINT_BASE_URL"
        ) from None
    except httpx.HTTPError as error:
        raise BackendError(
            f"the service at {service.url} cannot be reached ({error}); check MINT_BASE_URL"
        ) from None
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise BackendError(f"the service at {service.url} is out of order (HTTP {status}); try again later")


def check_model(model: str, supported: list[str], service: Service) -> None:
    """Refuse a model that the service does not list: some servers would train another one instead.

    Raises:
        UserError: with what it has.
    """
    if supported and model not in supported:
        raise UserError(
            f"the service at {service.url} has no model {model}; it has: {', '.join(sorted(supported))} "
            "(choose one with --model)"
        )
