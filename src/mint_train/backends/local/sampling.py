"""Sample completions from the policy in this process, with or without the adapter."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from transformers import GenerationConfig

from mint_train.backends.base import Sampling
from mint_train.backends.local.client import LocalTrainingClient


class LocalSampler:
    """Samples from a training client's model; see `backends.base.Sampler`."""

    def __init__(self, client: LocalTrainingClient, *, adapter: bool) -> None:
        self.client = client
        self.adapter = adapter

    def sample(self, prompts: list[list[int]], sampling: Sampling) -> list[list[list[int]]]:
        """Generate from one prompt after the other; the seed alone determines the samples."""
        model = self.client.model
        model.eval()
        with (
            torch.inference_mode(),
            torch.random.fork_rng(),
            nullcontext() if self.adapter else model.disable_adapter(),
        ):
            torch.manual_seed(sampling.seed)
            return [self.complete(prompt, sampling) for prompt in prompts]

    def complete(self, prompt: list[int], sampling: Sampling) -> list[list[int]]:
        """Generate completions of one prompt."""
        end = self.client.tokenizer.eos_token_id
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            num_return_sequences=sampling.samples if sampling.temperature > 0 else 1,
            eos_token_id=end,
            pad_token_id=end,
            **(drawn if sampling.temperature > 0 else {"do_sample": False}),
        )
        tokens = torch.tensor([prompt], device=self.client.model.device)
        generated = self.client.model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=config
        )
        completions = [until(row, end) for row in generated[:, len(prompt) :].tolist()]
        # at temperature 0 all completions are the same
        return completions if sampling.temperature > 0 else completions * sampling.samples


def until(tokens: list[int], end: int) -> list[int]:
    """Return the tokens before the first end-of-sequence token."""
    return tokens[: tokens.index(end)] if end in tokens else tokens
