"""The losses that need the whole vocabulary: on whole logits, by hand, and in whole runs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_batches import PROMPT, PairLogprobs, make_batch, open_loss
from torch import Tensor

from mint_train import evaluate, resume, train
from mint_train.errors import LossError, OptionError, PluginError
from mint_train.losses.loss import Loss
from mint_train.plugin import loss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.testing import check_loss

TOLERANCE = 1e-10
WORDS = 11
LENGTHS = ((3, 5), (4, 1), (2, 2))
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("tdpo", {}),
    ("tdpo", {"variant": "tdpo1", "beta": 0.4}),
    ("tdpo", {"alpha": 1.7}),
    ("mallowspo", {}),
    ("mallowspo", {"variant": "phi", "beta": 0.8}),
    ("wpo", {"alignment": True, "beta": 0.3}),
]


def drawn(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Draw the logits of each token of each pair: float64 `[tokens, WORDS]` of chosen and rejected."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(length, WORDS, generator=generator, dtype=torch.float64) for length in pair)
        for pair in LENGTHS
    ]


def targets(length: int) -> Tensor:
    return torch.arange(length) * 2 % WORDS


def picked(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[torch.arange(len(logits)), targets(len(logits))]


def quantities(policy: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Compute by definition what a backend gives of one completion's logits."""
    p, q = policy.softmax(-1), reference.softmax(-1)
    return {
        "forward_kl": (q * (q.log() - p.log())).sum(-1),
        "log_expected_prob": p.square().sum(-1).log(),
        "reference_entropy_share": -(q * q.log()).sum(-1) / math.log(WORDS),
    }


def ours(
    name: str, options: dict[str, object], policy: list[tuple[Tensor, Tensor]], reference: list[Any]
) -> Tensor:
    """Compute a loss from logprobs and quantities of given logits, with their graph."""
    pairs = [
        PairLogprobs(*(picked(side).tolist() for sides in both for side in sides))
        for both in zip(policy, reference, strict=True)
    ]
    batch, _ = make_batch(pairs)
    blank = torch.full((len(PROMPT) - 1,), -9.0, dtype=torch.float64)  # where nothing is trained
    sides = [one for pair in zip(policy, reference, strict=True) for one in zip(*pair, strict=True)]
    logprobs = [torch.cat([blank, picked(own)]) for own, _ in sides]
    found = [quantities(own, other) for own, other in sides]
    given = {
        quantity: torch.cat([part for one in found for part in (blank, one[quantity])])
        for quantity in found[0]
    }
    return open_loss(name, **options).compute(batch, logprobs, {}, given)[0]


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def by_paper(name: str, o: dict[str, Any], w: Tensor, l: Tensor, rw: Tensor, rl: Tensor) -> Tensor:  # noqa: E741
    """Write one pair's loss down from its logits, as the authors' code does, and nothing shared with ours."""
    hw, hl = (picked(own).sum() - picked(other).sum() for own, other in ((w, rw), (l, rl)))

    def divergence(own: Tensor, other: Tensor) -> Tensor:
        return torch.nn.functional.kl_div(
            own.log_softmax(-1), other.log_softmax(-1), reduction="sum", log_target=True
        )

    if name == "tdpo":
        beta, first = o.get("beta", 0.1), o.get("variant") == "tdpo1"
        chosen, rejected = divergence(w, rw), divergence(l, rl)
        gap = rejected - chosen if first else o.get("alpha", 0.5) * (rejected - chosen.detach())
        return -torch.log(sigma(beta * (hw - hl - gap)))
    if name == "wpo":
        adjusted = [picked(own) - torch.logsumexp(2 * own.log_softmax(-1), -1) for own in (w, l)]
        weight = torch.exp(adjusted[0].mean() + adjusted[1].mean()).clamp(max=1).detach()
        return -weight * torch.log(sigma(o["beta"] * (hw - hl)))
    entropies = [torch.distributions.Categorical(logits=own).entropy().mean() for own in (rw, rl)]
    d = -0.29 * torch.log((entropies[0] + entropies[1]) / 2 / math.log(WORDS))
    z = o.get("beta", 0.1) * (hw - hl)
    if o.get("variant") != "phi":
        return -torch.log(sigma(d * z))
    s = z.abs()
    g = (s + 1) / (1 - torch.exp(-d * (s + 1))) - s / (1 - torch.exp(-d * s))
    return -torch.log(g if z > 0 else 1 - g)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda part: str(part))
def test_it_is_the_formula_on_whole_logits(name: str, options: dict[str, object]) -> None:
    policy, reference = drawn(1), drawn(2)
    leaves = [side.requires_grad_() for pair in policy for side in pair]
    value = ours(name, options, policy, reference)
    each = [by_paper(name, options, *own, *other) for own, other in zip(policy, reference, strict=True)]
    expected = torch.stack(each).mean()
    torch.testing.assert_close(value, expected, rtol=TOLERANCE, atol=TOLERANCE)
    found, wanted = (torch.autograd.grad(one, leaves) for one in (value, expected))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=TOLERANCE, atol=TOLERANCE)


def worked(name: str, given: dict[str, Sequence[float]], **options: object) -> float:
    """Compute a loss of one pair of two and of one token: h is 1 and -0.5, p -1 and -0.5."""
    pair = PairLogprobs((-0.75, -0.25), (-0.5,), (-1.0, -1.0), (0.0,))
    batch, logprobs = make_batch([pair])
    blank = [5.0] * (len(PROMPT) - 1)
    packed = {
        name: torch.tensor([*blank, *values[:2], *blank, *values[2:]], dtype=torch.float64)
        for name, values in given.items()
    }
    return float(open_loss(name, **options).compute(batch, logprobs, {}, packed)[0].detach())


def test_the_values_are_those_worked_by_hand() -> None:
    divergences = {"forward_kl": (0.25, 0.75, 0.5)}  # 1 for the chosen completion, 0.5 for the rejected
    # the margin of log-ratios is 1.5, and the divergences differ by -0.5
    assert worked("tdpo", divergences) == pytest.approx(-math.log(1 / (1 + math.exp(-0.1 * 1.75))))
    assert worked("tdpo", divergences, variant="tdpo1") == pytest.approx(math.log(1 + math.exp(-0.1 * 2.0)))
    shares = {"reference_entropy_share": (0.25, 0.75, 0.25)}  # means of 0.5 and 0.25: 0.375 for the pair
    d = 0.29 * math.log(8 / 3)
    assert worked("mallowspo", shares) == pytest.approx(math.log(1 + math.exp(-d * 0.15)))
    g = 1.15 / (1 - math.exp(-d * 1.15)) - 0.15 / (1 - math.exp(-d * 0.15))
    assert worked("mallowspo", shares, variant="phi") == pytest.approx(-math.log(g))
    # means of -0.5 and -0.5 for the completions, of -1 and -0.25 for a token drawn: exp(-1 + 1.25), at most 1
    expected = {"log_expected_prob": (-0.5, -1.5, -0.25)}
    assert worked("wpo", expected, alignment=True) == pytest.approx(math.log(1 + math.exp(-0.01 * 1.5)))
    less = {"log_expected_prob": (-0.25, -0.25, -0.25)}
    assert worked("wpo", less, alignment=True) == pytest.approx(
        math.exp(-0.5) * math.log(1 + math.exp(-0.015))
    )


def test_phi_is_the_share_of_rankings_that_agree() -> None:
    """For ranks that are whole, g is the probability under the Mallows model, counted out."""
    from mint_train_preferences.mallowspo import log_agreement

    d, items = 0.4, 5
    weights = {order: math.exp(-d * inversions(order)) for order in itertools.permutations(range(items))}
    for apart in range(1, items):
        agreeing = sum(w for order, w in weights.items() if order.index(0) < order.index(apart))
        share = agreeing / sum(weights.values())
        gaps = torch.tensor([float(apart), -float(apart)], dtype=torch.float64)
        found = log_agreement(gaps, torch.full((2,), d, dtype=torch.float64)).exp()
        assert found.tolist() == pytest.approx([share, 1 - share], rel=1e-9)


def inversions(order: Sequence[int]) -> int:
    return sum(a > b for a, b in itertools.combinations(order, 2))


def test_phi_trains_from_where_policy_and_reference_agree() -> None:
    from mint_train_preferences.mallowspo import log_agreement

    for gap in (0.0, 1e-9, 50.0, -1e5, 1e5):
        z = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(log_agreement(z, torch.tensor([0.7], dtype=torch.float64)).sum(), z)
        assert math.isfinite(float(slope))
        assert float(slope) > 0 or gap > 40


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda part: str(part))
def test_it_conforms_with_any_options(name: str, options: dict[str, object]) -> None:
    failed = [result for result in check_loss(name, options=options) if not result.passed]
    assert not failed


def test_a_loss_that_is_not_given_what_it_needs_says_so() -> None:
    batch, logprobs = make_batch([PairLogprobs((-1.0,), (-2.0,), (-1.0,), (-2.0,))])
    with pytest.raises(LossError, match='"tdpo" was not given forward_kl of the vocabulary'):
        open_loss("tdpo").compute(batch, logprobs, {})


def steps_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["metrics"] for line in lines]


def test_a_run_of_a_sum_accumulates_evaluates_and_resumes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "options": {"dpo.reference": "initial"},
        "backend": "local",
        "steps": 4,
        "batch_size": 2,
        "accumulate": 2,
        "eval_fraction": 0.25,
        "eval_every": 2,
        "save_every": 2,
        "lr": 1e-3,
        "progress": "quiet",
    }
    loss = "dpo+0.2*tdpo+0.1*wpo"
    whole = train(loss, output=tmp_path / "whole", **settings)
    figures = steps_of(tmp_path / "whole")
    assert figures[0]["kl/chosen"] == 0
    assert figures[-1]["kl/chosen"] > 0
    first, *_, last = whole.evaluations
    assert first.metrics["kl/rejected"] == 0
    assert last.metrics["kl/rejected"] > 0
    assert "kl/rejected" in last.intervals
    # the same from the finished run, whose policy is far from its reference by now
    assert evaluate(tmp_path / "whole").metrics == pytest.approx(last.metrics, abs=1e-6)
    train(loss, output=tmp_path / "half", **(settings | {"steps": 2}))
    resume(tmp_path / "half", steps=4)
    # the reference is where the run began, not where it was resumed
    assert steps_of(tmp_path / "half") == figures


def test_an_adapter_that_a_run_begins_with_is_its_reference(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "backend": "local",
        "steps": 2,
        "batch_size": 2,
        "lr": 1e-2,
        "progress": "quiet",
    }
    train("dpo", output=tmp_path / "first", **settings)
    train("tdpo", output=tmp_path / "second", from_checkpoint=str(tmp_path / "first"), **settings)
    before, after = steps_of(tmp_path / "second")
    assert before["kl/chosen"] == before["kl/rejected"] == 0
    assert after["kl/chosen"] > 0


@pytest.mark.parametrize("name", ["tdpo", "mallowspo", "wpo"])
def test_a_service_is_refused_before_the_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    monkeypatch.setenv("MINT_API_KEY", "sk-mint-none")
    monkeypatch.setenv("MINT_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(OptionError, match=f'the loss "{name}" needs .*: train with backend local'):
        train(name, backend="mint", model="some/model", output=tmp_path / "run", progress="quiet")
    assert not (tmp_path / "run").exists()
    status, _, problem = run_cli("--loss", name, "--backend", "mint", "--model", "some/model", "--dry-run")
    assert status == 2
    assert f'the loss "{name}" needs' in problem
    assert problem.endswith("--backend local\n")


def test_another_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match='"reference": other'):
        train("tdpo", options={"reference": "other"}, output=tmp_path / "run", progress="quiet")
    own = loss(extends="dpo", reference="other", vocabulary=("forward_kl",))(unfinished)
    with pytest.raises(OptionError, match="takes the distributions of policy and reference at once"):
        train(own, backend="local", output=tmp_path / "run", progress="quiet")


def unfinished(logprobs: list[Tensor]) -> Tensor:
    """A loss that is refused before it is computed."""
    return logprobs[0].sum()


def test_a_quantity_that_does_not_exist_is_refused() -> None:
    own = loss(extends="dpo", vocabulary=("perplexity",))(unfinished)
    with pytest.raises(
        PluginError, match=r"vocabulary .* must return a collection of names out of entropy, "
    ):
        _ = Loss.of(NamedPlugin("mine", own, "here")).vocabulary
