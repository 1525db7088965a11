"""The MinT backend: the SDK itself, wrapped so that each of its failures is one clear line."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import SecretStr

from mint_train.backends.mint.http_client import FATE_UNKNOWN
from mint_train.backends.mint.service import Service, ServiceFuture
from mint_train.errors import MintTrainError, ServiceError, UserError
from mint_train.sdk import Datum, mint, types

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

KEY_PREFIXES = ("sk-", "tml-", "eyJ")
CONNECT_SECONDS = 10.0
CONNECT_TRIES = 3
PAUSE_SECONDS = 0.5
CLOSE_SECONDS = 10.0
LEAVE_TRIES = 4
DELETE_SECONDS = 30.0
API = "/api/v1"


class MintTrainingClient:
    """One adapter in training on the service; see `backends.base.TrainingClient` for the calls."""

    def __init__(
        self, service_client: mint.ServiceClient, client: mint.TrainingClient, service: Service
    ) -> None:
        self.service_client = service_client
        self.client = client
        self.service = service
        self.holder = client.holder
        self.pending: set[Future[Any]] = set()
        self.gradients_sent = False
        """Whether the next update is to find gradients that are not all 0."""
        self.deletes = True

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that the service names for the base model."""
        try:
            tokenizer: PreTrainedTokenizerBase = self.client.get_tokenizer()
        except mint.TinkerError as error:
            raise self.service.explain(error, "name its tokenizer", running=True) from None
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
        differentiated: list[torch.Tensor] = []

        def noted_loss(
            data: list[Datum], logprobs: list[torch.Tensor]
        ) -> tuple[torch.Tensor, dict[str, float]]:
            differentiated.extend(logprobs)
            return loss_fn(data, logprobs)

        async def submit() -> Any:
            future = await self.client.forward_backward_custom_async(data, noted_loss)
            self.gradients_sent |= any(bool(logprob.grad.any()) for logprob in differentiated)  # type: ignore[union-attr]
            differentiated.clear()  # in the SDK's thread, where nothing waits for it
            return future

        return self._submit("compute gradients", lambda: self.service.wait(self._run(submit())))

    def optim_step(self, adam_params: types.AdamParams) -> ServiceFuture[types.OptimStepResponse]:
        """Submit an update; its result raises a `ServiceError` if it came before the gradients."""
        # gradients that have been awaited are there, even if their norm is 0
        in_doubt = self.gradients_sent and not all(request.done() for request in self.pending)
        self.gradients_sent = False

        def check(answer: types.OptimStepResponse) -> None:
            if in_doubt and was_without_gradients(answer):
                raise ServiceError(
                    f"the service at {self.service.url} updated the adapter before it took up the gradients; "
                    "if that happens often, --no-pipeline sends the update only after them"
                )

        return self._submit("update the adapter", lambda: self.client.optim_step(adam_params), check=check)

    def save_state(self, name: str) -> ServiceFuture[types.SaveWeightsResponse]:
        """Submit a save of weights and optimiser."""
        return self._submit("save the state", lambda: self.client.save_state(name))

    def load_state_with_optimizer(self, path: str) -> ServiceFuture[types.LoadWeightsResponse]:
        """Submit a load of weights and optimiser."""
        # a state that is not found is the user's to find
        return self._submit(
            f"load the state {path}", lambda: self.client.load_state_with_optimizer(path), running=False
        )

    def save_weights_for_sampler(self, name: str) -> ServiceFuture[types.SaveWeightsForSamplerResponse]:
        """Submit a save of the weights for sampling."""
        return self._submit("save the weights", lambda: self.client.save_weights_for_sampler(name))

    def delete_state(self, path: str) -> None:
        """Ask the service to delete a saved state; one that cannot says so once, and keeps it."""
        if not self.deletes:
            return
        rest = self.service_client.create_rest_client()
        doing = f"delete the state {path}"
        try:
            with self.service.translated(doing):
                self.service.wait(rest.delete_checkpoint_from_tinker_path(path), DELETE_SECONDS)
        except MintTrainError as error:
            self.deletes = isinstance(error, ServiceError)  # a refusal will be the same the next time
            print(f"Old states stay on the service: {error}", file=sys.stderr)  # noqa: T201

    def close(self) -> None:
        """Give up what is under way and the adapter's place on the service, which it would else hold."""
        if self.service.connection.is_closed:
            return
        for future in tuple(self.pending):
            future.cancel()
        with suppress(TimeoutError):
            self._run(self._leave()).result(CLOSE_SECONDS)
        self.holder.close()  # type: ignore[no-untyped-call]

    async def _leave(self) -> None:
        # SkyRL hands a place on with the gradients that no update has taken: so let an idle one take them
        await self._ask("optim_step", adam_params=types.AdamParams(learning_rate=0.0).model_dump())
        await self._ask("unload_model")
        await self.service.connection.aclose()

    async def _ask(self, name: str, **arguments: Any) -> None:
        """Ask for something that may be done twice, without waiting until it is."""
        for _ in range(LEAVE_TRIES):
            with suppress(httpx.HTTPError):
                answer = await self.service.connection.post(
                    f"{self.service.url}{API}/{name}",
                    json={"model_id": str(self.client.model_id), "type": name, **arguments},
                    headers={"X-API-Key": self.service.key.get_secret_value()},
                    timeout=CLOSE_SECONDS,
                )
                if not (answer.is_server_error or answer.status_code == FATE_UNKNOWN):
                    return
            await asyncio.sleep(PAUSE_SECONDS)

    def _submit(
        self,
        doing: str,
        call: Callable[[], Any],
        *,
        running: bool = True,
        check: Callable[[Any], None] | None = None,
    ) -> ServiceFuture[Any]:
        with self.service.translated(doing, running=running):
            return ServiceFuture(self._run(call().result_async()), self.service, doing, running, check)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        # a result is awaited beside the SDK's own future, whose result(timeout) would give it up
        future = asyncio.run_coroutine_threadsafe(coroutine, self.holder.get_loop())
        self.pending.add(future)
        future.add_done_callback(self.pending.discard)
        return future


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
        client = mint.ServiceClient(
            base_url=service.url, api_key=service.key.get_secret_value(), http_client=service.connection
        )
    with service.translated("name its models"):
        supported = client.get_server_capabilities().supported_models
    check_model(model, [str(entry.model_name) for entry in supported], service)
    with service.translated(f"create an adapter for {model}"):
        training_client = client.create_lora_training_client(
            base_model=model, rank=rank, seed=seed, train_mlp=True, train_attn=True, train_unembed=True
        )
    return MintTrainingClient(client, training_client, service)


def was_without_gradients(answer: types.OptimStepResponse) -> bool:
    """Tell whether an update found no gradients, where the service names their norm.

    SkyRL looks for gradients to compute first, for updates last: on a busy server both may come in between.
    """
    norms = [norm for name, norm in (answer.metrics or {}).items() if name.endswith("grad_norm")]
    return 0.0 in norms


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
        ServiceError: there is none.
        UserError: the address is no URL.
    """
    for tries_left in reversed(range(CONNECT_TRIES)):
        try:
            status = httpx.get(f"{service.url}{API}/healthz", timeout=CONNECT_SECONDS).status_code
            problem = f"is out of order (HTTP {status}); try again later"
            if status < httpx.codes.INTERNAL_SERVER_ERROR:
                return
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise UserError(f"MINT_BASE_URL={service.url} is no address: {error}") from None
        except httpx.TimeoutException:
            problem = (
                f"did not answer within {CONNECT_SECONDS:.0f} s; try again later, or check MINT_BASE_URL"
            )
            break
        except httpx.HTTPError as error:
            problem = f"cannot be reached ({error}); check MINT_BASE_URL"
        if tries_left:
            time.sleep(PAUSE_SECONDS)
    raise ServiceError(f"the service at {service.url} {problem}")


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
