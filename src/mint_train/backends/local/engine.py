"""Logprobs and gradients of a LoRA model on this machine: exact, without padding, without waste."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn

from mint_train.backends.local.memory import (
    SHARE_OF_FREE_MEMORY,
    counted_saved_bytes,
    free_bytes,
    is_out_of_memory,
    keep_freed_memory,
)
from mint_train.backends.local.packing import MIN_SHARED_TOKENS, Pack, TokenSequence, plan_packs
from mint_train.backends.local.scoring import Scorer, Way, spread

__all__ = ["Engine", "OutOfMemoryError", "TokenSequence"]

T = TypeVar("T")

LossFunction = Callable[[list[torch.Tensor]], torch.Tensor]

TRIAL_TOKENS = 64

CPU_ROWS_PER_PACK = 4096
"""Enough for matrix products at full rate; larger packs would only take more memory at once."""


class OutOfMemoryError(MemoryError):
    """A step did not fit, even with half of the budget."""


class Engine:
    """Computes a model's logprobs, and pushes gradients by logprobs into its adapter.

    Args:
        model: a peft-wrapped transformers causal language model; frozen weights, LoRA trained.
            Its dropout is switched off, for two passes over one batch must agree.
        max_tokens_in_flight: tokens whose activations may be held at once; by default what half of
            the free memory holds. A batch within it costs one forward and one backward, a larger
            one a second forward (GradCache, arXiv 2101.06983), with the same gradients.
        dtype: convert the frozen weights to it; None leaves them. The adapter stays as it is.
        gradient_checkpointing: recompute layers in the backward: less memory, a third more time.
        rows_per_pack: tokens of one forward call, at most; by default what suits the device.
        min_shared_tokens: shortest common beginning that is computed once.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_tokens_in_flight: int | None = None,
        dtype: torch.dtype | None = None,
        gradient_checkpointing: bool = False,
        rows_per_pack: int | None = None,
        min_shared_tokens: int = MIN_SHARED_TOKENS,
    ) -> None:
        for name, value in (("max_tokens_in_flight", max_tokens_in_flight), ("rows_per_pack", rows_per_pack)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.model = model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.trained:
            raise ValueError("the model has no trainable parameter: wrap it with a LoRA adapter first")
        if dtype is not None:
            _convert_frozen(model, dtype)
        _switch_off_dropout(model, checkpointing=gradient_checkpointing)
        self._scorer = Scorer(model)
        self._min_shared = min_shared_tokens
        on_cpu = self._scorer.device.type == "cpu"
        if on_cpu:
            keep_freed_memory()
        self.rows_per_pack = rows_per_pack or (CPU_ROWS_PER_PACK if on_cpu else sys.maxsize)
        self.max_tokens_in_flight = max_tokens_in_flight or self._default_budget(gradient_checkpointing)

    @property
    def way(self) -> Way:
        """How this model is scored: packed, or a slower way where its architecture asks for it."""
        return self._scorer.way

    def forward(self, sequences: Sequence[TokenSequence], *, adapter: bool = True) -> list[torch.Tensor]:
        """Logprobs of the target tokens, without a graph.

        Args:
            sequences: what to score.
            adapter: False gives the reference: the same weights with the adapter switched off.

        Returns:
            float32 ``[length]`` per sequence, on the CPU; exactly 0.0 where not trained.

        Raises:
            OutOfMemoryError: not even half of the budget fits.
        """
        return self._within_memory(lambda budget: self._forward(list(sequences), budget, adapter))

    def forward_backward(self, sequences: Sequence[TokenSequence], loss_fn: LossFunction) -> None:
        """Add the gradient of a loss of the whole batch to the adapter's ``.grad``.

        Args:
            sequences: what to score.
            loss_fn: called once, with the logprobs as `forward` gives them, as leaves that require
                a gradient. Its scalar result is differentiated; the loss need not be a sum over
                sequences. What it raises is raised here, before any gradient is touched.

        Raises:
            OutOfMemoryError: not even half of the budget fits; no gradient was touched.
        """
        batch = list(sequences)
        loss_slopes: list[torch.Tensor] = []

        def slopes_by(logprobs: list[torch.Tensor]) -> list[torch.Tensor]:
            # A retry after a failed backward must not ask the loss again.
            if not loss_slopes:
                leaves = [values.detach().requires_grad_() for values in logprobs]
                loss_fn(leaves).backward()
                loss_slopes.extend(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)
            return loss_slopes

        gradients = self._within_memory(lambda budget: self._gradients(batch, slopes_by, budget))
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _forward(self, sequences: list[TokenSequence], budget: int, adapter: bool) -> list[torch.Tensor]:
        packs = self._plan(sequences, budget)
        with torch.no_grad(), self._scorer.ready(adapter=adapter):
            return spread(packs, [self._scorer.score(pack) for pack in packs], sequences)

    def _gradients(
        self,
        sequences: list[TokenSequence],
        slopes_by: Callable[[list[torch.Tensor]], list[torch.Tensor]],
        budget: int,
    ) -> list[torch.Tensor | None]:
        packs = self._plan(sequences, budget)
        one_pass = sum(pack.rows for pack in packs) <= budget
        with self._scorer.ready():
            with torch.set_grad_enabled(one_pass):
                scored = [self._scorer.score(pack) for pack in packs]
            slopes = slopes_by(spread(packs, [flat.detach() for flat in scored], sequences))
            total: list[torch.Tensor | None] = [None] * len(self.trained)
            for index in range(len(packs)):
                flat = scored[index] if one_pass else self._scorer.score(packs[index])
                self._add_pack(total, flat, _flat_slopes(packs[index], slopes))
                # The graph, and with it the pack's activations, ends here.
                del flat
                scored[index] = torch.empty(0)
        return total

    def _add_pack(self, total: list[torch.Tensor | None], flat: torch.Tensor, slopes: torch.Tensor) -> None:
        gradients = torch.autograd.grad(flat, self.trained, slopes.to(flat.device), allow_unused=True)
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                before = total[index]
                total[index] = gradient if before is None else before.add_(gradient)

    def _plan(self, sequences: list[TokenSequence], budget: int) -> list[Pack]:
        rows = self._scorer.rows_per_pack(min(self.rows_per_pack, budget))
        return plan_packs(sequences, rows, min_shared=self._min_shared)

    def _within_memory(self, attempt: Callable[[int], T]) -> T:
        """Run `attempt` with the budget; where memory ends, halve the budget and try once more."""
        failure = ""
        for budget in (self.max_tokens_in_flight, max(1, self.max_tokens_in_flight // 2)):
            try:
                with _flushed_denormals():
                    return attempt(budget)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error)
            # Outside the handler: a handled error keeps the failed attempt's tensors alive.
            self.max_tokens_in_flight = max(1, budget // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        raise OutOfMemoryError(
            f"not enough memory for {budget} tokens in flight; use shorter sequences, "
            f"gradient checkpointing or a smaller model ({failure})"
        )

    def _default_budget(self, checkpointing: bool) -> int:
        """Tokens that half of the free memory holds, from what a trial of a few tokens keeps."""
        tokens = torch.zeros(TRIAL_TOKENS, dtype=torch.int64)
        trial = self._plan(
            [TokenSequence(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool))], TRIAL_TOKENS
        )
        self.model.eval()
        with counted_saved_bytes() as saved, self._scorer.ready():
            self._scorer.score(trial[0])
        per_token = saved.without(self.model.parameters()) / TRIAL_TOKENS
        if checkpointing:
            # What stays is each layer's input, and one layer in full while it is recomputed.
            layers, hidden = self._scorer.config.num_hidden_layers, self._scorer.config.hidden_size
            per_token = layers * hidden * saved.itemsize + per_token / layers
            self.model.train()
        free = free_bytes(self._scorer.device) * SHARE_OF_FREE_MEMORY
        return max(TRIAL_TOKENS, int(free / per_token))


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Take what is too small for float32's normal range as 0: a processor is many times slower there.

    A loss leaves such slopes to every example that it is done with (a logsigmoid far from 0).
    """
    before = float(torch.full((), torch.finfo(torch.float32).tiny) / 2) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flat_slopes(pack: Pack, slopes: list[torch.Tensor]) -> torch.Tensor:
    """The loss's derivative by the pack's lookups, float32 ``[lookups]``."""
    return torch.cat([slopes[member.index][member.positions] for member in pack.members])


def _convert_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _switch_off_dropout(model: nn.Module, *, checkpointing: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train(checkpointing)
    if checkpointing:
        # The model's own switch, which transformers has renamed; it acts in train mode only.
        known = cast(Any, model)
        renamed = getattr(known, "activation_checkpointing_enable", None)
        (renamed or known.gradient_checkpointing_enable)({"use_reentrant": False})
