from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mint_train
from mint_train.batches.groups import Group
from mint_train.errors import ContractError, OptionError, RowError
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.testing import Check, conformance_checks, make_batch, make_group, make_logprobs
from mint_train_ranking import infonca, lipo, listmle, nca_list, plackett_luce
from mint_train_ranking.infonca import InfoNCAOptions
from mint_train_ranking.listmle import ListMLEOptions
from mint_train_ranking.lists import ranking_metrics
from mint_train_ranking.plackett_luce import PlackettLuceOptions, plackett_luce_nll
from mint_train_ranking.rows import FORMS

ReadLosses = Callable[[Path], list[float]]

LOSSES = ["plackett-luce", "listmle", "lipo", "infonca", "nca-list"]


def labels(count: int) -> list[dict[str, float]]:
    return [{"label": 1 - rank / (count - 1)} for rank in range(count)]


def nll(scores: list[float]) -> float:
    """Write -log P(ranking) as the paper does, rank by rank."""
    total = 0.0
    for rank, score in enumerate(scores):
        total -= math.log(math.exp(score) / sum(math.exp(other) for other in scores[rank:]))
    return total


def lambda_loss(scores: list[float], psi: list[float]) -> float:
    """Write the lambda loss as the paper does, pair by pair."""
    rank = {
        index: rank
        for rank, index in enumerate(sorted(range(len(scores)), key=lambda i: -scores[i]), start=1)
    }
    total = 0.0
    for i, one in enumerate(scores):
        for j, other in enumerate(scores):
            if psi[i] > psi[j]:
                gain = abs((2 ** psi[i] - 1) - (2 ** psi[j] - 1))
                discount = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
                total += gain * discount * math.log(1 + math.exp(-(one - other)))
    return total


THREE, TWO = [0.7, -0.2, 1.1], [0.4, 0.9]
"""Log-ratios of a list of three and one of two."""


def two_lists() -> tuple[mint_train.Batch, list[torch.Tensor]]:
    """Two lists whose policy has the log-ratios THREE and TWO to the reference."""
    groups, policy = [], []
    for ratios in (THREE, TWO):
        ids = [[10 + rank, 20] for rank in range(len(ratios))]
        reference = [[-2.0, -1.0 - rank] for rank in range(len(ratios))]
        groups.append(make_group(ids, labels(len(ratios)), reference))
        policy += [[own[0] + ratio, own[1]] for own, ratio in zip(reference, ratios, strict=True)]
    return make_batch(*groups), make_logprobs(policy)


def test_plackett_luce_by_hand() -> None:
    batch, policy = two_lists()
    value, metrics = plackett_luce.compute_loss(batch, policy, PlackettLuceOptions(beta=0.5))
    expected = (nll([0.5 * ratio for ratio in THREE]) + nll([0.5 * ratio for ratio in TWO])) / 2
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert metrics == {
        "top1_accuracy": 0.0,
        "pair_accuracy": pytest.approx((1 / 3 + 0) / 2),
        "mean_margin": pytest.approx(0.5 * ((0.7 - 1.1) + (0.4 - 0.9)) / 2),
    }


def test_lists_of_two_are_dpo() -> None:
    scores = torch.tensor([0.3, -0.4, 2.0, 2.5], dtype=torch.float64)
    value = plackett_luce_nll(scores, torch.tensor([2, 2])).mean()
    margins = scores[::2] - scores[1::2]
    assert value.item() == pytest.approx(float(-torch.nn.functional.logsigmoid(margins).mean()))


def test_listmle_by_hand() -> None:
    group = make_group([[3, 4], [5], [6, 7, 8]], labels(3))
    policy = make_logprobs([[-1.0, -2.0], [-0.5], [-3.0, -1.0, -2.0]])
    value, _ = listmle.compute_loss(make_batch(group), policy, ListMLEOptions(beta=2.0))
    scores = [2 * -1.5, 2 * -0.5, 2 * -2.0]
    assert value.item() == pytest.approx(nll(scores))
    first_only, _ = listmle.compute_loss(make_batch(group), policy, ListMLEOptions(beta=2.0, top_k=1))
    assert first_only.item() == pytest.approx(-scores[0] + math.log(sum(map(math.exp, scores))))


def test_listmle_against_a_reference() -> None:
    group = make_group([[3, 4], [5]], labels(2), [[-1.0, -1.0], [-1.0]])
    policy = make_logprobs([[-1.0, -2.0], [-0.5]])
    value, _ = listmle.compute_loss(make_batch(group), policy, ListMLEOptions(reference="initial"))
    assert value.item() == pytest.approx(nll([-0.5, 0.5]))


def test_lipo_by_hand() -> None:
    batch, policy = two_lists()
    value, _ = lipo.compute_loss(batch, policy, PlackettLuceOptions(beta=0.5))
    scores = [[0.5 * ratio for ratio in ratios] for ratios in (THREE, TWO)]
    expected = (lambda_loss(scores[0], [1.0, 0.5, 0.0]) + lambda_loss(scores[1], [1.0, 0.0])) / 2
    assert value.item() == pytest.approx(expected, abs=1e-12)


SCORES = [3.0, 2.5, -1.0], [0.25, 0.0]
"""What a judge gave the completions of the two lists."""


def scored_lists() -> tuple[mint_train.Batch, list[torch.Tensor]]:
    """The two lists, with the scores of a judge."""
    batch, policy = two_lists()
    groups = [
        Group(
            group.datums,
            group.source,
            tuple({**said, "score": score} for said, score in zip(group.attached, scores, strict=True)),
            group.reference_logprobs,
        )
        for group, scores in zip(batch.groups, SCORES, strict=True)
    ]
    return make_batch(*groups), policy


def softmax(numbers: list[float]) -> list[float]:
    total = sum(map(math.exp, numbers))
    return [math.exp(number) / total for number in numbers]


def log_sigmoid(number: float) -> float:
    return -math.log(1 + math.exp(-number))


def test_infonca_by_hand() -> None:
    batch, policy = scored_lists()
    value, _ = infonca.compute_loss(batch, policy, InfoNCAOptions(beta=0.5, temperature=2.0))
    expected = 0.0
    for ratios, scores in zip((THREE, TWO), SCORES, strict=True):
        weights = softmax([score / 2 for score in scores])
        model = softmax([0.5 * ratio for ratio in ratios])
        expected -= sum(weight * math.log(own) for weight, own in zip(weights, model, strict=True)) / 2
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_nca_on_lists_by_hand() -> None:
    batch, policy = scored_lists()
    value, _ = nca_list.compute_loss(batch, policy, InfoNCAOptions(beta=0.5, temperature=2.0))
    expected = 0.0
    for ratios, scores in zip((THREE, TWO), SCORES, strict=True):
        for weight, ratio in zip(softmax([score / 2 for score in scores]), ratios, strict=True):
            expected -= weight * log_sigmoid(0.5 * ratio) / 2
            expected -= log_sigmoid(-0.5 * ratio) / len(ratios) / 2
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_with_the_defaults_the_best_completion_gets_all_the_weight() -> None:
    batch, policy = scored_lists()
    value, _ = infonca.compute_loss(batch, policy, InfoNCAOptions(beta=0.5))
    best = [softmax([0.5 * ratio for ratio in ratios])[0] for ratios in (THREE, TWO)]
    assert value.item() == pytest.approx(-sum(map(math.log, best)) / 2, abs=1e-12)


def test_metrics_of_lists_in_order() -> None:
    metrics = ranking_metrics(torch.tensor([3.0, 2.0, 1.0, 5.0, 4.0]), torch.tensor([3, 2]))
    assert metrics == {"top1_accuracy": 1.0, "pair_accuracy": 1.0, "mean_margin": 1.5}


@pytest.mark.parametrize("check", [check for name in LOSSES for check in conformance_checks(name)], ids=str)
def test_conformance(check: Check) -> None:
    check()


def test_rows_are_put_best_first() -> None:
    ranked = FORMS.read({"prompt": "a", "completions": ["x", "y", "z"], "scores": [2, 10, 6]}).example
    assert ranked.completions == ("y", "z", "x")
    assert ranked.labels == pytest.approx((1.0, 0.5, 0.0))
    assert ranked.grades == (10, 6, 2)
    assert FORMS.read({"prompt": "a", "completions": ["x", "y", "z"]}).example.labels == (1.0, 0.5, 0.0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"completions": ["x"]}, "completions"),
        ({"completions": "x"}, "completions"),
        ({"completions": ["x", ""]}, "completions[1]"),
        ({"completions": ["x", "y", "x"]}, "completions"),
        ({"scores": [1.0]}, "scores"),
        ({"scores": 1.0}, "scores"),
        ({"scores": [1.0, "much"]}, "scores[1]"),
        ({"scores": [1.0, float("nan")]}, "scores[1]"),
        ({"scores": [1.0, 1.0]}, "scores"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_a_bad_row_names_its_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(RowError) as raised:
        FORMS.read({"prompt": "a", "completions": ["x", "y"]} | change)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (make_group([[3]], [{"label": 1.0}]), "a list is 2 or more"),
        (make_group([[3], []], labels(2)), "completion 1 has no trained token"),
        (make_group([[3], [4], [3]], labels(3)), "completion 2 is equal to completion 0"),
        (make_group([[3], [4]], labels(2)[::-1]), "do not fall"),
        (make_group([[3], [4]]), "do not fall"),
    ],
)
def test_the_contract(broken: mint_train.Batch, problem: str) -> None:
    good = make_group([[3], [4]], labels(2))
    loss = Loss.of(load_plugin("plackett-luce"))
    loss.check_batch(make_batch(good))
    with pytest.raises(ContractError, match=f"rows:1: list 1.*{problem}"):
        loss.check_batch(make_batch(good, broken))


def test_completions_of_two_prompts_are_no_list() -> None:
    one, other = make_group([[3], [4]], labels(2)), make_group([[5], [6]], labels(2), prompt=[1, 9])
    mixed = Group((one.datums[0], other.datums[0]), one.source, one.attached)
    with pytest.raises(ContractError, match="do not share their prompt"):
        Loss.of(load_plugin("lipo")).check_batch(make_batch(mixed))


def test_only_listmle_goes_without_a_reference() -> None:
    assert Loss.of(load_plugin("listmle")).reference is None
    assert Loss.of(load_plugin("lipo")).reference == "initial"
    with pytest.raises(OptionError, match="defined against a reference"):
        Loss.of(load_plugin("plackett-luce"), {"reference": "none"})


@pytest.mark.parametrize("name", LOSSES)
def test_training_lowers_the_loss(name: str, tmp_path: Path, read_losses: ReadLosses) -> None:
    result = mint_train.train(name, steps=4, lr=1e-2, backend="local", output=tmp_path / "run")
    losses = read_losses(tmp_path / "run")
    assert losses[-1] < losses[0] - 0.01
    assert result.metrics["pair_accuracy"] > 0.5
