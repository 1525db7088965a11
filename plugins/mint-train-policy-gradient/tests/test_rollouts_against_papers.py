"""Each loss on rollouts against its formula written a second time, one sample and token after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from rollout_batches import Floats, batch_of, centred, group_advantages, leave_one_out, random_groups, raw

from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin

GROUPS = random_groups()
Tokens = list[torch.Tensor]
"""Of one completion, a scalar per token."""
TOLERANCE = 1e-10


def clipped(ratio: torch.Tensor, advantage: float, low: float, high: float) -> torch.Tensor:
    bounded = torch.clamp(ratio, 1 - low, 1 + high)
    return torch.minimum(ratio * advantage, bounded * advantage)


def mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).mean()


def by_token(gain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Average a gain of each token over all tokens."""

    def loss(samples: list[tuple[Any, Tokens, float]]) -> torch.Tensor:
        gains = [
            gain(p, old, reference, a)
            for sample, policy, a in samples
            for p, old, reference in zip(policy, sample.old, sample.reference, strict=True)
        ]
        return -mean(gains)

    return loss


def by_sample(gain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Average a gain of each completion's tokens."""

    def loss(samples: list[tuple[Any, Tokens, float]]) -> torch.Tensor:
        return -mean([gain(policy, sample.old, a) for sample, policy, a in samples])

    return loss


def k3(p: torch.Tensor, reference: float) -> torch.Tensor:
    return torch.exp(reference - p) - (reference - p) - 1


def grpo(samples: list[tuple[Any, Tokens, float]]) -> torch.Tensor:
    values = [
        mean(
            [
                0.04 * k3(p, reference) - clipped(torch.exp(p - old), a, 0.2, 0.2)
                for p, old, reference in zip(policy, sample.old, sample.reference, strict=True)
            ]
        )
        for sample, policy, a in samples
    ]
    return mean(values)


def log_sum(policy: Tokens, old: Floats) -> torch.Tensor:
    return torch.stack(policy).sum() - sum(old)


def gmpo(policy: Tokens, old: Floats, a: float) -> torch.Tensor:
    logs = []
    for p, o in zip(policy, old, strict=True):
        log = p - o
        bounded = torch.clamp(log, -0.4, 0.4)
        logs.append(torch.minimum(log, bounded) if a > 0 else torch.maximum(log, bounded))
    return a * torch.exp(mean(logs))


def sapo(policy: Tokens, old: Floats, a: float) -> torch.Tensor:
    tau = 1.0 if a > 0 else 1.05
    return mean(
        [4 / tau * torch.sigmoid(tau * (torch.exp(p - o) - 1)) * a for p, o in zip(policy, old, strict=True)]
    )


def topr(policy: Tokens, old: Floats, a: float) -> torch.Tensor:
    weight = 1.0 if a >= 0 else min(float(torch.exp(log_sum(policy, old)).detach()), 1.0)
    return weight * a * torch.stack(policy).sum()


def tis(p: torch.Tensor, old: float, reference: float, a: float) -> torch.Tensor:
    correction = min(float(torch.exp(torch.tensor(reference - old, dtype=torch.float64))), 1.1)
    return correction * clipped(torch.exp(p - reference), a, 0.2, 0.2)


CASES: list[tuple[str, dict[str, Any], Callable[[Floats], list[float]], Callable[..., torch.Tensor]]] = [
    ("reinforce", {}, raw, by_sample(lambda p, _, a: a * torch.stack(p).sum())),
    (
        "ppo-clip",
        {"clip": 0.1},
        group_advantages,
        by_token(lambda p, old, _, a: clipped(torch.exp(p - old), a, 0.1, 0.2)),
    ),
    ("grpo", {}, group_advantages, grpo),
    (
        "dr-grpo",
        {"length": 8},
        centred,
        by_sample(
            lambda p, old, a: (
                sum(clipped(torch.exp(x - o), a, 0.2, 0.2) for x, o in zip(p, old, strict=True)) / 8
            )
        ),
    ),
    ("dapo", {}, group_advantages, by_token(lambda p, old, _, a: clipped(torch.exp(p - old), a, 0.2, 0.28))),
    (
        "rloo",
        {},
        leave_one_out,
        by_sample(lambda p, old, a: clipped(torch.exp(log_sum(p, old)), a, 0.2, 0.2)),
    ),
    (
        "gspo",
        {"clip": 0.05, "clip_high": 0.08},
        group_advantages,
        by_sample(lambda p, old, a: clipped(torch.exp(log_sum(p, old) / len(p)), a, 0.05, 0.08)),
    ),
    (
        "cispo",
        {"upper": 1.2},
        group_advantages,
        by_token(lambda p, old, _, a: torch.exp(p - old).detach().clamp(max=1.2) * a * p),
    ),
    ("gmpo", {}, group_advantages, by_sample(gmpo)),
    ("sapo", {}, group_advantages, by_sample(sapo)),
    ("topr", {}, raw, by_sample(topr)),
    ("tis", {"cap": 1.1}, group_advantages, by_token(tis)),
    (
        "policy-gradient",
        {"clip": 0.2},
        group_advantages,
        by_token(lambda p, old, _, a: clipped(torch.exp(p - old), a, 0.2, 0.2)),
    ),
]


@pytest.mark.parametrize(("name", "options", "advantages", "second"), CASES, ids=[case[0] for case in CASES])
def test_value_and_gradient(
    name: str,
    options: dict[str, Any],
    advantages: Callable[[Floats], list[float]],
    second: Callable[..., torch.Tensor],
) -> None:
    batch, policy = batch_of(GROUPS)
    loss = Loss.of(load_plugin(name), options)
    loss.check_batch(batch)
    value, _ = loss.compute(batch, policy, {})
    found = torch.autograd.grad(value, policy)
    leaves = [
        [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in sample.policy]
        for group in GROUPS
        for sample in group
    ]
    worth = [a for group in GROUPS for a in advantages([sample.reward for sample in group])]
    samples = [sample for group in GROUPS for sample in group]
    expected = second(list(zip(samples, leaves, worth, strict=True)))
    assert value.item() == pytest.approx(expected.item(), abs=TOLERANCE)
    expected.backward()
    for gradient, tokens in zip(found, leaves, strict=True):
        own = [0.0 if token.grad is None else token.grad.item() for token in tokens]
        assert gradient.tolist() == pytest.approx([0.0, *own], abs=TOLERANCE)


@pytest.mark.parametrize("mode", ["token-mask", "sequence-truncate", "sequence-mask"])
def test_the_other_corrections_of_tis(mode: str) -> None:
    batch, policy = batch_of(GROUPS)
    value, _ = Loss.of(load_plugin("tis"), {"mode": mode, "cap": 1.1}).compute(batch, policy, {})
    gains: list[float] = []
    for group in GROUPS:
        for sample, a in zip(group, group_advantages([one.reward for one in group]), strict=True):
            logs = [r - o for r, o in zip(sample.reference, sample.old, strict=True)]
            if mode.startswith("sequence"):
                logs = [sum(logs)] * len(logs)
            for p, r, log in zip(sample.policy, sample.reference, logs, strict=True):
                ratio = torch.exp(torch.tensor([p - r, log], dtype=torch.float64))
                own = float(ratio[1])
                weight = min(own, 1.1) if mode.endswith("truncate") else own * (own <= 1.1)
                gains.append(weight * float(clipped(ratio[0], a, 0.2, 0.2)))
    assert value.item() == pytest.approx(-sum(gains) / len(gains), abs=TOLERANCE)


def test_advantages_of_the_batch() -> None:
    batch, policy = batch_of(GROUPS)
    value, _ = Loss.of(load_plugin("reinforce"), {"advantage": "batch"}).compute(batch, policy, {})
    rewards = torch.tensor([sample.reward for group in GROUPS for sample in group], dtype=torch.float64)
    worth = [a for group in GROUPS for a in centred([sample.reward for sample in group])]
    sums = [sum(sample.policy) for group in GROUPS for sample in group]
    expected = (
        -sum(a * p for a, p in zip(worth, sums, strict=True)) / len(sums) / (float(rewards.std()) + 1e-4)
    )
    assert value.item() == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("given", [True, False])
def test_distillation(given: bool) -> None:
    batch, policy = batch_of(GROUPS) if given else batch_of(GROUPS, old_logprobs=None)
    loss = Loss.of(load_plugin("distill"))
    loss.check_batch(batch)
    value, metrics = loss.compute(batch, policy, {})
    samples = [sample for group in GROUPS for sample in group]
    weights = [
        (math.exp(p - old) if given else 1.0) * (p - teacher)
        for sample in samples
        for p, old, teacher in zip(sample.policy, sample.old, sample.reference, strict=True)
    ]
    flat = [p for sample in samples for p in sample.policy]
    assert value.item() == pytest.approx(
        sum(w * p for w, p in zip(weights, flat, strict=True)) / len(flat), abs=TOLERANCE
    )
    found = [number for gradient in torch.autograd.grad(value, policy) for number in gradient.tolist()[1:]]
    assert found == pytest.approx([weight / len(flat) for weight in weights], abs=TOLERANCE)
    moved = sum(p - q for sample in samples for p, q in zip(sample.policy, sample.reference, strict=True))
    assert metrics["reverse_kl"] == pytest.approx(moved / len(flat))
