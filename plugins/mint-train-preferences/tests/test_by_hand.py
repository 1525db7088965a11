"""Each loss on two small pairs, with numbers that can be followed on paper.

The two pairs (the second one a tie, where a loss asks), with h the log-ratio of policy and reference,
p the policy's logprob, n the tokens:

    pair 1   chosen   p -1.5  h  1.0  n 2      rejected  p -5.0  h -1.0  n 4      margin  2.0
    pair 2   chosen   p -2.0  h -0.5  n 1      rejected  p -2.0  h  1.0  n 2      margin -1.5

`worked` is the formula with these numbers put in; `value` is what it comes to. S is sigma, L is log sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from pair_batches import FAMILY, PairLogprobs, make_batch, open_loss

PAIRS = (
    PairLogprobs(
        chosen=(-0.5, -1.0),
        rejected=(-1.0, -0.5, -2.0, -1.5),
        reference_chosen=(-1.0, -1.5),
        reference_rejected=(-0.75, -0.5, -1.5, -1.25),
        scores=(4.0, 1.0),
        p_chosen=0.9,
        token_weights=((2.0, 1.0), (1.0, 0.0, 1.0, 2.0)),
    ),
    PairLogprobs(
        chosen=(-2.0,),
        rejected=(-1.0, -1.0),
        reference_chosen=(-1.5,),
        reference_rejected=(-1.5, -1.5),
        scores=(3.0, 2.0),
        p_chosen=0.75,
        tie=True,
        token_weights=((0.5,), (1.0, 1.0)),
    ),
)


@dataclass(frozen=True)
class Case:
    """A loss with options, the arithmetic of its value on the two pairs, and the value."""

    loss: str
    worked: str
    value: float
    options: dict[str, object] = field(default_factory=dict)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


WORDS = {"S": sigma, "L": lambda x: math.log(sigma(x)), "log": math.log, "exp": math.exp, "sqrt": math.sqrt}

CASES = [
    Case("dpo", "(-L(2.0) - L(-1.5)) / 2", 0.914170644513),
    Case("dpo", "(-L(0.1 * 2.0) - L(0.1 * -1.5)) / 2", 0.684547958586, {"beta": 0.1}),
    Case("dpo", "(-L(-1.5 + 5.0) - L(-2.0 + 2.0)) / 2", 0.361448799416, {"reference": "none"}),
    Case("cdpo", "(-0.9 * L(0.2) - 0.1 * L(-0.2) - 0.9 * L(-0.15) - 0.1 * L(0.15)) / 2", 0.687047958586),
    Case(
        "robust",
        "((-0.9 * L(0.02) + 0.1 * L(-0.02)) / 0.8 + (-0.9 * L(-0.015) + 0.1 * L(0.015)) / 0.8) / 2",
        0.691623742511,
        {"beta": 0.01},
    ),
    Case(
        "exo",
        "(S(0.2) * (L(0.2) - log(0.999)) + S(-0.2) * (L(-0.2) - log(0.001))"
        " + S(-0.15) * (L(-0.15) - log(0.999)) + S(0.15) * (L(0.15) - log(0.001))) / 2",
        2.722284351262,
    ),
    Case("ropo", "56 / 225 * (-L(0.2) + 14 * S(-0.2) - L(-0.15) + 14 * S(0.15)) / 2", 1.890987813818),
    Case("dr-dpo", "-log((S(0.2) + S(-0.15)) / 2)", 0.680819329765),
    Case("dr-dpo", "-2 * log((S(0.2) ** 0.5 + S(-0.15) ** 0.5) / 2)", 0.682681906342, {"beta_prime": 2.0}),
    Case("hinge", "((1 - 0.2) + (1 + 0.15)) / 2", 0.975),
    Case("hinge", "(0 + (1 + 1.5)) / 2", 1.25, {"beta": 1.0}),
    Case("hinge", "((1 - 0.25 * 3.5) + (1 - 0)) / 2", 0.5625, {"beta": 0.25, "reference": "none"}),
    Case(
        "discopop",
        "(S(-2.0) * -L(0.1) + S(2.0) * exp(-0.1) + S(1.5) * -L(-0.075) + S(-1.5) * exp(0.075)) / 2",
        0.834179453901,
    ),
    Case("focalpo", "(-S(0.2) ** 0.05 * L(0.2) - S(-0.15) ** 0.05 * L(-0.15)) / 2", 0.661159514446),
    Case("gpo", "((1 - 0.2) ** 2 + (1 + 0.15) ** 2) / 2", 0.98125),
    Case("gpo", "(0 + 2.5 ** 2) / 2", 3.125, {"beta": 1.0}),
    Case("gpo", "((1 - 2) ** 2 + 2.5 ** 2) / 2", 3.625, {"beta": 1.0, "function": "squared"}),
    Case("gpo", "(S(-2.0) ** 2 + S(1.5) ** 2) / 2", 0.341318680371, {"beta": 1.0, "function": "savage"}),
    Case("gpo", "(-L(0.2) - L(-0.15)) / 2", 0.684547958586, {"function": "logistic"}),
    Case("gpo", "(0.8 + 1.15) / 2", 0.975, {"function": "hinge"}),
    Case("ipo", "((1.0 / 2 + 1.0 / 4 - 5) ** 2 + (-0.5 / 1 - 1.0 / 2 - 5) ** 2) / 2", 27.03125),
    Case("ipo", "((2.0 - 5) ** 2 + (-1.5 - 5) ** 2) / 2", 25.625, {"length_normalized": False}),
    Case("sppo", "((1 - 500) ** 2 + (-1 + 500) ** 2 + (-0.5 - 500) ** 2 + (1 + 500) ** 2) / 2", 499751.625),
    Case(
        "cal-dpo",
        "(-L(2.0) + (1 - 2) ** 2 + (-1 + 2) ** 2 - L(-1.5) + (-0.5 - 2) ** 2 + (1 + 2) ** 2) / 2",
        9.539170644513,
        {"beta": 0.25},
    ),
    Case("apo-zero", "(1 - S(0.1) + S(-0.1) + 1 - S(-0.05) + S(0.1)) / 2", 0.993759104503),
    Case("apo-down", "(S(0.1) + 1 - S(0.2) + S(-0.05) + 1 - S(-0.15)) / 2", 1.000038819513),
    Case(
        "nca",
        "(-L(0.01) - L(-0.01) / 2 - L(0.01) / 2 - L(-0.005) - L(0.005) / 2 - L(-0.01) / 2) / 2",
        1.385687329802,
    ),
    Case("bco", "(-L(1.0) - L(1.0) - L(-0.5) - L(-1.0)) / 2", 1.456931023367, {"beta": 1.0, "shift": False}),
    Case(
        "bco",  # delta is the mean of 1.0, -1.0, -0.5 and 1.0
        "(-L(1.0 - 0.125) - L(1.0 + 0.125) - L(-0.5 - 0.125) - L(-1.0 + 0.125)) / 2",
        1.453369988267,
        {"beta": 1.0},
    ),
    Case("npo", "(-20 * L(0.1) - 20 * L(-0.1)) / 2", 13.887933201471),
    # policy margins 3.5 and 0.0, reference margins 1.5 and 1.5
    Case("aot", "(-L(0.1 * (0.0 - 1.5)) - L(0.1 * (3.5 - 1.5))) / 2", 0.684547958586, {"beta": 0.1}),
    # chosen -0.5 and 1.0, rejected -1.0 and 1.0
    Case(
        "aot-unpaired", "(-L(0.1 * (-0.5 + 1.0)) - L(0.1 * (1.0 - 1.0))) / 2", 0.680803414287, {"beta": 0.1}
    ),
    Case(
        "aot-unpaired",
        "(-0.8 * L(0.05) - 0.2 * L(-0.05) - L(0.0)) / 2",
        0.685803414287,
        {"beta": 0.1, "label_smoothing": 0.2},
    ),
    Case(
        "f-dpo",
        "(-L(0.1 * (L(1.0) - L(-1.0))) - L(0.1 * (L(-0.5) - L(1.0)))) / 2",
        0.685565176125,
    ),
    Case(
        "f-dpo",
        "(-L(0.1 * (exp(1.0) - exp(-1.0))) - L(0.1 * (exp(-1.0) - exp(0.5)))) / 2",
        0.670877639992,
        {"divergence": "forward-kl"},
    ),
    Case(
        "f-dpo",
        "(-L(0.1 * 2 * (exp(0.5) - exp(-0.5))) - L(0.1 * 2 * (exp(-0.5) - exp(0.25)))) / 2",
        0.678769510718,
        {"divergence": "alpha"},
    ),
    Case("f-dpo", "(-L(0.2) - L(-0.15)) / 2", 0.684547958586, {"divergence": "reverse-kl"}),
    Case(
        "chi-po",
        "(-L(0.05 * (exp(1.0) + 1 - exp(-1.0) + 1)) - L(0.05 * (exp(-0.5) - 0.5 - exp(1.0) - 1))) / 2",
        0.688900894354,
    ),
    Case("chi-po", "(-L(0.2) - L(-0.2)) / 2", 0.698138869382, {"beta": 1.0, "reward_max": 0.1}),
    Case("dpo-norm", "(-L(5 * (1.0 / 2 + 1.0 / 4)) - L(5 * (-0.5 - 1.0 / 2))) / 2", 2.514980406431),
    Case("r-dpo", "(-L(0.2 + 0.05 * (2 - 4)) - L(-0.15 + 0.05 * (1 - 2))) / 2", 0.721267764728),
    Case("sampo", "(-L(0.1 * 2 * (1.0 / 2 + 1.0 / 4)) - L(0.1 * 1 * (-0.5 - 1.0 / 2))) / 2", 0.682676853932),
    # log-ratios per token: 0.5 0.5; -0.25 0 | -0.5 -0.25; -0.5; 0.5 | 0.5; the surplus begins at the bar
    Case(
        "ld-dpo",
        "(-L(0.1 * (1.0 + 0.25 + 0.5 * 0.75)) - L(0.1 * (-0.5 - 0.5 - 0.5 * 0.5))) / 2",
        0.686396685894,
    ),
    Case(
        "d2po",
        "(-L(0.5 + 0.5 * 0.5 + 0.25 + 0.25 * 0.5 + 0.125 * 0.25) - L(-0.5 - 0.5 - 0.5 * 0.5)) / 2",
        0.887755085683,
        {"beta": 1.0, "gamma": 0.5},
    ),
    Case("dpo-positive", "(-L(0.3 * 2.0) - L(0.3 * (-1.5 - 50 * 0.5))) / 2", 4.193920275240),
    Case(
        "dpo-shift",
        "(-L(0.1 * (1.0 + 0.75)) - L(0.1 * (-0.5 - 0.75))) / 2",
        0.683534732990,
        {"beta": 0.1, "shift": 0.75},
    ),
    Case("minor-dpo", "(-L(0.1 * (1.0 - 0)) - L(0.1 * (-0.5 - 1.0))) / 2", 0.707676853932),
    Case("rpo", "(-L(0.2) - L(-0.15)) / 2 + (1.5 / 2 + 2.0 / 1) / 2", 2.059547958586),
    Case("sft", "(1.5 + 2.0) / 3", 3.5 / 3),
    Case("dft", "(0.5 * exp(-0.5) + 1.0 * exp(-1.0) + 2.0 * exp(-2.0)) / 3", 0.313938445834),
    # as dft, and log-ratios 0.5 0.5 and -0.5
    Case(
        "asft",
        "(0.5 * exp(-0.5) + 1.0 * exp(-1.0) + 2.0 * exp(-2.0)) / 3"
        " + 0.1 * (2 * (exp(-0.5) - 0.5) + exp(0.5) - 1.5) / 3",
        0.325997865504508,
    ),
    # token log-ratios 0.5 0.5 -0.25 0 -0.5 -0.25 -0.5 0.5 0.5
    Case("squared-log-ratio", "(6 * 0.5 ** 2 + 2 * 0.25 ** 2) / 9", 0.18055555555555555),
    Case(
        "kl",
        "(4 * (exp(-0.5) - 0.5) + 2 * (exp(0.5) - 1.5) + 2 * (exp(0.25) - 1.25)) / 9",
        0.087957334847,
    ),
    Case("simpo", "(-L(2 * (-1.5 / 2 + 5.0 / 4) - 1) - L(2 * (-2.0 + 2.0 / 2) - 1)) / 2", 1.870867266067),
    Case(
        "alphapo",
        "(-L(2.5 * 4 * (exp(0.3125) - exp(0.1875)) - 0.1) - L(2.5 * 4 * (exp(0.25) - exp(0.5)) - 0.1)) / 2",
        1.985290718333,
    ),
    Case("cpo", "(-L(0.1 * 3.5) - L(0.1 * 0.0)) / 2 + (1.5 + 2.0) / 3", 1.779931334656),
    Case(
        "orpo",
        "(0.75 + 2.0) / 2 - 0.1 * (L(-0.75 - log(1 - exp(-0.75)) + 1.25 + log(1 - exp(-1.25)))"
        " + L(-2.0 - log(1 - exp(-2.0)) + 1.0 + log(1 - exp(-1.0)))) / 2",
        1.471099788105,
    ),
    Case("simper", "(exp(-1.25) - exp(-0.75) + exp(-1.0) - exp(-2.0)) / 2", 0.023341201027),
    Case("simnpo", "-0.8 * (L(2.5 * 1.25) + L(2.5 * 1.0)) / 2", 0.048755525409),
    # both pairs are 1.75 from the mean margin 0.25, so both are kept and beta stays
    Case("beta-dpo", "(-L(0.2) - L(-0.15)) / 2", 0.684547958586),
    # margins of the means: 0.75 and -1.0; they are one standard deviation (0.875) above and below their mean
    Case("alpha-dpo", "(-L(2.5 * (0.5 - 0.2) - 1.5) - L(2.5 * (-1.0 + 0.2) - 1.5)) / 2", 2.333310712194),
    Case(
        "wpo", "(-exp(-0.75 - 1.25) * L(0.2) - exp(-2.0 - 1.0) * L(-0.15)) / 2", 0.059666492275, {"beta": 0.1}
    ),
    Case("odpo", "(-L(0.2 - log(3)) - L(-0.15 - log(1))) / 2", 1.005562263875),
    Case(
        "odpo",
        "(-L(0.2 - 0.5 * 3) - L(-0.15 - 0.5 * 1)) / 2",
        1.305531894768,
        {"scale": "linear", "alpha": 0.5},
    ),
    Case("repo", "(0.6 - 0.5 + 0.6 + 1.0) / 2", 0.850000000000),
    Case("h-dpo", "(-L(0.1 * (0.9 * 3.5 - 1.5)) - L(0.1 * (0.9 * 0.0 - 1.5))) / 2", 0.692501749961),
    Case("gamma-po", "(-L(10 * 0.5 - 4) - L(10 * -1.0 - 4)) / 2", 7.156631259523, {"tau": 1000000000000.0}),
    Case(
        "reward-aware-rpo",
        "(S(3.0) * (L(3.0) - L(0.4)) + S(-3.0) * (L(-3.0) - L(-0.4))"
        " + S(1.0) * (L(1.0) - L(-0.3)) + S(-1.0) * (L(-1.0) - L(0.3))) / 2",
        0.266295169867,
    ),
    Case(
        "reward-aware-rpo",
        "((0.4 - 3.0) ** 2 + (-0.3 - 1.0) ** 2) / 2",
        4.225000000000,
        {"distance": "squared"},
    ),
    Case("mappo", "(-L(0.1 * (1.0 + 0.75)) - L(0.1 * (-0.5 - 0.25))) / 2", 0.670410285745, {"scale": 4.0}),
    Case("gdpo", "(-L(0.1 * 0.8 * 2.0) - L(0.1 * 0.5 * -1.5)) / 2", 0.673846956934),
    Case("dpo-rk", "(-L(0.2 - log(3)) - log(8) - L(-0.15 - log(3)) - L(0.15 - log(3))) / 2", 0.968766209674),
    Case(
        "dpo-davidson",
        "(log(1 + exp(-0.2) + 2 * exp(-0.1)) + log(1 + exp(0.15) + 2 * exp(0.075)) - log(2) - 0.075) / 2",
        0.991673210620,
    ),
    Case("tis-dpo", "(-L(0.1 * (1.5 + 1.25)) - L(0.1 * (-0.25 - 1.0))) / 2", 0.661334851503),
    Case("rebel", "((2.0 / 2 - 3) ** 2 + (-1.5 / 2 - 1) ** 2) / 2", 3.53125, {"eta": 2.0}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.loss}-{case.options}")
def test_value_is_the_one_worked_by_hand(case: Case) -> None:
    batch, logprobs = make_batch(PAIRS)
    value, _ = open_loss(case.loss, **case.options).compute(batch, logprobs, {})
    assert eval(case.worked, WORDS) == pytest.approx(case.value, abs=1e-12)
    # alpha-dpo adds 1e-6 to a standard deviation
    assert float(value.detach()) == pytest.approx(case.value, abs=1e-6 if case.loss == "alpha-dpo" else 1e-9)


@pytest.mark.parametrize("name", FAMILY)
def test_every_loss_has_a_case(name: str) -> None:
    assert any(case.loss == name for case in CASES), f"work out {name} by hand and add it to CASES"


def test_metrics_of_dpo_with_a_reference() -> None:
    batch, logprobs = make_batch(PAIRS)
    _, metrics = open_loss("dpo", beta=0.5).compute(batch, logprobs, {})
    del metrics["loss"]
    assert metrics == pytest.approx(
        {
            "pair_accuracy": 0.5,  # -1.5 > -5 but not -2 > -2
            "mean_margin": 1.75,
            "mean_chosen_score": -1.75,
            "mean_rejected_score": -3.5,
            "rewards/accuracy": 0.5,
            "rewards/margin": 0.125,
            "rewards/chosen": 0.125,
            "rewards/rejected": 0.0,
            "drift": 0.5 / 9,
        }
    )


def test_metrics_of_the_recipe_without_a_reference() -> None:
    batch, logprobs = make_batch(PAIRS)
    _, metrics = open_loss("dpo", reference="none").compute(batch, logprobs, {})
    assert list(metrics) == [
        "loss",
        "pair_accuracy",
        "mean_margin",
        "mean_chosen_score",
        "mean_rejected_score",
    ]
    assert metrics["mean_margin"] == 1.75


def test_running_numbers_move_by_their_momentum() -> None:
    state: dict[str, float] = {}
    loss = open_loss("bco", beta=1.0, momentum=0.75)
    loss.compute(*make_batch(PAIRS[:1]), state)
    assert state == {"delta": 0.0}
    _, metrics = loss.compute(*make_batch(PAIRS[1:]), state)
    assert state == {"delta": 0.0625}  # 0.75 * 0 + 0.25 * (-0.5 + 1.0) / 2
    assert metrics["delta"] == 0.0625


def test_beta_dpo_leaves_out_the_outlier_and_follows_the_margin() -> None:
    near = [PairLogprobs((-1.0,), (-1.0 - gap,), (-1.0,), (-1.0,)) for gap in (1.0, 1.5, 2.0, 2.5)]
    outlier = PairLogprobs((-1.0,), (-9.0,), (-1.0,), (-1.0,))
    batch, logprobs = make_batch([*near, outlier])
    value, metrics = open_loss("beta-dpo").compute(batch, logprobs, {"mean_margin": 2.0})
    center = 0.9 * 2.0 + 0.1 * (1.0 + 1.5 + 2.0 + 2.5 + 8.0) / 5
    beta = 0.1 * (1 + 0.6 * (1.75 - center))
    assert metrics["beta"] == pytest.approx(beta)
    assert metrics["kept"] == pytest.approx(0.8)
    expected = sum(-math.log(sigma(beta * gap)) for gap in (1.0, 1.5, 2.0, 2.5)) / 4
    assert float(value.detach()) == pytest.approx(expected)
    outlying = torch.autograd.grad(value, logprobs)[-1]
    assert not outlying.any()
