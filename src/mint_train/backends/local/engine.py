"""Compute logprobs and adapter gradients of a LoRA model, exactly and without padding."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from mint_train.backends.local.packed_values import flat_gradients, spread_all
from mint_train.backends.local.packing import MIN_SHARED_TOKENS, Pack, TokenSequence, plan_packs
from mint_train.backends.local.scoring import Scorer, ScoringMode
from mint_train.batches.vocabulary import QUANTITIES

T = TypeVar("T")

LossFunction = Callable[[list[torch.Tensor]], torch.Tensor]

TRIAL_TOKENS = 64
"""Length of the sequence that measures the activations kept per token."""

CPU_ROWS_PER_PACK = 4096
"""Enough for matrix products to reach their full rate; larger packs would only need more memory."""


class OutOfMemoryError(MemoryError):
    """A step did not fit into memory, even with half the token budget."""


class Engine:
    """Computes a model's logprobs, and the gradient of a loss of them with respect to its adapter.

    Args:
        model: a PEFT-wrapped transformers causal language model: frozen weights and a trained LoRA.
            Its dropout is switched off, because two passes over one batch must agree.
        max_tokens_in_flight: most tokens whose activations are held at once; by default what half of
            the free memory holds. A batch within this budget costs one forward and one backward. A larger
            one costs a second forward (GradCache, arXiv 2101.06983) and gives the same gradients; not so
            where the loss's gradients are known before its logprobs.
        gradient_checkpointing: recompute each layer in the backward: less memory, a third more time.
        min_shared_tokens: length of the shortest shared prefix that is computed once.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_tokens_in_flight: int | None = None,
        gradient_checkpointing: bool = False,
        min_shared_tokens: int = MIN_SHARED_TOKENS,
    ) -> None:
        if max_tokens_in_flight is not None and max_tokens_in_flight < 1:
            raise ValueError(f"max_tokens_in_flight must be at least 1, got {max_tokens_in_flight}")
        self.model = model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.trained:
            raise ValueError("the model has no trainable parameter: wrap it with a LoRA adapter first")
        _switch_off_dropout(model, checkpointing=gradient_checkpointing)
        self._scorer = Scorer(model)
        self._reference: list[torch.Tensor] = []
        self._min_shared = min_shared_tokens
        on_cpu = self._scorer.device.type == "cpu"
        if on_cpu:
            keep_freed_memory()
        self.rows_per_pack = CPU_ROWS_PER_PACK if on_cpu else sys.maxsize
        """Most tokens of one forward call."""
        self.max_tokens_in_flight = max_tokens_in_flight or self._default_budget(gradient_checkpointing)

    @property
    def mode(self) -> ScoringMode:
        """How this model is scored: packed, or in a slower mode if its architecture requires it."""
        return self._scorer.mode

    def keep_reference(self) -> None:
        """Take the adapter as it is now as the reference that the policy is compared with."""
        self._reference = [parameter.detach().clone() for parameter in self.trained]

    def forward(
        self,
        sequences: Sequence[TokenSequence],
        *,
        adapter: bool = True,
        reference: bool = False,
        vocabulary: Sequence[str] = (),
    ) -> list[torch.Tensor]:
        """Compute the logprobs of the target tokens, without a graph.

        Args:
            sequences: the sequences to score.
            adapter: whether the adapter is active; False gives the base model's logprobs.
            reference: whether the adapter is as `keep_reference` kept it.
            vocabulary: quantities of the whole distribution, out of `batches.vocabulary.QUANTITIES`.

        Returns:
            float32 ``[length]`` per sequence, nats, on the CPU; exactly 0.0 outside the loss mask. Behind
            the logprobs of all sequences follow, quantity by quantity, as many tensors again.

        Raises:
            OutOfMemoryError: not even half the token budget fits into memory.
        """
        batch = list(sequences)
        with self._as_reference() if reference else nullcontext():
            return self._within_memory(lambda budget: self._forward(batch, budget, adapter, vocabulary))

    def forward_backward(
        self,
        sequences: Sequence[TokenSequence],
        loss_fn: LossFunction,
        vocabulary: Sequence[str] = (),
        known: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Add the gradient of a loss of the whole batch to the adapter's ``.grad``.

        Args:
            sequences: the sequences to score.
            loss_fn: called once with what `forward` returns, as leaves that require a gradient. It
                returns a scalar, which need not be a sum over sequences. If it raises, the error is
                raised here, and no gradient has changed.
            vocabulary: quantities of the whole distribution, as `forward` takes them.
            known: the gradients of `loss_fn` by what it is called with, where they are known before. Then
                its own are not computed, and the activations of one pack at a time are held.

        Raises:
            OutOfMemoryError: not even half the token budget fits into memory; no gradient has changed.
        """
        batch = list(sequences)
        if known is not None:
            gradients, found = self._within_memory(
                lambda budget: self._known_gradients(batch, known, budget, vocabulary)
            )
            loss_fn([values.requires_grad_() for values in found])
        else:
            gradients = self._gradients_of(batch, loss_fn, vocabulary)
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _gradients_of(
        self, sequences: list[TokenSequence], loss_fn: LossFunction, vocabulary: Sequence[str]
    ) -> list[torch.Tensor | None]:
        logprob_grads: list[torch.Tensor] = []

        def grads_of(logprobs: list[torch.Tensor]) -> list[torch.Tensor]:
            # The loss must be called once, even if the backward fails and is tried again.
            if not logprob_grads:
                leaves = [values.detach().requires_grad_() for values in logprobs]
                loss_fn(leaves).backward()
                logprob_grads.extend(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)
            return logprob_grads

        return self._within_memory(lambda budget: self._gradients(sequences, grads_of, budget, vocabulary))

    def _forward(
        self, sequences: list[TokenSequence], budget: int, adapter: bool, vocabulary: Sequence[str]
    ) -> list[torch.Tensor]:
        packs = self._plan(sequences, budget)
        with torch.no_grad(), self._scorer.ready(adapter=adapter):
            scored = [self._score(pack, vocabulary) for pack in packs]
            return spread_all(packs, scored, sequences, 1 + len(vocabulary))

    def _score(self, pack: Pack, vocabulary: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """Return the logprobs of a pack's lookups, and beside them what is asked of the vocabulary."""
        if not vocabulary:
            return (self._scorer.score(pack),)
        reference = None
        if any(QUANTITIES[name].of_reference for name in vocabulary):
            # Recomputed each time: to keep it would take a layer's activations of every token.
            with torch.no_grad(), self._as_reference():
                reference = self._scorer.outputs(pack)
        return self._scorer.score_vocabulary(pack, vocabulary, reference)

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Put the reference's weights in place of the adapter's for a forward without a graph."""
        own = [parameter.data for parameter in self.trained]
        try:
            for parameter, weights in zip(self.trained, self._reference, strict=True):
                parameter.data = weights
            yield
        finally:
            for parameter, weights in zip(self.trained, own, strict=True):
                parameter.data = weights

    def _gradients(
        self,
        sequences: list[TokenSequence],
        grads_of: Callable[[list[torch.Tensor]], list[torch.Tensor]],
        budget: int,
        vocabulary: Sequence[str],
    ) -> list[torch.Tensor | None]:
        packs = self._plan(sequences, budget)
        one_pass = sum(pack.rows for pack in packs) <= budget
        with self._scorer.ready():
            with torch.set_grad_enabled(one_pass):
                scored = [self._score(pack, vocabulary) for pack in packs]
            grads = grads_of(spread_all(packs, scored, sequences, 1 + len(vocabulary)))
            total: list[torch.Tensor | None] = [None] * len(self.trained)
            for index in range(len(packs)):
                flats = scored[index] if one_pass else self._score(packs[index], vocabulary)
                self._add_pack(total, flats, flat_gradients(packs[index], grads, len(sequences)))
                # Drop the graph, and with it the pack's activations.
                del flats
                scored[index] = ()
        return total

    def _known_gradients(
        self,
        sequences: list[TokenSequence],
        known: Sequence[torch.Tensor],
        budget: int,
        vocabulary: Sequence[str],
    ) -> tuple[list[torch.Tensor | None], list[torch.Tensor]]:
        """Return the adapter's gradients, and what `forward` returns, from one pass over each pack."""
        packs = self._plan(sequences, budget)
        total: list[torch.Tensor | None] = [None] * len(self.trained)
        scored = []
        with self._scorer.ready(), torch.enable_grad():
            for pack in packs:
                flats = self._score(pack, vocabulary)
                self._add_pack(total, flats, flat_gradients(pack, known, len(sequences)))
                scored.append([flat.detach() for flat in flats])
                # Drop the graph, and with it the pack's activations.
                del flats
        return total, spread_all(packs, scored, sequences, 1 + len(vocabulary))

    def _add_pack(
        self, total: list[torch.Tensor | None], flats: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
    ) -> None:
        own = [grad.to(flat.device) for grad, flat in zip(grads, flats, strict=True)]
        gradients = torch.autograd.grad(flats, self.trained, own, allow_unused=True)
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                before = total[index]
                total[index] = gradient if before is None else before.add_(gradient)

    def _plan(self, sequences: list[TokenSequence], budget: int) -> list[Pack]:
        rows = self._scorer.rows_per_pack(min(self.rows_per_pack, budget))
        return plan_packs(sequences, rows, min_shared=self._min_shared)

    def _within_memory(self, attempt: Callable[[int], T]) -> T:
        """Run `attempt` with the token budget; if memory runs out, halve the budget and try once more."""
        failure = ""
        for budget in (self.max_tokens_in_flight, max(1, self.max_tokens_in_flight // 2)):
            try:
                with _flushed_denormals():
                    return attempt(budget)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error)
            # Outside the except block, because a caught error keeps the failed attempt's tensors alive.
            self.max_tokens_in_flight = max(1, budget // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        raise OutOfMemoryError(
            f"not enough memory for {budget} tokens in flight; use shorter sequences, "
            f"gradient checkpointing or a smaller model ({failure})"
        )

    def _default_budget(self, checkpointing: bool) -> int:
        """Return how many tokens half of the free memory holds, judging by a short trial."""
        tokens = torch.zeros(TRIAL_TOKENS, dtype=torch.int64)
        trial = self._plan(
            [TokenSequence(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool))], TRIAL_TOKENS
        )
        self.model.eval()
        with counted_saved_bytes() as saved, self._scorer.ready():
            self._scorer.score(trial[0])
        per_token = saved.without(self.model.parameters()) / TRIAL_TOKENS
        if checkpointing:
            # Each layer keeps its input; one layer at a time is recomputed in full.
            layers, hidden = self._scorer.config.num_hidden_layers, self._scorer.config.hidden_size
            per_token = layers * hidden * saved.itemsize + per_token / layers
            self.model.train()
        device = self._scorer.device
        share = SHARE_OF_FREE_MEMORY.get(device.type, SHARE_OF_FREE_MEMORY["cpu"])
        return max(TRIAL_TOKENS, int(free_bytes(device) * share / per_token))


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Treat denormal float32 numbers as 0, because a processor is many times slower on them.

    A loss has such gradients at every example that it has already separated (a logsigmoid far from 0).
    """
    before = float(torch.full((), torch.finfo(torch.float32).tiny) / 2) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _switch_off_dropout(model: nn.Module, *, checkpointing: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train(checkpointing)
    if checkpointing:
        # transformers has renamed the switch; it works in train mode only.
        known = cast(Any, model)
        renamed = getattr(known, "activation_checkpointing_enable", None)
        (renamed or known.gradient_checkpointing_enable)({"use_reentrant": False})
