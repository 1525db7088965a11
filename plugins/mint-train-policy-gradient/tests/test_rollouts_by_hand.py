"""Each loss on rollouts on one prompt with two completions, with numbers that can be followed on paper.

    completion 1   A  1   p -2 + log 2, -1 - log 2   ratios 2 and 1/2, of the whole 1
    completion 2   A -2   p -3 + log 3               ratio 3

The reference is the policy that sampled. `worked` is the formula with these numbers put in. S is sigma, and k
the estimate of the KL at a token of some ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.metadata import entry_points

import pytest

from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.testing import make_batch, make_group, make_logprobs

OLD = ((-2.0, -1.0), (-3.0,))
POLICY = ((-2.0 + math.log(2), -1.0 - math.log(2)), (-3.0 + math.log(3),))
ADVANTAGES = (1.0, -2.0)
WORDS = {
    "log": math.log,
    "exp": math.exp,
    "S": lambda x: 1 / (1 + math.exp(-x)),
    "k": lambda ratio: 1 / ratio - 1 + math.log(ratio),
}


@dataclass(frozen=True)
class Case:
    """A loss with options, and the arithmetic of its value."""

    loss: str
    worked: str
    options: dict[str, object] = field(default_factory=dict)


CASES = [
    Case("reinforce", "-(1 * -3 - 2 * (-3 + log(3))) / 2"),
    Case("policy-gradient", "-(2 + 1/2 - 6) / 3"),
    Case("ppo-clip", "-(1.2 + 1/2 - 6) / 3"),
    Case("grpo", "-((1.2 + 1/2) / 2 - 6) / 2 + 0.04 * ((k(2) + k(1/2)) / 2 + k(3)) / 2"),
    Case("dr-grpo", "-((1.2 + 1/2) / 4 - 6 / 4) / 2", {"length": 4}),
    Case("dapo", "-(1.28 + 1/2 - 6) / 3"),
    Case("rloo", "-(1 - 6) / 2"),
    Case("gspo", "-(1 - 6) / 2"),
    Case(
        "cispo", "-(1.5 * (-2 + log(2)) + 1/2 * (-1 - log(2)) - 1.5 * 2 * (-3 + log(3))) / 3", {"upper": 1.5}
    ),
    Case("gmpo", "-(exp((0.4 - log(2)) / 2) - 6) / 2"),
    Case("sapo", "-((4 * S(1) + 4 * S(-1/2)) / 2 - 2 * 4 / 1.05 * S(1.05 * 2)) / 2"),
    Case("tis", "-(1.2 + 1/2 - 6) / 3"),
    # the ratio of the whole second completion counts at most 1
    Case("topr", "-(1 * -3 - 2 * (-3 + log(3))) / 2"),
    Case(
        "distill",
        "(2 * log(2) * (-2 + log(2)) - 1/2 * log(2) * (-1 - log(2)) + 3 * log(3) * (-3 + log(3))) / 3",
    ),
    # implicit rewards of 0 and log 3, against 1 - 0.25 and 0 - 0.25
    Case("a-star-po", "((0 - 0.75) ** 2 + (0.1 * log(3) + 0.25) ** 2) / 2", {"beta_2": 0.1}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.loss)
def test_value_is_the_one_worked_by_hand(case: Case) -> None:
    attached = [
        {
            "advantage": advantage,
            "reward": reward,
            "scored": 0.0,
            "count": 2.0,
            "optimal_value": 0.25,
            "old_logprobs": [0.0, *old],
        }
        for advantage, reward, old in zip(ADVANTAGES, (1.0, 0.0), OLD, strict=True)
    ]
    batch = make_batch(make_group([[3, 4], [5]], attached, OLD))
    loss = Loss.of(load_plugin(case.loss), case.options)
    loss.check_batch(batch)
    value, _ = loss.compute(batch, make_logprobs(POLICY), {})
    assert value.item() == pytest.approx(eval(case.worked, WORDS), abs=1e-12)


def test_every_loss_has_a_case() -> None:
    family = {
        entry.name
        for entry in entry_points(group="mint_train.losses")
        if entry.dist is not None and entry.dist.name == "mint-train-policy-gradient"
    }
    assert {case.loss for case in CASES} == family
