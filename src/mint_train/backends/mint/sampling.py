"""Completions of a policy on the service, through the SDK's sampling client."""

from __future__ import annotations

from mint_train.backends.base import Sampling
from mint_train.backends.mint.client import MintTrainingClient
from mint_train.sdk import mint, types


class MintSampler:
    """Samples from the base model or from saved weights; see `backends.base.Sampler`."""

    def __init__(
        self, client: MintTrainingClient, *, base_model: str | None = None, model_path: str | None = None
    ) -> None:
        """Open a sampling client.

        Raises:
            MintTrainError: the service does not have the model or the weights, or fails.
        """
        self.service = client.service
        self.end = client.get_tokenizer().eos_token_id
        self.doing = f"sample from {model_path or base_model}"
        self.sampler: mint.SamplingClient = self.service.call(
            self.doing,
            lambda: client.service_client.create_sampling_client(
                model_path=model_path, base_model=base_model
            ),
        )

    def sample(self, prompts: list[list[int]], sampling: Sampling) -> list[list[list[int]]]:
        """Ask for the completions of all prompts at once."""
        params = types.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            stop=[self.end],
        )
        with self.service.translated(self.doing):
            futures = [
                self.sampler.sample(types.ModelInput.from_ints(prompt), sampling.samples, params)
                for prompt in prompts
            ]
            answers = [self.service.wait(future, doing=self.doing) for future in futures]
        return [
            [[token for token in sequence.tokens if token != self.end] for sequence in answer.sequences]
            for answer in answers
        ]
