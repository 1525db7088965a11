"""The page that the DPO plugin implements, statement by statement."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from mint_train.batches.batch import Batch
from mint_train.batches.datums import build_datum
from mint_train.batches.groups import Group
from mint_train.errors import Source
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rendering.recipe import build_completion_tokens
from mint_train.rendering.renderer import Renderer
from mint_train.sdk import Datum, types
from mint_train.settings.merge import load_settings
from mint_train.settings.model import MINT_DEFAULT_MODEL
from mint_train_dpo.rows import PreferencePair

PROMPT = "Explain why regular backups matter."
CHOSEN = "Backups protect data by creating copies that can be restored..."
REJECTED = "Backups are good."


@pytest.fixture
def dpo() -> Loss:
    return Loss.of(load_plugin("dpo"))


@pytest.fixture
def plain_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer without a chat template, that puts a special token before a text that asks for them."""
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    return plain


def targets(datum: Datum) -> list[int]:
    return [int(token) for token in datum.loss_fn_inputs["target_tokens"].data]


def weights(datum: Datum) -> list[float]:
    return list(datum.loss_fn_inputs["weights"].data)


def page_datum(prompt_tokens: list[int], completion_text: str, tokenizer: Any) -> Datum:
    """`build_datum` as the page writes it."""
    completion_tokens = tokenizer.encode(f" {completion_text}", add_special_tokens=False)
    completion_tokens.append(tokenizer.eos_token_id)
    all_tokens = prompt_tokens + completion_tokens
    input_tokens = all_tokens[:-1]
    target_tokens = all_tokens[1:]
    weights = [0.0] * (len(prompt_tokens) - 1) + [1.0] * len(completion_tokens)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens=input_tokens),
        loss_fn_inputs={"target_tokens": target_tokens, "weights": weights},
    )


def page_sequence_logprob(logprobs: torch.Tensor, weights: types.TensorData) -> torch.Tensor:
    """`sequence_logprob` as the page writes it."""
    return torch.dot(logprobs.flatten().float(), weights.to_torch().float())


def page_loss(
    data: Sequence[Datum], logprobs_list: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """`pairwise_preference_loss` as the page writes it."""
    chosen_scores = []
    rejected_scores = []
    for chosen_datum, rejected_datum, chosen_logprobs, rejected_logprobs in zip(
        data[::2], data[1::2], logprobs_list[::2], logprobs_list[1::2], strict=True
    ):
        chosen_scores.append(page_sequence_logprob(chosen_logprobs, chosen_datum.loss_fn_inputs["weights"]))
        rejected_scores.append(
            page_sequence_logprob(rejected_logprobs, rejected_datum.loss_fn_inputs["weights"])
        )
    margins = torch.stack(chosen_scores) - torch.stack(rejected_scores)
    loss = -functional.logsigmoid(margins).mean()
    metrics = {
        "loss": float(loss.detach().cpu()),
        "pair_accuracy": float((margins > 0).float().mean().detach().cpu()),
        "mean_margin": float(margins.mean().detach().cpu()),
    }
    return loss, metrics


def test_flattening_token_by_token(dpo: Loss, tokenizer: Any) -> None:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    group = dpo.flatten(PreferencePair(PROMPT, CHOSEN, REJECTED), Renderer(tokenizer))
    for datum, text in zip(group, (CHOSEN, REJECTED), strict=True):
        assert isinstance(datum, Datum)
        completion = [*tokenizer.encode(f" {text}", add_special_tokens=False), tokenizer.eos_token_id]
        assert [*prompt, *completion][:-1] == datum.model_input.to_ints()
        assert [*prompt, *completion][1:] == targets(datum)
        assert [0.0] * (len(prompt) - 1) + [1.0] * len(completion) == weights(datum)


@pytest.mark.parametrize("has_template", [True, False])
def test_flattening_is_the_pages_own(
    dpo: Loss, tokenizer: Any, plain_tokenizer: Any, has_template: bool
) -> None:
    mine = tokenizer if has_template else plain_tokenizer
    prompt_tokens = Renderer(mine).prompt_tokens(PROMPT)
    group = dpo.flatten(PreferencePair(PROMPT, CHOSEN, REJECTED), Renderer(mine))
    for datum, text in zip(group, (CHOSEN, REJECTED), strict=True):
        assert isinstance(datum, Datum)
        expected = page_datum(prompt_tokens, text, mine)
        assert datum.model_input.to_ints() == expected.model_input.to_ints()
        assert targets(datum) == targets(expected)
        assert weights(datum) == weights(expected)


def test_a_completion_begins_with_a_space_and_ends_with_eos_and_has_no_special_token(
    tokenizer: Any,
) -> None:
    tokens = build_completion_tokens(REJECTED, tokenizer)
    assert tokenizer.decode(tokens[:-1]) == f" {REJECTED}"
    assert tokens[-1] == tokenizer.eos_token_id
    assert not set(tokens[:-1]) & set(tokenizer.all_special_ids)


def test_a_completion_gets_no_special_token_from_a_tokenizer_that_adds_some(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    adding = copy.deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert adding.encode("Backups")[0] == 0, "the tokenizer under test adds nothing"
    assert build_completion_tokens(REJECTED, adding) == build_completion_tokens(REJECTED, tokenizer)


def test_chat_template_with_generation_prompt(tokenizer: Any) -> None:
    shown = tokenizer.decode(Renderer(tokenizer).prompt_tokens(PROMPT))
    assert shown == f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"


def test_plain_form_without_chat_template(plain_tokenizer: Any) -> None:
    assert (
        plain_tokenizer.decode(Renderer(plain_tokenizer).prompt_tokens(PROMPT))
        == f"User: {PROMPT}\nAssistant:"
    )


def test_plain_form_of_a_conversation(plain_tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    shown = plain_tokenizer.decode(Renderer(plain_tokenizer).prompt_tokens(messages))
    assert shown == "System: Be brief.\nUser: Hello\nAssistant: Hi\nUser: Bye\nAssistant:"


def test_even_datums_are_chosen_and_odd_ones_rejected(dpo: Loss, tokenizer: Any) -> None:
    pairs = [PreferencePair(f"Question {n}", f"good {n}", f"bad {n}") for n in range(3)]
    groups = [Group.of(dpo.flatten(pair, Renderer(tokenizer)), Source("x", 1)) for pair in pairs]
    shown = [tokenizer.decode(targets(datum)) for datum in Batch(groups).data]
    for number, text in enumerate(shown):
        side = "good" if number % 2 == 0 else "bad"
        assert text.endswith(f" {side} {number // 2}{tokenizer.eos_token}")


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_metrics_are_the_pages_own(dpo: Loss, tokenizer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    texts = [("Say it", "yes indeed", "no"), ("Again", "well", "not so well"), ("Once more", "a b c", "d")]
    groups = [
        Group.of(dpo.flatten(PreferencePair(*text), Renderer(tokenizer)), Source("x", 1)) for text in texts
    ]
    batch = Batch(groups)
    values = [-3 * torch.rand(length, generator=generator) for length in batch.lengths.tolist()]
    mine = [value.clone().requires_grad_() for value in values]
    pages = [value.clone().requires_grad_() for value in values]
    loss, metrics = dpo.compute(batch, mine, {})
    expected, expected_metrics = page_loss(batch.data, pages)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, value in expected_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name
    scores = [
        page_sequence_logprob(p, d.loss_fn_inputs["weights"]).item()
        for p, d in zip(values, batch.data, strict=True)
    ]
    assert metrics["mean_chosen_score"] == pytest.approx(sum(scores[::2]) / 3, rel=1e-6)
    assert metrics["mean_rejected_score"] == pytest.approx(sum(scores[1::2]) / 3, rel=1e-6)
    loss.backward()
    expected.backward()
    for one, other in zip(mine, pages, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)


def test_defaults_have_no_reference_and_beta_one(dpo: Loss) -> None:
    assert dpo.reference is None
    assert dpo.options.model_dump() == {"beta": 1.0, "reference": "none"}


def test_a_margin_of_minus_34_is_a_loss_of_34_and_finite(dpo: Loss, tokenizer: Any) -> None:
    datums = [build_datum([5, 6], [token, 2], None) for token in (7, 8)]
    batch = Batch([Group.of(datums, Source("x", 1))])
    logprobs = [torch.tensor([0.0, -margin, 0.0], requires_grad=True) for margin in (534.5, 500.0)]
    loss, metrics = dpo.compute(batch, logprobs, {})
    assert loss.item() == pytest.approx(34.5)
    assert metrics["pair_accuracy"] == 0.0
    assert metrics["mean_margin"] == pytest.approx(-34.5)


PARAMETERS = [
    ("MINT_BASE_MODEL", "some/model", "model", None),
    ("MINT_LORA_RANK", "8", "rank", 16),
    ("MINT_DPO_STEPS", "7", "steps", None),
    ("MINT_DPO_LR", "0.5", "lr", 1e-5),
]


@pytest.mark.parametrize(("variable", "value", "field", "default"), PARAMETERS)
def test_parameters_and_their_variables(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, default: object
) -> None:
    assert getattr(load_settings({"loss": "dpo"}), field) == default
    monkeypatch.setenv(variable, value)
    assert str(getattr(load_settings({"loss": "dpo"}), field)) == value


def test_the_default_model_on_mint_is_the_pages() -> None:
    from mint_train.backends.choose import choose_backend

    assert MINT_DEFAULT_MODEL == "Qwen/Qwen3-0.6B"
    assert choose_backend(load_settings({"loss": "dpo", "backend": "mint"})).model == "Qwen/Qwen3-0.6B"


def test_default_run(run_cli: Callable[..., Any], starter_model_folder: Path, tmp_path: Path) -> None:
    """Three steps on the bundled pairs, each with its line, then the sampler's checkpoint."""
    status, out, err = run_cli("--loss", "dpo", "--model", starter_model_folder, "--output", "run")
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("Step ")]
    number = r"-?\d+\.\d{6}"
    for step, line in enumerate(lines, start=1):
        assert re.fullmatch(
            rf"Step {step}: loss={number}, pair_accuracy=\d\.\d\d, mean_margin={number}", line
        )
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert len(lines) == 3
    assert lines[0] == (
        "Step 1: loss={loss:.6f}, pair_accuracy={pair_accuracy:.2f}, mean_margin={mean_margin:.6f}".format(
            **records[0]["metrics"]
        )
    )
    assert all(record["learning_rate"] == 1e-5 for record in records)
    assert "Final checkpoint: run/adapter" in out
    assert "accuracy of 0.00 is expected" not in out, "both sides are of similar length"
    trained = load_file("run/adapter/adapter_model.safetensors")
    moved = [name for name, tensor in trained.items() if "lora_B" in name and tensor.abs().max() > 0]
    assert moved, "no gradient reached the adapter"
    assert len(moved) == sum("lora_B" in name for name in trained)
    assert json.loads(Path("run/adapter/adapter_config.json").read_text())["lora_alpha"] == 32


def test_steps_that_take_all_pairs_lower_the_loss(
    run_cli: Callable[..., Any], starter_model_folder: Path, tmp_path: Path
) -> None:
    """As the page's steps do."""
    status, _, err = run_cli(
        "--loss", "dpo", "--batch-size", 80, "--model", starter_model_folder, "--output", "run"
    )
    assert (status, err) == (0, "")
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(records) == 3
    assert all(before["metrics"]["loss"] > after["metrics"]["loss"] for before, after in pairwise(records))


def test_chosen_completions_that_are_much_longer_are_explained(dpo: Loss) -> None:
    def notes(chosen: int, rejected: int) -> list[str]:
        datums = [build_datum([5, 6], [*[7] * tokens, 2], None) for tokens in (chosen, rejected)]
        return dpo.data_notes(Batch([Group.of(datums, Source("x", 1))]))

    assert notes(5, 4) == []
    assert "pair_accuracy of 0.00 is expected at first" in notes(11, 3)[0]


def test_bundled_pairs_are_at_least_eight(dpo: Loss) -> None:
    from mint_train.groups.examples import find_data, read_examples

    assert len(read_examples(find_data(None, dpo), dpo)) >= 8
