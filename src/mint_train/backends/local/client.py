"""The embedded backend's training client: the SDK's calls and futures, computed in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from mint_train.backends.base import Gradients, Sampler
from mint_train.backends.local.adapter import name_base_without_path
from mint_train.backends.local.engine import LossFunction, OutOfMemoryError
from mint_train.backends.local.identity import base_identity
from mint_train.backends.local.inputs import Limits, token_sequences
from mint_train.backends.local.packing import TokenSequence
from mint_train.backends.local.quantized import difference, quantization_of, unquantized
from mint_train.backends.local.states import delete_state, load_state, load_weights, save_state
from mint_train.errors import BackendError
from mint_train.run_folder.description import QuantizationDescription
from mint_train.run_folder.files import Place, whole_folder
from mint_train.run_folder.parts import ADAPTER, CHECKPOINTS
from mint_train.sdk import Datum, types

Result = TypeVar("Result")


def completed(value: Result) -> Future[Result]:
    """Return a future that already has its result, because this backend computes synchronously."""
    future: Future[Result] = Future()
    future.set_result(value)
    return future


class Scoring(Protocol):
    """What computes logprobs and gradients: one engine, or those of several processes."""

    def keep_reference(self) -> None:
        """Take the adapter as it is now as the reference; see `Engine`."""
        ...

    def forward(
        self,
        sequences: Sequence[TokenSequence],
        *,
        adapter: bool = True,
        reference: bool = False,
        vocabulary: Sequence[str] = (),
    ) -> list[torch.Tensor]:
        """Compute the logprobs of the target tokens; see `Engine`."""
        ...

    def forward_backward(
        self,
        sequences: Sequence[TokenSequence],
        loss_fn: LossFunction,
        vocabulary: Sequence[str] = (),
        known: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Add the gradient of a loss of the whole batch to the adapter's; see `Engine`."""
        ...


class LocalTrainingClient:
    """Trains one LoRA adapter in this process; `backends.base.TrainingClient` describes the calls."""

    gradients = Gradients("exact")
    takes_known_gradients = True

    def __init__(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, engine: Scoring, folder: Path
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.engine = engine
        self._place = Place(folder)
        self.limits = Limits.of(model)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values())
        self.vocabulary: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where states and the adapter are saved."""
        return self._place.path

    @property
    def window(self) -> int | None:
        """The positions that the model has."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def round_trip(self) -> float:
        """Nothing is sent."""
        return 0.0

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the base model."""
        return self.tokenizer

    def base_identity(self) -> Mapping[str, Any] | None:
        """Return what decides the logprobs of the base model."""
        return base_identity(self.model)

    def quantization(self, data: Sequence[Datum]) -> QuantizationDescription | None:
        """Compare the base model's logprobs with those of the weights in its files."""
        if quantization_of(self.model) is None:
            return None
        from mint_train.backends.local.load import load_weights

        sequences = token_sequences(data, self.limits)
        original = load_weights(str(self.model.get_base_model().name_or_path), "auto")
        with model_errors():
            found = self.engine.forward(sequences, adapter=False)
            with unquantized(self.model, original):
                expected = self.engine.forward(sequences, adapter=False)
        masks = [sequence.loss_mask for sequence in sequences]
        return difference(*([v[m] for v, m in zip(one, masks, strict=True)] for one in (found, expected)))

    def give_vocabulary(self, names: Sequence[str]) -> None:
        """Give, from now on, quantities over the vocabulary too; the adapter of now is their reference."""
        self.vocabulary = tuple(names)
        self.engine.keep_reference()

    def keep_reference(self) -> ReferencePolicy:
        """Return the policy as it is now; its weights are kept beside those that are trained."""
        self.engine.keep_reference()
        return ReferencePolicy(self)

    def forward(self, data: list[Datum], loss_fn: str) -> Future[types.ForwardBackwardOutput]:  # noqa: ARG002
        """Compute logprobs; `loss_fn` exists for compatibility with the SDK."""
        sequences = token_sequences(data, self.limits)
        with model_errors():
            values = self.engine.forward(sequences, vocabulary=self.vocabulary)
        return completed(forward_output(self.by_name(values, len(sequences)), {}))

    def forward_reference(self, data: list[Datum]) -> Future[types.ForwardBackwardOutput]:
        """Compute the logprobs of the policy that `keep_reference` kept."""
        with model_errors():
            values = self.engine.forward(token_sequences(data, self.limits), reference=True)
        return completed(forward_output({"logprobs": values}, {}))

    def by_name(self, values: Sequence[torch.Tensor], count: int) -> dict[str, Sequence[torch.Tensor]]:
        """Sort by name what the engine computed for `count` sequences: logprobs, then what was asked for."""
        names = ("logprobs", *self.vocabulary)
        return {name: values[count * n : count * (n + 1)] for n, name in enumerate(names)}

    def forward_backward_custom(
        self,
        data: list[Datum],
        loss_fn: Callable[[list[Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]],
        gradients: Sequence[torch.Tensor] | None = None,
    ) -> Future[types.ForwardBackwardOutput]:
        """Compute a custom loss and add its gradients to the adapter's."""
        kept: list[torch.Tensor] = []
        metrics: dict[str, float] = {}
        from_loss: list[Exception] = []

        def loss_of(logprobs: list[torch.Tensor]) -> torch.Tensor:
            try:
                loss, values = loss_fn(data, logprobs)
            except Exception as error:
                from_loss.append(error)
                raise
            kept.extend(logprob.detach() for logprob in logprobs)
            metrics.update(values)
            return loss

        sequences = token_sequences(data, self.limits)
        with model_errors(passed_on=from_loss):
            self.engine.forward_backward(sequences, loss_of, self.vocabulary, gradients)
        return completed(forward_output(self.by_name(kept, len(sequences)), metrics))

    def optim_step(self, adam_params: types.AdamParams) -> Future[types.OptimStepResponse]:
        """Update the adapter by AdamW and clear the gradients."""
        for group in self.optimizer.param_groups:
            group.update(
                lr=adam_params.learning_rate,
                betas=(adam_params.beta1, adam_params.beta2),
                eps=adam_params.eps,
                weight_decay=adam_params.weight_decay,
            )
        if adam_params.grad_clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), adam_params.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return completed(types.OptimStepResponse())

    def save_state(self, name: str) -> Future[types.SaveWeightsResponse]:
        """Save adapter and optimiser to `checkpoints/NAME` in the client's folder."""
        path = self.folder / CHECKPOINTS / name
        save_state(path, self.parameters, self.optimizer)
        return completed(types.SaveWeightsResponse(path=str(path)))

    def load_state(self, path: str) -> Future[types.LoadWeightsResponse]:
        """Load the weights of a state that `save_state` saved, or of an adapter in PEFT's format."""
        load_weights(Path(path), self.parameters)
        return completed(types.LoadWeightsResponse(path=path))

    def load_state_with_optimizer(self, path: str) -> Future[types.LoadWeightsResponse]:
        """Load a state that `save_state` saved."""
        load_state(Path(path), self.parameters, self.optimizer)
        return completed(types.LoadWeightsResponse(path=path))

    def save_weights_for_sampler(self, name: str) -> Future[types.SaveWeightsForSamplerResponse]:  # noqa: ARG002
        """Write the adapter in PEFT's format to `adapter/` in the client's folder."""
        path = self.folder / ADAPTER
        try:
            with whole_folder(path) as beside:
                name_base_without_path(self.model)
                # PEFT compiles a template for a model card, which the run's own replaces
                self.model.create_or_update_model_card = lambda _: None  # type: ignore[method-assign,assignment]
                # PEFT would add the base model's embeddings if the output layer is adapted
                self.model.save_pretrained(str(beside), save_embedding_layers=False)
        except SafetensorError as error:
            raise BackendError(f"the adapter cannot be saved to {path}: {error}") from error
        return completed(types.SaveWeightsForSamplerResponse(path=str(path)))

    @contextmanager
    def open_sampler(self, name: str) -> Iterator[Sampler]:  # noqa: ARG002 - nothing is saved for it
        """Open what samples from the model with its adapter."""
        from mint_train.backends.local.sampling import LocalSampler

        trains = self.model.training  # gradient checkpointing needs it
        try:
            yield LocalSampler(self, adapter=True)
        finally:
            self.model.train(trains)

    def delete_state(self, path: str) -> None:
        """Delete a state that `save_state` saved.

        Raises:
            BackendError: the path is not in this client's folder.
        """
        if not Path(path).resolve().is_relative_to((self.folder / CHECKPOINTS).resolve()):
            raise BackendError(f"{path} is not a state in {self.folder}, and is not deleted")
        delete_state(Path(path))

    def close(self) -> None:
        """Do nothing: this client holds nothing outside this process."""


@dataclass(frozen=True)
class ReferencePolicy:
    """The policy that a client was told to keep."""

    client: LocalTrainingClient

    def forward(self, data: list[Datum], loss_fn: str) -> Future[types.ForwardBackwardOutput]:  # noqa: ARG002
        """Compute logprobs; `loss_fn` exists for compatibility with the SDK."""
        return self.client.forward_reference(data)


@contextmanager
def model_errors(passed_on: Sequence[Exception] = ()) -> Iterator[None]:
    """Turn errors of torch and the model into one line; errors in `passed_on` are raised unchanged.

    Raises:
        BackendError: memory ran out, or the model's computation failed.
    """
    try:
        yield
    except OutOfMemoryError as error:
        raise BackendError(str(error)) from error
    # Models of any architecture run here, and each may fail in its own way.
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        if any(error is known for known in passed_on):
            raise
        reason = " ".join(str(error).split())
        raise BackendError(f"the model's computation failed ({type(error).__name__}: {reason})") from error


def forward_output(
    values: Mapping[str, Sequence[torch.Tensor]], metrics: dict[str, Any]
) -> types.ForwardBackwardOutput:
    """Convert values per sequence, by name, and metrics to the SDK's output type."""
    outputs = [
        {name: types.TensorData.from_torch(value.cpu()) for name, value in zip(values, own, strict=True)}
        for own in zip(*values.values(), strict=True)
    ]
    return types.ForwardBackwardOutput(
        loss_fn_output_type="logprobs", loss_fn_outputs=outputs, metrics=metrics
    )
