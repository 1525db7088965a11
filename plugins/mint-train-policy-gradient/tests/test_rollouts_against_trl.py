"""Losses on rollouts against TRL's own code as an oracle: value and gradient, float64.

TRL's trainers are not trained here: their loss methods are called with the policy's logprobs given.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rollout_batches import Sampled, batch_of, centred, group_advantages, leave_one_out, random_groups

from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin

pytest.importorskip("trl", reason="TRL is the oracle of these tests and is not installed")

from trl import GRPOTrainer, RLOOTrainer

pytestmark = pytest.mark.oracle

GROUPS = random_groups()
SAMPLES: list[Sampled] = [sample for group in GROUPS for sample in group]
LONGEST = max(len(sample.policy) for sample in SAMPLES)
TOLERANCE = 1e-6
"""TRL holds the temperatures of SAPO in float32; all else agrees within 1e-12."""
DEFAULTS: dict[str, Any] = {
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "beta": 0.0,
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
}


def padded(name: str) -> torch.Tensor:
    rows = torch.zeros(len(SAMPLES), LONGEST, dtype=torch.float64)
    for row, sample in zip(rows, SAMPLES, strict=True):
        values = getattr(sample, name)
        row[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return rows


def trl_value_and_gradient(
    trainer: Any, advantages: list[float], **changed: Any
) -> tuple[float, list[list[float]]]:
    """Run the loss method of one of TRL's trainers on the samples."""
    policy = padded("policy").requires_grad_()
    mask = torch.zeros(len(SAMPLES), LONGEST, dtype=torch.long)
    for row, sample in zip(mask, SAMPLES, strict=True):
        row[: len(sample.policy)] = 1
    masked = [padded("policy").detach(), padded("old"), padded("reference")]
    inputs = {
        "prompt_ids": torch.zeros(len(SAMPLES), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(SAMPLES), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": torch.tensor(advantages, dtype=torch.float64),
        "old_per_token_logps": masked[1],
        "old_logps": masked[1].sum(1),
        "ref_per_token_logps": masked[2],
        "num_items_in_batch": mask.sum().double(),
    }
    arguments = SimpleNamespace(
        delta=None,
        use_bias_correction_kl=False,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=1,
    )
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x, sync_gradients=True
    )
    fake = SimpleNamespace(
        **DEFAULTS | changed,
        args=arguments,
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
    )
    value = trainer._compute_loss(fake, None, inputs)
    (gradient,) = torch.autograd.grad(value, policy)
    rows = [row[: len(sample.policy)].tolist() for row, sample in zip(gradient, SAMPLES, strict=True)]
    return value.item(), rows


CASES: list[tuple[str, dict[str, Any], Any, dict[str, Any]]] = [
    ("grpo", {"kl": 0.0}, group_advantages, {}),
    ("grpo", {}, group_advantages, {"beta": 0.04}),
    ("ppo-clip", {}, group_advantages, {"loss_type": "bnpo"}),
    ("dapo", {}, group_advantages, {"loss_type": "dapo", "epsilon_high": 0.28}),
    ("dr-grpo", {"length": LONGEST}, centred, {"loss_type": "dr_grpo"}),
    ("cispo", {"upper": 1.2}, group_advantages, {"loss_type": "cispo", "epsilon_high": 1.2}),
    ("sapo", {}, group_advantages, {"loss_type": "sapo"}),
    (
        "gspo",
        {},
        group_advantages,
        {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
]


def ours(name: str, options: dict[str, Any]) -> tuple[float, list[list[float]]]:
    batch, policy = batch_of(GROUPS)
    value, _ = Loss.of(load_plugin(name), options).compute(batch, policy, {})
    return value.item(), [gradient.tolist()[1:] for gradient in torch.autograd.grad(value, policy)]


def same(found: tuple[float, list[list[float]]], expected: tuple[float, list[list[float]]]) -> None:
    assert found[0] == pytest.approx(expected[0], abs=TOLERANCE)
    for own, other in zip(found[1], expected[1], strict=True):
        assert own == pytest.approx(other, abs=TOLERANCE)


@pytest.mark.parametrize(("name", "options", "advantages", "changed"), CASES)
def test_grpo_and_its_kin(
    name: str, options: dict[str, Any], advantages: Any, changed: dict[str, Any]
) -> None:
    worth = [a for group in GROUPS for a in advantages([sample.reward for sample in group])]
    same(ours(name, options), trl_value_and_gradient(GRPOTrainer, worth, **changed))


def test_rloo() -> None:
    worth = [a for group in GROUPS for a in leave_one_out([sample.reward for sample in group])]
    same(ours("rloo", {}), trl_value_and_gradient(RLOOTrainer, worth))
