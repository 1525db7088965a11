"""Write many completions together: prompts read once, keys and values kept, finished rows dropped."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mint_train.backends.base import Sample
from mint_train.settings.sampling import Sampling

ELEMENTS = 2**24
"""Probabilities in float64 that a draw holds at once."""
KEPT_SHARE = 0.75
"""Share of rows that still write, below which the others are dropped from what is kept."""


@dataclass
class Rows:
    """The completions that are still written, a row each."""

    cache: Any
    mask: torch.Tensor
    """`[rows, positions]`, 0 where a shorter prompt is padded."""
    origin: torch.Tensor
    """`[rows]`: which completion each row is."""
    logits: torch.Tensor
    """`[rows, vocabulary]` of the next token."""

    def keep(self, rows: torch.Tensor) -> None:
        """Keep some of the rows."""
        self.cache.batch_select_indices(rows)
        self.mask, self.origin = self.mask[rows], self.origin[rows]
        self.logits = self.logits[rows]


class Decoder:
    """Writes completions with a causal language model, in inference mode."""

    def __init__(self, model: Any, ends: Sequence[int], window: int | None) -> None:
        """Take the model.

        Args:
            model: an adapted model of transformers.
            ends: tokens that end a completion.
            window: the most positions of a prompt with its completion; None for no limit.
        """
        self.model, self.window = model, window
        self.device = model.device
        self.ends = torch.tensor(list(ends), device=self.device)
        arguments = inspect.signature(model.get_base_model().forward).parameters
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in arguments else {}

    def write(
        self, prompts: Sequence[list[int]], sampling: Sampling, dice: Sequence[torch.Tensor]
    ) -> list[list[Sample]]:
        """Write the completions of some prompts.

        Args:
            prompts: token ids of each.
            sampling: how many completions of each, how long, and how they are drawn.
            dice: per prompt float64 `[samples, max_tokens]`, a random number for each token.
        """
        numbers = torch.cat(list(dice)).to(self.device)
        count = sampling.samples
        room = [self.room(prompt, sampling.max_tokens) for prompt in prompts for _ in range(count)]
        tokens = torch.zeros(len(room), sampling.max_tokens, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(len(room), sampling.max_tokens, device=self.device)
        lengths = torch.tensor(room, device=self.device)
        ended = torch.zeros(len(room), dtype=torch.bool, device=self.device)
        rows = self.read(prompts, count)
        writing = torch.ones(len(room), dtype=torch.bool, device=self.device)
        for step in range(max(room)):
            chosen = draw(rows.logits, sampling.temperature, numbers[rows.origin, step])
            own = writing[rows.origin]
            tokens[rows.origin[own], step] = chosen[own]
            logprobs[rows.origin[own], step] = logprobs_of(rows.logits, chosen)[own]
            end = torch.isin(chosen, self.ends) & own
            ended[rows.origin[end]] = True
            lengths[rows.origin[end]] = step + 1
            writing &= ~ended & (lengths > step + 1)
            own = writing[rows.origin]
            left = int(own.sum())
            if not left:
                break
            if left < KEPT_SHARE * len(own):
                rows.keep(own.nonzero().flatten())
                chosen = chosen[own]
            self.go_on(rows, chosen)
        written = [
            Sample(tokens[row, :length].tolist(), logprobs[row, :length].tolist(), end)
            for row, (length, end) in enumerate(zip(lengths.tolist(), ended.tolist(), strict=True))
        ]
        return [written[start : start + count] for start in range(0, len(written), count)]

    def room(self, prompt: Sequence[int], most: int) -> int:
        """Return how many tokens a completion may have."""
        return most if self.window is None else max(1, min(most, self.window - len(prompt)))

    def read(self, prompts: Sequence[list[int]], count: int) -> Rows:
        """Read each prompt once, padded on the left, and repeat what is kept of it for its completions."""
        longest = max(map(len, prompts))
        padded = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        mask = mask.to(self.device)
        output = self.model(
            input_ids=torch.tensor(padded, device=self.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            **self.last_only,
        )
        cache = output.past_key_values
        if count > 1:
            cache.batch_repeat_interleave(count)
        logits = output.logits[:, -1].repeat_interleave(count, 0)
        origin = torch.arange(len(prompts) * count, device=self.device)
        return Rows(cache, mask.repeat_interleave(count, 0), origin, logits)

    def go_on(self, rows: Rows, chosen: torch.Tensor) -> None:
        """Read the tokens that were drawn."""
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(rows.mask), 1)], -1)
        output = self.model(
            input_ids=chosen[:, None],
            attention_mask=rows.mask,
            position_ids=rows.mask.sum(-1, keepdim=True) - 1,
            past_key_values=rows.cache,
            use_cache=True,
        )
        rows.logits = output.logits[:, -1]


def draw(logits: torch.Tensor, temperature: float, numbers: torch.Tensor) -> torch.Tensor:
    """Return a token per row: the most likely one at temperature 0, else by the inverse of the distribution.

    Args:
        logits: `[rows, vocabulary]`.
        temperature: the logits are divided by it.
        numbers: float64 `[rows]` in [0, 1).
    """
    if temperature == 0:
        return logits.argmax(-1)
    size = max(1, ELEMENTS // logits.shape[-1])
    chosen = []
    for part, drawn in zip(logits.split(size), numbers.split(size), strict=True):
        sums = torch.softmax(part.double() / temperature, -1).cumsum(-1)
        found = torch.searchsorted(sums, drawn[:, None] * sums[:, -1:], right=True)
        chosen.append(found[:, 0].clamp(max=logits.shape[-1] - 1))
    return torch.cat(chosen)


def logprobs_of(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the logprob of a token per row, float32 `[rows]`, nats."""
    plain = logits.float()
    return plain.gather(-1, chosen[:, None])[:, 0] - plain.logsumexp(-1)
