from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

import mint_train
from mint_train.batches.batch import Batch
from mint_train.batches.datums import AttachedDatum
from mint_train.conformance.material import small_tokenizer
from mint_train.errors import ContractError, DataError, OptionError, RowError
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rendering.renderer import Renderer
from mint_train.testing import Check, conformance_checks, make_batch, make_group, make_logprobs
from mint_train_policy_gradient import plugin
from mint_train_policy_gradient.plugin import PolicyGradientOptions
from mint_train_policy_gradient.rows import FORMS

ReadLosses = Callable[[Path], list[float]]

ROW: dict[str, Any] = {
    "prompt_tokens": [1, 2],
    "completion_tokens": [3, 4],
    "old_logprobs": [-1.0, -2.0],
    "advantage": 0.5,
}


def values(old: list[float], advantages: list[float], count: int = 1) -> list[dict[str, Any]]:
    whole = {"advantage": 0.0, "reward": 0.0, "scored": 0.0, "count": float(count)}
    return [whole | {"old_logprobs": [0.0, *old], "advantages": [0.0, *advantages]}]


def given(reward: float, count: int) -> dict[str, Any]:
    return {"advantage": 0.0, "reward": reward, "scored": 1.0, "count": float(count)}


def two_rollouts() -> tuple[Batch, list[torch.Tensor]]:
    """A rollout of ratios 2, 1/2, 1 and advantage 1, and one of the ratio 3 and advantage -2."""
    first = make_group([[3, 4, 5]], values([-2.0, -1.0, -1.0], [1.0, 1.0, 1.0]))
    second = make_group([[6]], values([-3.0], [-2.0]))
    policy = [[-2.0 + math.log(2), -1.0 - math.log(2), -1.0], [-3.0 + math.log(3)]]
    return make_batch(first, second), make_logprobs(policy)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ("tokens", -(2 + 0.5 + 1 - 6) / 4),
        ("sequences", -((2 + 0.5 + 1) / 3 - 6) / 2),
        ("none", -((2 + 0.5 + 1) - 6) / 2),
    ],
)
def test_unclipped_by_hand(average: Any, expected: float) -> None:
    batch, policy = two_rollouts()
    value, metrics = plugin.compute_loss(batch, policy, PolicyGradientOptions(average=average))
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["mean_ratio"] == pytest.approx((2 + 0.5 + 1 + 3) / 4)
    assert metrics["clipped"] == 0.0
    logs = [math.log(2), -math.log(2), 0.0, math.log(3)]
    assert metrics["approx_kl"] == pytest.approx(sum(math.exp(log) - 1 - log for log in logs) / 4)


def test_clipped_by_hand() -> None:
    batch, policy = two_rollouts()
    value, metrics = plugin.compute_loss(batch, policy, PolicyGradientOptions(clip=0.2))
    # 2 is cut to 1.2; 1/2 with a gain, and 3 with a loss, are what the minimum keeps
    assert value.item() == pytest.approx(-(1.2 + 0.5 + 1 - 6) / 4)
    assert metrics["clipped"] == 0.25
    value.backward()
    assert policy[0].grad is not None
    assert policy[0].grad.tolist() == pytest.approx([0.0, 0.0, -0.5 / 4, -1 / 4])
    assert policy[1].grad is not None
    assert policy[1].grad.tolist() == pytest.approx([0.0, 6 / 4])


def test_clip_high_by_hand() -> None:
    batch, policy = two_rollouts()
    value, _ = plugin.compute_loss(batch, policy, PolicyGradientOptions(clip=0.2, clip_high=0.5))
    assert value.item() == pytest.approx(-(1.5 + 0.5 + 1 - 6) / 4)


def test_on_policy_the_gradient_is_the_advantage() -> None:
    batch = make_batch(make_group([[3, 4]], values([-1.0, -2.0], [0.5, -0.25])))
    policy = make_logprobs([[-1.0, -2.0]])
    value, _ = plugin.compute_loss(batch, policy, PolicyGradientOptions(average="none"))
    value.backward()
    assert policy[0].grad is not None
    assert policy[0].grad.tolist() == pytest.approx([0.0, -0.5, 0.25])


def test_a_ratio_beyond_float32_stays_finite() -> None:
    batch = Batch([make_group([[3]], values([-1000.0], [1.0]))])
    policy = [logprob.detach().float().requires_grad_() for logprob in make_logprobs([[-0.1]])]
    value, metrics = plugin.compute_loss(batch, policy, PolicyGradientOptions())
    assert value.item() == pytest.approx(-math.exp(20), rel=1e-6)
    assert all(math.isfinite(metric) for metric in metrics.values())


LOSSES = sorted(
    entry.name
    for entry in entry_points(group="mint_train.losses")
    if entry.dist is not None and entry.dist.name == "mint-train-policy-gradient"
)


@pytest.mark.parametrize("check", [check for name in LOSSES for check in conformance_checks(name)], ids=str)
def test_conformance(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", conformance_checks("policy-gradient", options={"clip": "0.2"}), ids=str)
def test_conformance_clipped(check: Check) -> None:
    check()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt_tokens": []}, "prompt_tokens"),
        ({"prompt_tokens": [1, -2]}, "prompt_tokens[1]"),
        ({"completion_tokens": "text"}, "completion_tokens"),
        ({"completion_tokens": [3, True]}, "completion_tokens[1]"),
        ({"old_logprobs": [-1.0]}, "old_logprobs"),
        ({"old_logprobs": [-1.0, 0.5]}, "old_logprobs[1]"),
        ({"old_logprobs": [-1.0, float("-inf")]}, "old_logprobs[1]"),
        ({"advantage": "high"}, "advantage"),
        ({"advantage": float("nan")}, "advantage"),
        ({"advantage": [1.0]}, "advantage"),
        ({"advantage": [1.0, None]}, "advantage[1]"),
    ],
)
def test_a_bad_row_names_its_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(RowError) as raised:
        FORMS.read(ROW | change)
    assert raised.value.field == field


def test_a_missing_field_is_named() -> None:
    for name, field in (("prompt_tokens", "prompt"), ("advantage", "advantage")):
        with pytest.raises(RowError) as raised:
            FORMS.read({key: value for key, value in ROW.items() if key != name})
        assert raised.value.field == field


def test_values_stand_at_their_tokens_and_are_cut_with_them() -> None:
    loss = Loss.of(load_plugin("policy-gradient"))
    (whole,) = loss.flatten(FORMS.read(ROW).example, Renderer(small_tokenizer()))
    (cut,) = loss.flatten(FORMS.read(ROW).example, Renderer(small_tokenizer(), 3))
    assert isinstance(whole, AttachedDatum)
    assert isinstance(cut, AttachedDatum)
    worth = {"advantage": 0.5, "reward": 0.0, "scored": 0.0, "count": 1.0}
    assert whole.attached == worth | {"old_logprobs": [0.0, -1.0, -2.0]}
    assert cut.attached == worth | {"old_logprobs": [0.0, -1.0]}
    (each,) = loss.flatten(FORMS.read(ROW | {"advantage": [0.5, -1.0]}).example, Renderer(small_tokenizer()))
    assert isinstance(each, AttachedDatum)
    assert each.attached == whole.attached | {"advantage": 0.0, "advantages": [0.0, 0.5, -1.0]}


def test_a_token_that_the_tokenizer_lacks_is_named_with_its_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, [ROW, ROW | {"completion_tokens": [3, 10**6]}])))
    with pytest.raises(DataError, match=r'rows\.jsonl:2: field "completion_tokens": token 1000000 is beyond'):
        mint_train.train("policy-gradient", data=rows, backend="local", output=tmp_path / "run")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (make_group([[3], [4]], values([-1.0], [1.0]) * 2), "does not have all the completions"),
        (make_group([[]], values([], [])), "no trained token"),
        (make_group([[3]]), "does not have all the completions"),
        (make_group([[3]], [given(1.0, 1)]), "no other completion"),
        (make_group([[3], [4]], [given(1.0, 2), given(0.0, 2)]), "no old_logprobs: give them, or"),
    ],
)
def test_the_contract(broken: mint_train.Batch, problem: str) -> None:
    good = make_group([[3]], values([-1.0], [1.0]))
    loss = Loss.of(load_plugin("policy-gradient"))
    loss.check_batch(make_batch(good))
    with pytest.raises(ContractError, match=f"rows:1: rollout 1.*{problem}"):
        loss.check_batch(make_batch(good, broken))


GROUP: dict[str, Any] = {"prompt": "a", "completions": ["x", "y y"], "rewards": [1.0, 0.0]}


def test_a_group_of_texts_and_one_of_tokens_are_read() -> None:
    texts = FORMS.read(GROUP).example
    assert texts.completions == ("x", "y y")
    assert texts.rewards == (1.0, 0.0)
    assert texts.advantages is None
    row = {"prompt": "a", "completion_tokens": [[3, 4], [5]], "advantages": [1.0, [0.5]]}
    tokens = FORMS.read(row | {"old_logprobs": [[-1.0, -2.0], [-3.0]]})
    assert tokens.example.completions == ([3, 4], [5])
    assert tokens.example.advantages == (1.0, [0.5])
    assert tokens.example.old_logprobs == ([-1.0, -2.0], [-3.0])
    assert tokens.unread == ()
    one = FORMS.read({"prompt": "a", "completion": "x", "reward": 2}).example
    assert (one.completions, one.rewards) == (("x",), (2.0,))


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (GROUP | {"rewards": [1.0]}, "rewards"),
        (GROUP | {"rewards": [1.0, "good"]}, "rewards[1]"),
        (GROUP | {"rewards": [1.0, float("nan")]}, "rewards[1]"),
        (GROUP | {"completions": "x"}, "completions"),
        (GROUP | {"completions": []}, "completions"),
        (GROUP | {"completions": ["x", ""]}, "completions[1]"),
        (GROUP | {"old_logprobs": [[-1.0], [-2.0]]}, "old_logprobs"),
        ({"prompt": "a", "completion_tokens": [[3], []], "rewards": [1, 0]}, "completion_tokens[1]"),
        (
            {
                "prompt": "a",
                "completion_tokens": [[3], [4]],
                "rewards": [1, 0],
                "old_logprobs": [[-1.0], [-1.0, -2.0]],
            },
            "old_logprobs[1]",
        ),
    ],
)
def test_a_bad_group_names_its_field(row: dict[str, object], field: str) -> None:
    with pytest.raises(RowError) as raised:
        FORMS.read(row)
    assert raised.value.field == field


def test_equal_rewards_give_no_advantage_and_are_counted_and_named() -> None:
    flat = make_group([[3], [4], [5]], [given(0.1, 3)] * 3)
    apart = make_group([[6], [7]], [given(1.0, 2), given(0.0, 2)])
    loss = Loss.of(load_plugin("reinforce"), {"advantage": "group"})
    batch, policy = make_batch(flat, apart), make_logprobs([[-1.0]] * 5)
    value, metrics = loss.compute(batch, policy, {})
    gradients = torch.autograd.grad(value, policy)
    assert [gradient.abs().sum().item() > 1e-9 for gradient in gradients] == [False] * 3 + [True] * 2
    assert metrics["flat_groups"] == 0.5
    assert loss.data_notes(batch)[0].startswith("The rewards of 1 of the first 2 prompts are all equal")
    assert loss.data_notes(make_batch(apart)) == []


def test_the_policy_before_its_first_step_stands_for_the_sampler() -> None:
    values = [given(1.0, 2), given(0.0, 2)]
    batch = make_batch(make_group([[3], [4]], values, [[-1.0], [-2.0]]))
    grpo = Loss.of(load_plugin("grpo"))
    assert grpo.reference == "initial"
    _, metrics = grpo.compute(batch, make_logprobs([[-1.0 + math.log(2)], [-2.0]]), {})
    assert metrics["mean_ratio"] == pytest.approx(1.5)


def test_a_row_s_old_logprobs_go_before_the_reference() -> None:
    values = [given(1.0, 2) | {"old_logprobs": [0.0, -3.0]}, given(0.0, 2)]
    batch = make_batch(make_group([[3], [4]], values, [[-1.0], [-2.0]]))
    _, metrics = Loss.of(load_plugin("grpo")).compute(batch, make_logprobs([[-3.0], [-2.0]]), {})
    assert metrics["mean_ratio"] == pytest.approx(1.0)


def test_a_kl_without_a_reference_is_refused() -> None:
    with pytest.raises(OptionError, match="kl is set without a reference"):
        Loss.of(load_plugin("grpo"), {"reference": "none"})


def test_sums_of_losses_on_rollouts() -> None:
    batch, policy = two_rollouts()
    whole = open_loss("policy-gradient+0.5*reinforce", {})
    alone = [open_loss(name, {}).compute(batch, policy, {})[0] for name in ("policy-gradient", "reinforce")]
    value, _ = whole.compute(batch, policy, {})
    assert value.item() == pytest.approx((alone[0] + 0.5 * alone[1]).item())


def test_clip_high_alone_is_refused() -> None:
    with pytest.raises(OptionError, match="clip_high is set without clip"):
        Loss.of(load_plugin("policy-gradient"), {"clip_high": "0.3"})


@pytest.mark.parametrize("name", ["policy-gradient", "grpo", "tis"])
def test_training_lowers_the_loss(name: str, tmp_path: Path, read_losses: ReadLosses) -> None:
    folder = tmp_path / "run"
    mint_train.train(name, steps=8, lr=1e-3, backend="local", output=folder)
    losses = read_losses(folder)
    assert losses[-1] < losses[0] - 0.01
