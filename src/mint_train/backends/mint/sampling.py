"""Completions of a policy on the service, through the SDK's sampling client."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence

from mint_train.backends.base import Sample
from mint_train.backends.mint.client import MintTrainingClient
from mint_train.errors import BackendError
from mint_train.sdk import mint, types
from mint_train.settings.sampling import Sampling

LARGEST_SEED = 2**31 - 1
"""What servers take for a seed."""


class MintSampler:
    """Samples from the base model or from saved weights; see `backends.base.Sampler`."""

    window = None

    def __init__(
        self, client: MintTrainingClient, *, base_model: str | None = None, model_path: str | None = None
    ) -> None:
        """Open a sampling client.

        Raises:
            MintTrainError: the service does not have the model or the weights, or fails.
        """
        self.service = client.service
        self.end = int(client.get_tokenizer().eos_token_id)
        self.doing = f"sample from {model_path or base_model}"
        self.sampler: mint.SamplingClient = self.service.call(
            self.doing,
            lambda: client.service_client.create_sampling_client(
                model_path=model_path, base_model=base_model
            ),
        )

    def draw(
        self, prompts: Sequence[list[int]], sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Ask for the completions of all prompts at once, each with a seed of its own."""
        ends = sorted({self.end, *sampling.stop})
        left = [index for index in range(len(prompts)) if index not in done]
        with self.service.translated(self.doing):
            futures = [
                self.sampler.sample(
                    types.ModelInput.from_ints(prompts[index]),
                    sampling.samples,
                    types.SamplingParams(
                        max_tokens=sampling.max_tokens,
                        temperature=sampling.temperature,
                        seed=seed_of(prompts[index], sampling.seed),
                        stop=ends,
                    ),
                )
                for index in left
            ]
            for index, future in zip(left, futures, strict=True):
                answer = self.service.wait(future, doing=self.doing)
                yield index, [self.sample_of(sequence, ends) for sequence in answer.sequences]

    def sample_of(self, sequence: types.SampledSequence, ends: Collection[int]) -> Sample:
        """Return what the service says of one completion.

        Raises:
            BackendError: it has logprobs, but not one for each of its tokens.
        """
        tokens, logprobs = list(sequence.tokens), [float(number) for number in sequence.logprobs or ()]
        if len(logprobs) not in (0, len(tokens)):
            raise BackendError(f"a completion has {len(tokens)} tokens and {len(logprobs)} logprobs")
        return Sample(tokens, logprobs, bool(tokens) and tokens[-1] in ends)


def seed_of(prompt: Sequence[int], seed: int) -> int:
    """Return a prompt's own seed: prompts that are sampled with one seed must not share their noise."""
    text = ",".join(map(str, (seed, *prompt)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % LARGEST_SEED
