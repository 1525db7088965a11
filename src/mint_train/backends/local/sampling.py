"""Sample completions from the policy in this process, with or without the adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from mint_train.backends.base import Sample
from mint_train.backends.local.client import LocalTrainingClient, model_errors
from mint_train.backends.local.decoding import Decoder
from mint_train.settings.sampling import Sampling

TOKENS_AT_ONCE = {"cpu": 65_536, "cuda": 1_048_576}
"""Tokens, prompts included, of the completions that are written together: their keys and values are kept."""
MOST_AT_ONCE = 512
"""Completions that are written together."""


class LocalSampler:
    """Samples from a training client's model; see `backends.base.Sampler`."""

    def __init__(self, client: LocalTrainingClient, *, adapter: bool) -> None:
        self.client = client
        self.adapter = adapter

    @property
    def window(self) -> int | None:
        """The positions that the model has."""
        return self.client.window

    def draw(
        self, prompts: Sequence[list[int]], sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Write the completions of prompts of similar length together.

        Which are written together follows from all prompts, and so do the roundings of each: a batch of which
        some prompts are done is written again, whole.
        """
        model = self.client.model
        model.eval()
        distinct = sampling if sampling.temperature > 0 else replace(sampling, samples=1)
        for together in self.plan(prompts, distinct):
            if all(index in done for index in together):
                continue
            with (
                torch.inference_mode(),
                model_errors(),
                nullcontext() if self.adapter else model.disable_adapter(),
            ):
                dice = [uniforms(prompts[index], distinct) for index in together]
                decoder = Decoder(model, self.ends(sampling), self.window)
                written = decoder.write([prompts[index] for index in together], distinct, dice)
            for index, samples in zip(together, written, strict=True):
                if index not in done:
                    # at temperature 0 all completions are the same
                    yield index, samples * (sampling.samples // distinct.samples)

    def ends(self, sampling: Sampling) -> list[int]:
        """Return the tokens that end a completion."""
        return sorted({int(self.client.tokenizer.eos_token_id), *sampling.stop})

    def plan(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[int]]:
        """Return which prompts are written together, the longest first."""
        budget = TOKENS_AT_ONCE.get(self.client.model.device.type, TOKENS_AT_ONCE["cpu"])
        plan: list[list[int]] = []
        room = 0
        for index in sorted(range(len(prompts)), key=lambda index: -len(prompts[index])):
            if not room:
                tokens = sampling.samples * (len(prompts[index]) + sampling.max_tokens)
                room = max(1, min(budget // tokens, MOST_AT_ONCE // sampling.samples))
                plan.append([])
            plan[-1].append(index)
            room -= 1
        return plan


def uniforms(prompt: Sequence[int], sampling: Sampling) -> torch.Tensor:
    """Return the random numbers of a prompt's completions: float64 `[samples, max_tokens]` in [0, 1).

    They hang on the seed and the prompt alone, not on the prompts beside it.
    """
    digest = hashlib.blake2b(np.asarray(prompt, dtype=np.int64).tobytes(), digest_size=8).digest()
    dice = np.random.default_rng([sampling.seed, int.from_bytes(digest)])
    return torch.from_numpy(dice.random((sampling.samples, sampling.max_tokens)))
