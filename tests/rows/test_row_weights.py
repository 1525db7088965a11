"""The reserved field `weight`: read from any row, and counted in the batch's mean."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from few_rows import PAIRS, lines

import mint_train
from mint_train.batches.batch import Batch
from mint_train.batches.groups import Group
from mint_train.errors import LossError, PluginError, RowError, Source
from mint_train.losses.custom_loss import CustomLoss
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.authoring import loss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.rows.row_weights import split_weight
from mint_train.testing import make_batch, make_group, make_logprobs
from mint_train.training.evaluation import Measured, summarise

RunCli = Callable[..., Any]


def pair(weight: float) -> Group:
    return make_group([[3, 4], [5]], weight=weight)


def drawn(pairs: int) -> list[torch.Tensor]:
    """Logprobs of some pairs, each pair with another margin."""
    return make_logprobs([row for n in range(pairs) for row in ([-0.3 - n, -0.2], [-0.9])])


@pytest.mark.parametrize(
    ("row", "weight"),
    [
        ({}, None),
        ({"weight": 2}, 2.0),
        ({"weight": "0.5"}, 0.5),
        ({"weight": 0}, 0.0),
        ({"weight": None}, None),
    ],
)
def test_a_weight_is_taken_out_of_its_row(row: dict[str, object], weight: float | None) -> None:
    assert split_weight({"prompt": "a", **row}) == (weight, {"prompt": "a"})


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 1e100, 10**400, "heavy", True, [1]])
def test_a_wrong_weight_is_refused(value: object) -> None:
    with pytest.raises(RowError) as raised:
        split_weight({"weight": value})
    assert raised.value.field == "weight"


def test_the_mean_counts_each_group_by_its_weight() -> None:
    batch = make_batch(pair(1.0), pair(3.0))
    values, sizes = torch.tensor([2.0, 6.0]), torch.tensor([1, 4])
    assert batch.mean(values).item() == (2 + 3 * 6) / 4
    assert batch.mean(values, sizes).item() == pytest.approx((2 + 3 * 6) / (1 + 3 * 4))
    with pytest.raises(PluginError, match="2 groups"):
        batch.mean(torch.ones(4))


def test_a_dry_run_names_the_batch_that_would_stop_the_run(
    run_cli: RunCli, write_rows: Callable[..., Path], starter_model_folder: Path
) -> None:
    rows = [{**PAIRS[0], "chosen": f"It is {number}.", "weight": 0} for number in range(5)]
    data = write_rows([{**rows[0], "weight": 1}, *rows[1:]], "weighed.jsonl")
    given = ("--model", starter_model_folder, "--loss", "dpo", "--batch-size", 2)
    found = run_cli(*given, "--data", data, "--dry-run")
    refused = run_cli(*given, "--data", data, "--output", "run")
    assert (found.status, refused.status) == (2, 1)
    (line,) = [line for line in found.err.splitlines() if "a step would stop this run" in line]
    assert re.search(r"run: .*weighed\.jsonl:\d and 1 other row of its batch have the weight 0", line)
    assert refused.err.strip().endswith(line.partition("would stop this run: ")[2])
    held = write_rows(rows[:1], "held.jsonl")
    trained = write_rows([PAIRS[0]], "trained.jsonl")
    found = run_cli(*given, "--data", trained, "--eval-data", held, "--dry-run")
    assert found.status == 2
    assert re.search("an evaluation would stop this run: .*held.jsonl:1 has the weight 0, so", found.err)
    assert run_cli(*given, "--data", trained, "--eval-data", trained, "--dry-run").status == 0


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equal_weights_change_nothing_to_the_bit(weight: float) -> None:
    values = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert make_batch(*[pair(weight)] * 7).mean(values).item() == values.mean().item()


def test_the_batches_of_a_step_count_by_their_weights() -> None:
    dpo = open_loss("dpo", {})
    whole = CustomLoss(dpo, [make_batch(pair(1.0), pair(5.0), pair(2.0))], {})
    parts = CustomLoss(dpo, [make_batch(pair(1.0), pair(5.0)), make_batch(pair(2.0))], {})
    one, two = (
        own([], [each.float().detach().requires_grad_() for each in drawn(3)])[0] for own in (whole, parts)
    )
    assert two.item() == pytest.approx(one.item(), abs=1e-12)


def test_a_batch_that_weighs_nothing_is_refused() -> None:
    nothing = make_batch(pair(0.0), pair(0.0))
    dpo, problem = open_loss("dpo", {}), "rows:1 and 1 other row of its batch have the weight 0"
    with pytest.raises(LossError, match=problem):
        dpo.compute(nothing, drawn(2), {})
    with pytest.raises(LossError, match=problem):
        CustomLoss(dpo, [nothing], {})([], [each.float().requires_grad_() for each in drawn(2)])


def plain_mean(batch: Batch, logprobs: list[torch.Tensor]) -> torch.Tensor:
    """Ignore the weights."""
    return mint_train.sequence_logprobs(logprobs, batch).mean()


def test_a_loss_that_ignores_weights_is_refused_where_rows_have_them() -> None:
    ignoring = Loss.of(NamedPlugin("mine", loss(extends="dpo")(plain_mean), "a test"))
    ignoring.compute(make_batch(pair(1.0), pair(1.0)), drawn(2), {})
    with pytest.raises(
        LossError, match=r'rows:1: the row has a weight, and the loss "mine".* --columns weight='
    ):
        ignoring.compute(make_batch(pair(1.0), pair(2.0)), drawn(2), {})


def test_each_term_of_a_sum_must_use_the_weights() -> None:
    dpo = open_loss("dpo", {}).terms[0]
    mine = Loss.of(NamedPlugin("mine", loss(extends="dpo")(plain_mean), "a test")).terms[0]
    with pytest.raises(LossError, match='the loss "mine" does not use it'):
        Loss([dpo, mine], "dpo+mine").compute(make_batch(pair(1.0), pair(2.0)), drawn(2), {})


def test_an_evaluation_weighs_the_loss_and_counts_the_rest() -> None:
    by_group = [{"loss": 1.0, "accuracy": 1.0}, {"loss": 3.0, "accuracy": 0.0}]
    measured = Measured([Source("rows", 1)] * 2, {"loss": 2.5, "accuracy": 0.5}, by_group, [1.0, 3.0])
    other = Measured(
        [Source("rows", 3)], {"loss": 5.0, "accuracy": 1.0}, [{"loss": 5.0, "accuracy": 1.0}], [4.0]
    )
    found = summarise(1, [measured, other], {"accuracy"})
    assert found.metrics == {"loss": (1 + 9 + 20) / 8, "accuracy": 2 / 3}
    assert found.batch_means == ()
    low, high = found.intervals["loss"]
    # mean 3.75; weighted squares (1 * 2.75)^2 + (3 * 0.75)^2 + (4 * 1.25)^2, times 3/2, over 8^2
    half = 1.959964 * math.sqrt((2.75**2 + 2.25**2 + 5.0**2) * 1.5 / 64)
    assert (low, high) == pytest.approx((3.75 - half, 3.75 + half))


def test_a_run_reads_weights_and_says_so(
    run_cli: RunCli, write_rows: Callable[..., Path], starter_model_folder: Path
) -> None:
    given = ("--model", starter_model_folder, "--loss", "dpo", "--steps", "2", "--lr", "1e-2")
    weighed = write_rows([{**PAIRS[0], "weight": 2}, PAIRS[1]], "weighed.jsonl")
    twice = write_rows([PAIRS[0], PAIRS[0], PAIRS[1]], "twice.jsonl")
    losses = {}
    for name, data in (("weighed", weighed), ("twice", twice)):
        status, out, err = run_cli(*given, "--data", data, "--output", name, "--eval-data", data)
        assert status == 0, err
        losses[name] = [line["metrics"]["loss"] for line in lines(Path(name, "evaluations.jsonl"))]
        if name == "weighed":
            assert "1 text prompts with chosen and rejected, weighted" in out
    assert losses["weighed"] == pytest.approx(losses["twice"], rel=1e-4)
    assert losses["weighed"][1] < losses["weighed"][0]
