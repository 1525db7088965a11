"""The embedded backend's training client: the SDK's calls and futures, computed in this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from mint_train.backends.local.engine import Engine, OutOfMemoryError, TokenSequence
from mint_train.backends.local.states import load_state, save_state
from mint_train.errors import BackendError
from mint_train.sdk import Datum, types

Result = TypeVar("Result")


def completed(value: Result) -> Future[Result]:
    """Return a future that has its result already: this backend computes when it is asked."""
    future: Future[Result] = Future()
    future.set_result(value)
    return future


class LocalTrainingClient:
    """One LoRA adapter in training in this process; see `backends.base.TrainingClient` for the calls."""

    def __init__(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, engine: Engine, folder: Path
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.engine = engine
        self.folder = folder
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values())

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the base model."""
        return self.tokenizer

    def forward(self, data: list[Datum], loss_fn: str) -> Future[types.ForwardBackwardOutput]:  # noqa: ARG002
        """Compute logprobs; the loss function only names the SDK's output form."""
        try:
            logprobs = self.engine.forward(self.sequences(data))
        except OutOfMemoryError as error:
            raise BackendError(str(error)) from error
        return completed(forward_output(logprobs, {}))

    def forward_backward_custom(
        self,
        data: list[Datum],
        loss_fn: Callable[[list[Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]],
    ) -> Future[types.ForwardBackwardOutput]:
        """Compute a custom loss and add its gradients to the adapter's."""
        kept: list[torch.Tensor] = []
        metrics: dict[str, float] = {}

        def loss_of(logprobs: list[torch.Tensor]) -> torch.Tensor:
            loss, values = loss_fn(data, logprobs)
            kept.extend(logprob.detach() for logprob in logprobs)
            metrics.update(values)
            return loss

        try:
            self.engine.forward_backward(self.sequences(data), loss_of)
        except OutOfMemoryError as error:
            raise BackendError(str(error)) from error
        return completed(forward_output(kept, metrics))

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
        path = self.folder / "checkpoints" / name
        save_state(path, self.parameters, self.optimizer)
        return completed(types.SaveWeightsResponse(path=str(path)))

    def load_state_with_optimizer(self, path: str) -> Future[types.LoadWeightsResponse]:
        """Load what `save_state` saved."""
        load_state(Path(path), self.parameters, self.optimizer)
        return completed(types.LoadWeightsResponse(path=path))

    def save_weights_for_sampler(self, name: str) -> Future[types.SaveWeightsForSamplerResponse]:  # noqa: ARG002
        """Write the adapter in PEFT's format to `adapter/` in the client's folder."""
        path = self.folder / "adapter"
        # without the base model's own embeddings, which PEFT would add where the output layer is adapted
        self.model.save_pretrained(str(path), save_embedding_layers=False)
        return completed(types.SaveWeightsForSamplerResponse(path=str(path)))

    def sequences(self, data: list[Datum]) -> list[TokenSequence]:
        """Turn datums into tensors."""
        return [token_sequence(datum) for datum in data]


def token_sequence(datum: Datum) -> TokenSequence:
    """Turn a datum into tensors; without weights every target counts as trained, as on the service."""
    targets = datum.loss_fn_inputs["target_tokens"].to_torch()
    weights = datum.loss_fn_inputs.get("weights")
    trained = torch.ones(len(targets), dtype=torch.bool) if weights is None else weights.to_torch() != 0
    inputs = torch.tensor(datum.model_input.to_ints())
    return TokenSequence(inputs, targets, trained)


def forward_output(logprobs: list[torch.Tensor], metrics: dict[str, Any]) -> types.ForwardBackwardOutput:
    """Put logprobs and metrics into the SDK's own output type."""
    return types.ForwardBackwardOutput(
        loss_fn_output_type="logprobs",
        loss_fn_outputs=[{"logprobs": types.TensorData.from_torch(logprob.cpu())} for logprob in logprobs],
        metrics=metrics,
    )
