"""Each loss against its paper's formula, written a second time: pair by pair, nothing shared, float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pair_batches import (
    FAMILY,
    JUNK,
    completion_part,
    make_batch,
    open_loss,
    random_pairs,
    value_and_gradients,
)
from torch import Tensor, exp, log

TOLERANCE = 1e-10


@dataclass(frozen=True)
class PlainPair:
    """One pair: policy and reference logprobs per token, and scores."""

    w: Tensor
    l: Tensor  # noqa: E741 - the papers' letter
    ref_w: Tensor
    ref_l: Tensor
    score_w: float
    score_l: float
    p_chosen: float
    tie: bool
    v_w: Tensor
    v_l: Tensor

    @property
    def hw(self) -> Tensor:
        return self.w.sum() - self.ref_w.sum()

    @property
    def hl(self) -> Tensor:
        return self.l.sum() - self.ref_l.sum()

    @property
    def nw(self) -> int:
        return len(self.w)

    @property
    def nl(self) -> int:
        return len(self.l)


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + exp(-x))


def mean(values: list[Tensor]) -> Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64)) / len(values)


def each(formula: Callable[[PlainPair], Tensor]) -> Callable[[list[PlainPair]], Tensor]:
    return lambda pairs: mean([formula(pair) for pair in pairs])


def chosen_tokens(pairs: list[PlainPair]) -> Tensor:
    return torch.cat([pair.w for pair in pairs])


def chosen_ratios(pairs: list[PlainPair]) -> Tensor:
    return torch.cat([pair.w - pair.ref_w for pair in pairs])


def token_ratios(pairs: list[PlainPair]) -> Tensor:
    return torch.cat([part for p in pairs for part in (p.w - p.ref_w, p.l - p.ref_l)])


def focal(p: PlainPair) -> Tensor:
    won = sigma(0.1 * (p.hw - p.hl))
    return -(won**0.05) * log(won)


def exo(p: PlainPair) -> Tensor:
    won = sigma(0.1 * (p.hw - p.hl))
    return won * log(won / 0.999) + (1 - won) * log((1 - won) / 0.001)


def discopop(p: PlainPair) -> Tensor:
    z = 0.05 * (p.hw - p.hl)
    blend = sigma(z / 0.05)
    return (1 - blend) * log(1 + exp(-z)) + blend * exp(-z)


def orpo(p: PlainPair) -> Tensor:
    pw, pl = exp(p.w.sum() / p.nw), exp(p.l.sum() / p.nl)
    odds_ratio = (pw / (1 - pw)) / (pl / (1 - pl))
    return -p.w.sum() / p.nw - 0.1 * log(sigma(log(odds_ratio)))


def ld(p: PlainPair) -> Tensor:
    m = min(p.nw, p.nl)
    w = (p.w - p.ref_w)[:m].sum() + 0.5 * (p.w - p.ref_w)[m:].sum()
    lost = (p.l - p.ref_l)[:m].sum() + 0.5 * (p.l - p.ref_l)[m:].sum()
    return -log(sigma(0.1 * (w - lost)))


def d2po(p: PlainPair) -> Tensor:
    w = sum((p.w[t] - p.ref_w[t]) * 0.98**t for t in range(p.nw))
    lost = sum((p.l[t] - p.ref_l[t]) * 0.98**t for t in range(p.nl))
    return -log(sigma(0.1 * (w - lost)))


def aot(pairs: list[PlainPair]) -> Tensor:
    policy = sorted((p.w.sum() - p.l.sum() for p in pairs), key=Tensor.item)
    reference = sorted((p.ref_w.sum() - p.ref_l.sum() for p in pairs), key=Tensor.item)
    return mean([-log(sigma(0.01 * (a - b))) for a, b in zip(policy, reference, strict=True)])


def aot_unpaired(pairs: list[PlainPair]) -> Tensor:
    chosen = sorted((p.hw for p in pairs), key=Tensor.item)
    rejected = sorted((p.hl for p in pairs), key=Tensor.item)
    return mean([-log(sigma(0.01 * (a - b))) for a, b in zip(chosen, rejected, strict=True)])


def bco(pairs: list[PlainPair]) -> Tensor:
    delta = mean([0.01 * (p.hw + p.hl) / 2 for p in pairs]).detach()
    return mean([-log(sigma(0.01 * p.hw - delta)) - log(sigma(-(0.01 * p.hl - delta))) for p in pairs])


def beta_dpo(pairs: list[PlainPair]) -> Tensor:
    gaps = [float((p.hw - p.hl).detach()) for p in pairs]
    center = sum(gaps) / len(gaps)
    nearest = sorted(range(len(gaps)), key=lambda i: abs(gaps[i] - center))[: int(0.8 * len(gaps))]
    beta = max(0.1 * (1 + 0.6 * (sum(gaps[i] for i in nearest) / len(nearest) - center)), 1e-3)
    return mean([-log(sigma(beta * (pairs[i].hw - pairs[i].hl))) for i in nearest])


def alpha_dpo(pairs: list[PlainPair]) -> Tensor:
    moved = [(p.hw / p.nw - p.hl / p.nl).detach() for p in pairs]
    center = mean(moved)
    spread = mean([(m - center) ** 2 for m in moved]).sqrt() + 1e-6
    return mean(
        [
            -log(sigma(2.5 * (p.w.mean() - p.l.mean() - 0.6 - 0.2 * (m - center) / spread)))
            for p, m in zip(pairs, moved, strict=True)
        ]
    )


def dpop(p: PlainPair) -> Tensor:
    penalty = 50 * torch.clamp(p.ref_w.sum() - p.w.sum(), min=0)
    return -log(sigma(0.3 * (p.hw - p.hl - penalty)))


def wpo(p: PlainPair) -> Tensor:
    weight = (exp(p.w.mean()) * exp(p.l.mean())).detach()
    return -weight * log(sigma(0.01 * (p.hw - p.hl)))


def coin_kl(p: Tensor, q: Tensor) -> Tensor:
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


def gaps(p: PlainPair, beta: float = 0.2) -> tuple[Tensor, Tensor]:
    """What the scores and what the policy say of a pair, as probabilities."""
    return sigma(torch.tensor(p.score_w - p.score_l, dtype=torch.float64)), sigma(beta * (p.hw - p.hl))


def rao_kupper(p: PlainPair) -> Tensor:
    won, lost = exp(0.1 * p.hw), exp(0.1 * p.hl)
    if p.tie:
        return -log((3**2 - 1) * won * lost / ((won + 3 * lost) * (lost + 3 * won)))
    return -log(won / (won + 3 * lost))


def davidson(p: PlainPair) -> Tensor:
    won, lost = exp(0.1 * p.hw), exp(0.1 * p.hl)
    tied = 2 * (won * lost) ** 0.5
    return -log((tied if p.tie else won) / (won + lost + tied))


def gamma_po(pairs: list[PlainPair]) -> Tensor:
    """The authors' mirror descent, on probabilities."""
    found = torch.stack([10 * (p.w.mean() - p.l.mean()) for p in pairs])
    held, n = found.detach(), len(pairs)
    q = torch.full((n,), 1 / n, dtype=torch.float64)
    for _ in range(20):
        margins = 4 * n * q
        slope = 10 * (1 + log(n * q)) + 4 * n / (1 + exp(held - margins)) / n
        q = q * exp(-0.05 * slope)
        q = q / q.sum()
    return -log(sigma(found - margins)).mean()


def tis(p: PlainPair) -> Tensor:
    return -log(sigma(0.1 * ((p.v_w * (p.w - p.ref_w)).sum() - (p.v_l * (p.l - p.ref_l)).sum())))


FORMULAS: dict[str, Callable[[list[PlainPair]], Tensor]] = {
    "dpo": each(lambda p: -log(sigma(p.hw - p.hl))),
    "cdpo": each(lambda p: -0.9 * log(sigma(0.1 * (p.hw - p.hl))) - 0.1 * log(sigma(0.1 * (p.hl - p.hw)))),
    "robust": each(
        lambda p: (-0.9 * log(sigma(0.1 * (p.hw - p.hl))) + 0.1 * log(sigma(0.1 * (p.hl - p.hw)))) / 0.8
    ),
    "exo": each(exo),
    "ropo": each(
        lambda p: (
            4 * 14 / 15**2 * -log(sigma(0.1 * (p.hw - p.hl))) + 4 * 14**2 / 15**2 * sigma(0.1 * (p.hl - p.hw))
        )
    ),
    "dr-dpo": lambda pairs: -log(mean([sigma(0.1 * (p.hw - p.hl)) for p in pairs])),
    "hinge": each(lambda p: torch.clamp(1 - 0.1 * (p.hw - p.hl), min=0)),
    "discopop": each(discopop),
    "focalpo": each(focal),
    "gpo": each(lambda p: torch.clamp(1 - 0.1 * (p.hw - p.hl), min=0) ** 2),
    "ipo": each(lambda p: (p.hw / p.nw - p.hl / p.nl - 5) ** 2),
    "sppo": each(lambda p: (p.hw - 500) ** 2 + (p.hl + 500) ** 2),
    "cal-dpo": each(lambda p: -log(sigma(p.hw - p.hl)) + (p.hw - 500) ** 2 + (p.hl + 500) ** 2),
    "apo-zero": each(lambda p: 1 - sigma(0.1 * p.hw) + sigma(0.1 * p.hl)),
    "apo-down": each(lambda p: sigma(0.1 * p.hw) + 1 - sigma(0.1 * (p.hw - p.hl))),
    "nca": each(
        lambda p: -log(sigma(0.01 * p.hw)) - 0.5 * log(sigma(-0.01 * p.hw)) - 0.5 * log(sigma(-0.01 * p.hl))
    ),
    "bco": bco,
    "npo": each(lambda p: 2 / 0.1 * log(1 + exp(p.l.sum() - p.ref_l.sum()) ** 0.1)),
    "aot": aot,
    "aot-unpaired": aot_unpaired,
    "f-dpo": each(
        lambda p: (
            -log(sigma(0.1 * (log(2 * exp(p.hw) / (exp(p.hw) + 1)) - log(2 * exp(p.hl) / (exp(p.hl) + 1)))))
        )
    ),
    "chi-po": each(lambda p: -log(sigma(0.05 * (exp(p.hw) + p.hw - exp(p.hl) - p.hl)))),
    "dpo-norm": each(lambda p: -log(sigma(5 * (p.hw / p.nw - p.hl / p.nl)))),
    "r-dpo": each(lambda p: -log(sigma(0.1 * (p.hw - p.hl) + 0.05 * p.nw - 0.05 * p.nl))),
    "sampo": each(lambda p: -log(sigma(0.1 * min(p.nw, p.nl) * (p.hw / p.nw - p.hl / p.nl)))),
    "ld-dpo": each(ld),
    "d2po": each(d2po),
    "dpo-positive": each(dpop),
    "dpo-shift": each(lambda p: -log(sigma(0.01 * p.hw - 0.7 * 0.01 * p.hl))),
    "minor-dpo": each(lambda p: -log(sigma(0.1 * p.hw - 0.1 * torch.clamp(p.hl, min=0)))),
    "rpo": each(lambda p: -log(sigma(0.1 * (p.hw - p.hl))) - p.w.sum() / p.nw),
    "sft": lambda pairs: -chosen_tokens(pairs).mean(),
    "dft": lambda pairs: -(chosen_tokens(pairs).exp().detach() * chosen_tokens(pairs)).mean(),
    "asft": lambda pairs: (
        -(chosen_tokens(pairs).exp().detach() * chosen_tokens(pairs)).mean()
        + 0.1 * (exp(-chosen_ratios(pairs)) - 1 + chosen_ratios(pairs)).mean()
    ),
    "kl": lambda pairs: (exp(-token_ratios(pairs)) - 1 + token_ratios(pairs)).mean(),
    "squared-log-ratio": lambda pairs: (token_ratios(pairs) ** 2).mean(),
    "simpo": each(lambda p: -log(sigma(2 * p.w.sum() / p.nw - 2 * p.l.sum() / p.nl - 1))),
    "alphapo": each(
        lambda p: (
            -log(
                sigma(
                    2.5 * (1 - exp(p.w.mean()) ** -0.25) / 0.25
                    - 2.5 * (1 - exp(p.l.mean()) ** -0.25) / 0.25
                    - 0.1
                )
            )
        )
    ),
    "cpo": lambda pairs: (
        mean([-log(sigma(0.1 * (p.w.sum() - p.l.sum()))) for p in pairs]) - chosen_tokens(pairs).mean()
    ),
    "orpo": each(orpo),
    "simper": each(lambda p: -exp(p.w.mean()) + exp(p.l.mean())),
    "simnpo": each(lambda p: -2 / 2.5 * log(sigma(-2.5 * p.l.mean()))),
    "beta-dpo": beta_dpo,
    "alpha-dpo": alpha_dpo,
    "wpo": each(wpo),
    "odpo": each(
        lambda p: (
            -log(
                sigma(
                    0.1 * (p.hw - p.hl) - torch.log(torch.tensor(p.score_w - p.score_l, dtype=torch.float64))
                )
            )
        )
    ),
    "repo": each(lambda p: torch.clamp(0.6 - p.w.mean() + p.l.mean(), min=0)),
    "h-dpo": each(
        lambda p: -log(sigma(0.1 * (0.9 * (p.w.sum() - p.l.sum()) - p.ref_w.sum() + p.ref_l.sum())))
    ),
    "gamma-po": gamma_po,
    "reward-aware-rpo": each(lambda p: coin_kl(*gaps(p))),
    "mappo": each(lambda p: -log(sigma(0.1 * (p.hw - (p.score_w - p.score_l) * p.hl)))),
    "gdpo": each(lambda p: -log(sigma(0.1 * (2 * p.p_chosen - 1) * (p.hw - p.hl)))),
    "dpo-rk": each(rao_kupper),
    "dpo-davidson": each(davidson),
    "tis-dpo": each(tis),
    "rebel": each(lambda p: (p.hw - p.hl - (p.score_w - p.score_l)) ** 2),
}

VARIANTS: list[tuple[str, dict[str, object], Callable[[list[PlainPair]], Tensor]]] = [
    ("ipo", {"length_normalized": False}, each(lambda p: (p.hw - p.hl - 5) ** 2)),
    ("dpo", {"reference": "none", "beta": 0.1}, each(lambda p: -log(sigma(0.1 * (p.w.sum() - p.l.sum()))))),
    (
        "f-dpo",
        {"divergence": "forward-kl"},
        each(lambda p: -log(sigma(0.1 * (exp(-p.hl) - exp(-p.hw))))),
    ),
    (
        "f-dpo",
        {"divergence": "alpha", "alpha": 0.25},
        each(lambda p: -log(sigma(0.1 * ((1 - exp(p.hw) ** -0.25) - (1 - exp(p.hl) ** -0.25)) / 0.25))),
    ),
    (
        "chi-po",
        {"reward_max": 0.02},
        each(lambda p: -log(sigma((0.05 * (exp(p.hw) + p.hw - exp(p.hl) - p.hl)).clamp(-0.04, 0.04)))),
    ),
    ("gpo", {"function": "savage"}, each(lambda p: 1 / (1 + exp(0.1 * (p.hw - p.hl))) ** 2)),
    ("gpo", {"function": "squared"}, each(lambda p: (0.1 * (p.hw - p.hl) - 1) ** 2)),
    ("alphapo", {"alpha": 0.0}, each(lambda p: -log(sigma(2.5 * (p.w.mean() - p.l.mean()) - 0.1)))),
    ("reward-aware-rpo", {"distance": "forward-kl"}, each(lambda p: coin_kl(*reversed(gaps(p))))),
    (
        "reward-aware-rpo",
        {"distance": "squared", "eta": 0.5, "beta": 0.1},
        each(lambda p: (0.1 * (p.hw - p.hl) - 0.5 * (p.score_w - p.score_l)) ** 2),
    ),
    (
        "odpo",
        {"scale": "linear"},
        each(lambda p: -log(sigma(0.1 * (p.hw - p.hl) - (p.score_w - p.score_l)))),
    ),
]


def assert_agrees(
    name: str, options: dict[str, object], formula: Callable[[list[PlainPair]], Tensor]
) -> None:
    """Compare value and gradient of a loss with those of a formula, on pairs drawn at random."""
    drawn = random_pairs(torch.Generator().manual_seed(11), 9)
    batch, logprobs = make_batch(drawn)
    value, gradients = value_and_gradients(open_loss(name, **options), batch, logprobs)

    leaves = [
        torch.tensor(side, dtype=torch.float64, requires_grad=True)
        for p in drawn
        for side in (p.chosen, p.rejected)
    ]
    plain = [
        PlainPair(
            leaves[2 * number],
            leaves[2 * number + 1],
            torch.tensor(pair.reference_chosen, dtype=torch.float64),
            torch.tensor(pair.reference_rejected, dtype=torch.float64),
            *pair.scores,
            pair.p_chosen,
            pair.tie,
            *(torch.tensor(weights, dtype=torch.float64) for weights in pair.token_weights or ()),
        )
        for number, pair in enumerate(drawn)
    ]
    expected = formula(plain)
    expected_gradients = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)

    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=TOLERANCE, atol=TOLERANCE)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert not gradient[: len(gradient) - len(expected_gradient)].any(), f"{JUNK} in a prompt was seen"
        torch.testing.assert_close(
            completion_part(gradient), expected_gradient, rtol=TOLERANCE, atol=TOLERANCE
        )


@pytest.mark.parametrize("name", FAMILY)
def test_loss_is_its_papers_formula(name: str) -> None:
    assert name in FORMULAS, f"write the formula of {name} a second time"
    assert_agrees(name, {}, FORMULAS[name])


@pytest.mark.parametrize(
    ("name", "options", "formula"), VARIANTS, ids=[f"{name}-{options}" for name, options, _ in VARIANTS]
)
def test_variant_is_its_papers_formula(
    name: str, options: dict[str, object], formula: Callable[[list[PlainPair]], Tensor]
) -> None:
    assert_agrees(name, options, formula)
