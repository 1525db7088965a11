"""Completions written together are those that the model writes one by one, and hang on the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from mint_train.backends.base import Sample
from mint_train.backends.local.adapter import LoraShape
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.backends.local.decoding import draw
from mint_train.backends.local.load import open_local_client
from mint_train.backends.local.sampling import LocalSampler
from mint_train.batches.datums import build_datum
from mint_train.settings.merge import load_settings
from mint_train.settings.sampling import Sampling
from mint_train.trained.sample import sampled_tokens

END = 2


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> LocalTrainingClient:
    """A model in the starter model's shape that writes anything, with an adapter that changes what."""
    shape = LoraShape.of(load_settings({"loss": "none", "backend": "local"}))
    client = open_local_client(None, shape, 0, tmp_path_factory.mktemp("sampling"))
    torch.manual_seed(0)
    for name, parameter in client.model.named_parameters():
        if parameter.dim() == 2:  # the starter model would end each answer, and repeat itself
            torch.nn.init.normal_(parameter, std=0.02 if "lora_B" in name else 0.05)
    return client


@pytest.fixture(scope="module")
def prompts(client: LocalTrainingClient) -> list[list[int]]:
    texts = ["Name a river.", "Why? " * 9, "Tell me about the moon and the sea.", "a", "Name a river"]
    return [list(client.tokenizer.encode(text)) for text in texts]


def generated(client: LocalTrainingClient, prompt: list[int], tokens: int) -> list[int]:
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=END, pad_token_id=END, num_return_sequences=1
    )
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = client.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
    written = output[0, len(prompt) :].tolist()
    return written[: written.index(END)] if END in written else written


@pytest.mark.parametrize("adapter", [True, False])
def test_at_temperature_0_it_is_what_generate_writes(
    client: LocalTrainingClient, prompts: list[list[int]], adapter: bool
) -> None:
    sampler = LocalSampler(client, adapter=adapter)
    found = sampled_tokens(sampler, prompts, Sampling(2, 16, 0.0))
    if adapter:
        expected = [generated(client, prompt, 16) for prompt in prompts]
    else:
        with client.model.disable_adapter():
            expected = [generated(client, prompt, 16) for prompt in prompts]
    assert found == [[written, written] for written in expected]
    assert len({tuple(written) for written in expected}) > 1


def test_the_adapter_matters(client: LocalTrainingClient, prompts: list[list[int]]) -> None:
    sampling = Sampling(1, 16, 0.0)
    before, after = (
        sampled_tokens(LocalSampler(client, adapter=adapter), prompts, sampling) for adapter in (False, True)
    )
    assert before != after


def drawn(client: LocalTrainingClient, prompts: list[list[int]], **given: Any) -> dict[int, list[Sample]]:
    done = given.pop("done", ())
    sampler = LocalSampler(client, adapter=True)
    return dict(
        sampler.draw(prompts, Sampling(**{"samples": 4, "max_tokens": 12, "temperature": 1.0, **given}), done)
    )


def test_samples_hang_on_the_seed_and_not_on_what_is_done(
    client: LocalTrainingClient, prompts: list[list[int]]
) -> None:
    found = drawn(client, prompts)
    assert drawn(client, prompts) == found
    assert drawn(client, prompts, done={0, 3}) == {index: found[index] for index in (1, 2, 4)}
    assert drawn(client, prompts, done=set(range(5))) == {}
    assert drawn(client, prompts, seed=1) != found
    assert len({tuple(one.tokens) for samples in found.values() for one in samples}) == 20


def test_a_sample_has_the_logprobs_of_a_forward(
    client: LocalTrainingClient, prompts: list[list[int]]
) -> None:
    for index, samples in drawn(client, prompts, temperature=0.7).items():
        data = [build_datum(prompts[index], one.tokens, None) for one in samples]
        outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
        for one, output in zip(samples, outputs, strict=True):
            logprobs = output["logprobs"].to_torch()[-len(one.tokens) :]
            assert one.logprobs == pytest.approx(logprobs.tolist(), abs=1e-4)


def test_a_completion_ends_with_the_token_that_ends_it(
    client: LocalTrainingClient, prompts: list[list[int]]
) -> None:
    plain = drawn(client, prompts)
    stop = plain[0][0].tokens[3]
    ended = drawn(client, prompts, stop=(stop,))[0][0]
    assert ended.ended
    assert ended.tokens == plain[0][0].tokens[: plain[0][0].tokens.index(stop) + 1]
    assert ended.text_tokens == ended.tokens[:-1]
    assert len(ended.logprobs) == len(ended.tokens)
    assert all(len(one.tokens) == 12 for samples in plain.values() for one in samples if not one.ended)


def test_a_completion_stays_within_the_models_window(
    client: LocalTrainingClient, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(map(len, prompts))
    monkeypatch.setattr(client.model.config, "max_position_embeddings", longest + 5)
    for index, samples in drawn(client, prompts).items():
        assert all(len(prompts[index]) + len(one.tokens) <= longest + 5 for one in samples)
        assert max(len(one.tokens) for one in samples) == min(12, longest + 5 - len(prompts[index]))


def test_a_budget_of_tokens_makes_several_batches_and_the_same_samples(
    client: LocalTrainingClient, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = drawn(client, prompts)
    monkeypatch.setattr("mint_train.backends.local.sampling.TOKENS_AT_ONCE", {"cpu": 200})
    sampler = LocalSampler(client, adapter=True)
    plan = sampler.plan(prompts, Sampling(4, 12, 1.0))
    assert len(plan) > 1
    assert sorted(index for part in plan for index in part) == list(range(5))
    assert {n: [one.tokens for one in samples] for n, samples in drawn(client, prompts).items()} == {
        n: [one.tokens for one in samples] for n, samples in found.items()
    }


def test_draws_have_the_models_distribution() -> None:
    """Evenly spaced numbers give each token its share, exactly."""
    count = 10_000
    logits = torch.tensor([[2.0, 0.0, -1.0, float("-inf"), 1.0]]).repeat(count, 1)
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for temperature in (0.5, 1.0, 2.0):
        shares = torch.bincount(draw(logits, temperature, numbers), minlength=5) / count
        expected = torch.softmax(logits[0] / temperature, -1)
        assert (shares - expected).abs().max() < 2 / count


def test_the_sampler_writes_nothing_beside_its_folder(client: LocalTrainingClient) -> None:
    assert {path.name for path in Path(client.folder).iterdir()} == {"base_model"}
