"""The MinT backend: the SDK itself, wrapped so that each of its failures is one clear line."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import torch

from mint_train.backends.base import Gradients, Sampler
from mint_train.backends.closing import closed_on_failure
from mint_train.backends.mint.gradient_form import CROSS_ENTROPY, have_a_norm, was_without_gradients
from mint_train.backends.mint.gradient_guard import UNPROVED, Proof, find_proof
from mint_train.backends.mint.http_client import FATE_UNKNOWN, SHOWN
from mint_train.backends.mint.logprobs import logprob_leaves, logprobs_problem
from mint_train.backends.mint.service import API, LOAD_STATE, ServiceFuture
from mint_train.backends.mint.session import Session, open_session
from mint_train.backends.mint.waiting import in_thread
from mint_train.errors import BackendError, MintTrainError, ServiceError, UserError
from mint_train.sdk import Datum, mint, types, without_remote_code
from mint_train.settings.model import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ON_A_SERVICE = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]{1,1000}")
SAMPLER_WEIGHTS = "/sampler_weights/"
"""In the path of weights that can be deleted; SkyRL's have another, which it does not take back."""
PAUSE_SECONDS, CLOSE_SECONDS, DELETE_SECONDS = 0.5, 10.0, 30.0
LEAVE_TRIES = 4


class MintTrainingClient:
    """One adapter in training on the service; see `backends.base.TrainingClient` for the calls."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        warn: Callable[[str], None],
        proof: Proof = UNPROVED,
    ) -> None:
        """Create a fresh adapter.

        Raises:
            MintTrainError: the service refuses, has no free adapter slot, or fails.
        """
        self.session, self.settings, self.warn = session, settings, warn
        self.form = proof.form
        # a proof has also read the logprobs that come with gradients, with weights and without
        self.takes_known_gradients = proof.proved and proof.form.loss_fn == CROSS_ENTROPY
        self.gradients = Gradients(proof.form_name, proof.note, proof.clips, session.layers_note(settings))
        self.service_client, self.service = session.client, session.service
        self.client = session.create_adapter(settings)
        self.holder, self.pending = self.client.holder, set[Future[Any]]()
        self.used = False
        """True if the adapter has had a request."""
        self.has_states = False
        self.gradients_sent = False
        """True if gradients that have a norm were sent since the last update."""
        self.awaits_update = False
        """True if gradients, zero or not, were sent since the last update."""
        self.deletes = True

    @property
    def window(self) -> int | None:
        """Not known: a service does not say it."""
        return None

    @property
    def round_trip(self) -> float:
        """The fastest request of the session."""
        return self.service.connection.round_trip

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that the service names for the base model, or a folder on this machine has."""
        if Path(self.session.model).is_dir():  # the SDK takes a path with two slashes for a hub name and more
            from mint_train.backends.local.load import load_tokenizer

            return load_tokenizer(self.session.model)
        try:
            with without_remote_code():
                tokenizer: PreTrainedTokenizerBase = self.service.wait(
                    in_thread(self.client.get_tokenizer), doing="name its tokenizer"
                )
        except mint.TinkerError as error:
            raise self.service.explain(error, "name its tokenizer", running=True) from None
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the base model's tokenizer cannot be loaded from the hub: {reason}") from error
        return tokenizer

    def base_identity(self) -> Mapping[str, Any] | None:
        """Return what decides the logprobs of the base model, as far as the service says it."""
        return self.session.base_identity(self.settings)

    def quantization(self, data: Sequence[Datum]) -> None:
        """Return None: how a service keeps weights is its own business."""

    def give_vocabulary(self, names: Sequence[str]) -> None:
        """Refuse: a service answers with the logprobs of target tokens."""
        raise BackendError(f"a service gives logprobs of target tokens, and not {', '.join(names)}")

    def keep_reference(self) -> None:
        """Keep nothing: a service has the adapter that is trained."""

    def forward(self, data: list[Datum], loss_fn: str) -> ServiceFuture[types.ForwardBackwardOutput]:
        """Submit a forward without gradients."""
        return self._submit(
            "compute logprobs",
            lambda: self.client.forward(data, loss_fn),  # type: ignore[arg-type]
            check=lambda answer: self._check_logprobs(answer, data),
        )

    def forward_backward(self, data: list[Datum], loss_fn: str) -> ServiceFuture[types.ForwardBackwardOutput]:
        """Submit a forward and backward of one of the service's own losses."""
        return self._submit("compute gradients", lambda: self.client.forward_backward(data, loss_fn))  # type: ignore[arg-type]

    def forward_backward_custom(
        self,
        data: list[Datum],
        loss_fn: Callable[[list[Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]],
        gradients: Sequence[torch.Tensor] | None = None,
    ) -> ServiceFuture[types.ForwardBackwardOutput]:
        """Wait for the logprobs, compute the loss here, and submit its gradients; known ones at once."""
        if self.form.divided and self.awaits_update:
            # the service would divide the gradients sent before by all datums of the update
            raise BackendError("with importance_sampling, one request for gradients fits into an update")
        if gradients is not None and self.takes_known_gradients:
            computed: dict[str, float] = {}

            def compute(answer: types.ForwardBackwardOutput) -> None:
                if not computed:  # a result may be awaited twice
                    self._check_logprobs(answer, data)
                    computed.update(loss_fn(data, logprob_leaves(answer))[1])
                answer.metrics.update(computed)

            return replace(self._send(data, gradients, gradients), check=compute)
        leaves = logprob_leaves(self.forward(data, CROSS_ENTROPY).result())
        loss, metrics = loss_fn(data, leaves)
        loss.backward()  # type: ignore[no-untyped-call]
        found = [leaf.grad for leaf in leaves if leaf.grad is not None]
        if missing := len(leaves) - len(found):
            raise BackendError(f"the loss does not depend on the logprobs of {missing} datums")
        future = self._send(data, found, leaves)
        return replace(future, check=lambda answer: answer.metrics.update(metrics))

    def _send(
        self, data: list[Datum], gradients: Sequence[torch.Tensor], logprobs: Sequence[torch.Tensor]
    ) -> ServiceFuture[types.ForwardBackwardOutput]:
        """Submit the gradients of a loss by the logprobs."""
        arrays = [gradient.numpy() for gradient in gradients]
        sent = self.form.data(data, arrays, [logprob.detach().numpy() for logprob in logprobs], len(data))
        future = self.forward_backward(sent, self.form.loss_fn)
        self.awaits_update = True
        self.gradients_sent |= have_a_norm(arrays)
        return future

    def optim_step(self, adam_params: types.AdamParams) -> ServiceFuture[types.OptimStepResponse]:
        """Submit an update; its result raises a `ServiceError` if it came before the gradients."""
        # gradients that have been awaited are there, even if their norm is 0
        in_doubt = self.gradients_sent and not all(request.done() for request in self.pending)
        self.gradients_sent = self.awaits_update = False

        def check(answer: types.OptimStepResponse) -> None:
            if in_doubt and was_without_gradients(answer):
                raise ServiceError(
                    f"the service at {self.service.url} updated the adapter before it took up the gradients; "
                    "if that happens often, --no-pipeline sends the update only after them"
                )

        return self._submit("update the adapter", lambda: self.client.optim_step(adam_params), check=check)

    def save_state(self, name: str) -> ServiceFuture[types.SaveWeightsResponse]:
        """Submit a save of weights and optimiser."""
        self.has_states = True
        return self._submit("save the state", lambda: self.client.save_state(name), check=self._check_path)

    def load_state(self, path: str) -> ServiceFuture[types.LoadWeightsResponse]:
        """Submit a load of weights alone, into a fresh adapter.

        Raises:
            UserError: they are of another base model or rank, as far as the service says.
        """
        return self._load(path, lambda: self.client.load_state(path))

    def load_state_with_optimizer(self, path: str) -> ServiceFuture[types.LoadWeightsResponse]:
        """Submit a load of weights and optimiser, into a fresh adapter.

        Raises:
            UserError: they are of another base model or rank, as far as the service says.
        """
        return self._load(path, lambda: self.client.load_state_with_optimizer(path))

    def _load(self, path: str, call: Callable[[], Any]) -> ServiceFuture[types.LoadWeightsResponse]:
        self.session.refuse_another_shape(path, self.settings.rank)
        if self.used:  # a service need not allow a load into an adapter that has had a request
            self.leave()
            self.client = self.session.create_adapter(self.settings)
        return self._submit(f"{LOAD_STATE} {path}", call, running=False)

    def save_weights_for_sampler(self, name: str) -> ServiceFuture[types.SaveWeightsForSamplerResponse]:
        """Submit a save of the weights for sampling."""
        return self._submit(
            "save the weights", lambda: self.client.save_weights_for_sampler(name), check=self._check_path
        )

    @contextmanager
    def open_sampler(self, name: str) -> Iterator[Sampler]:
        """Save the weights for sampling, open them, and delete them afterwards where that is possible."""
        from mint_train.backends.mint.sampling import MintSampler

        weights = self.save_weights_for_sampler(name).result().path
        try:
            yield MintSampler(self, model_path=weights)
        finally:
            if SAMPLER_WEIGHTS in weights:
                self.delete_state(weights)

    def delete_state(self, path: str) -> None:
        """Ask the service to delete a saved state; one that cannot says so once, and keeps it."""
        if not self.deletes:
            return
        rest = self.service_client.create_rest_client()
        doing = f"delete the state {path}"
        try:
            with self.service.translated(doing):
                self.service.wait(rest.delete_checkpoint_from_tinker_path(path), DELETE_SECONDS, doing)
        except MintTrainError as error:
            self.deletes = isinstance(error, ServiceError)  # a refusal will be the same the next time
            self.warn(f"old states stay on the service: {error}")

    def close(self) -> None:
        """Cancel what is in flight and free the adapter's slot on the service."""
        if self.service.connection.is_closed:
            return
        for future in tuple(self.pending):
            future.cancel()
        self.leave()
        with suppress(TimeoutError):
            self._run(self.service.connection.aclose()).result(CLOSE_SECONDS)
        self.holder.close()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """Free the adapter's slot on the service; the session stays open.

        It is kept, until the session expires, if the user wants that, and on a service that would forget the
        states that were saved.
        """
        if self.settings.keep_adapters or (self.has_states and self.session.server.forgets_states):
            return
        with suppress(TimeoutError):
            self._run(self._leave()).result(CLOSE_SECONDS)

    async def _leave(self) -> None:
        # SkyRL hands a slot on with gradients that no update has consumed, so an idle update consumes them
        await self._ask("optim_step", adam_params=types.AdamParams(learning_rate=0.0).model_dump())
        await self._ask("unload_model")

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
        self.used = True
        with self.service.translated(doing, running=running):
            return ServiceFuture(self._run(call().result_async()), self.service, doing, running, check)

    def _check_logprobs(self, answer: types.ForwardBackwardOutput, data: list[Datum]) -> None:
        counts = [len(datum.loss_fn_inputs["target_tokens"].data) for datum in data]
        problem = logprobs_problem(answer, counts)
        if problem is not None:
            raise BackendError(f"the service at {self.service.url} {problem}")

    def _check_path(self, answer: types.SaveWeightsResponse | types.SaveWeightsForSamplerResponse) -> None:
        if not ON_A_SERVICE.fullmatch(str(answer.path)):
            raise BackendError(
                f"the service at {self.service.url} named {str(answer.path)[:SHOWN]!r} as what it saved, "
                "which is not a path on a service (tinker://...)"
            )

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        # a result is awaited beside the SDK's own future, whose result(timeout) would give it up
        future = asyncio.run_coroutine_threadsafe(coroutine, self.holder.get_loop())
        self.pending.add(future)
        future.add_done_callback(self.pending.discard)
        return future


def open_mint_client(
    settings: Settings, warn: Callable[[str], None], *, model: str, trains: bool = True
) -> MintTrainingClient:
    """Open a session, prove how gradients are to be sent, and create a LoRA adapter.

    Args:
        settings: their address, key, rank and seed.
        warn: tells the user one line about something that does not end the run.
        model: the base model.
        trains: whether gradients will be sent; otherwise nothing is proved about them.

    Raises:
        UserError: the key is missing, malformed or refused, or the service lacks the model.
        BackendError: the service cannot be reached, fails, or does not provably carry out gradients.
    """
    session = open_session(model, settings.base_url, settings.api_key, warn)
    with closed_on_failure(session):  # its heartbeats would go on
        if not trains:
            return MintTrainingClient(session, settings, warn)
        proof = find_proof(
            session,
            lambda: MintTrainingClient(session, settings, warn),
            trust=settings.trust_gradients,
        )
        return MintTrainingClient(session, settings, warn, proof)
