"""A run's own reward is the log-ratio that its training computes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import mint_train
from mint_train.errors import UserError
from mint_train.judging.judge import open_judge
from mint_train.plugin import Candidates
from mint_train.testing import check_judge

PAIRS = [
    {"prompt": "Say one.", "chosen": "one", "rejected": "no, never"},
    {"prompt": "Say two.", "chosen": "two it is", "rejected": "ask him"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("implicit")
    rows = folder / "pairs.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    mint_train.train(
        "dpo", options={"reference": "initial", "beta": 0.1}, data=rows, eval_data=rows, batch_size=2,
        steps=2, lr=1e-2, save_every=1, output=folder / "run", progress="quiet", backend="local",
    )  # fmt: skip
    return folder / "run"


def test_its_margins_give_the_loss_of_the_evaluation(run: Path) -> None:
    """DPO's loss with a reference is minus the log-sigmoid of beta times the difference of the log-ratios."""
    judge = open_judge("implicit", {"run": str(run)})
    batch = [Candidates(row["prompt"], (row["chosen"], row["rejected"])) for row in PAIRS]
    margins = [chosen - rejected for chosen, rejected in judge.score(batch)]
    last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    loss = sum(math.log1p(math.exp(-margin)) for margin in margins) / 2
    assert loss == pytest.approx(last["metrics"]["loss"], rel=1e-4)
    assert all(result.passed for result in check_judge(judge))


def test_a_step_of_the_run_is_named(run: Path) -> None:
    batch = [Candidates(PAIRS[0]["prompt"], ("one", "no, never"))]
    first, last = (open_judge("implicit", {"run": f"{run}@{step}"}).score(batch)[0] for step in (1, 2))
    assert first != last
    assert last == open_judge("implicit", {"run": str(run)}).score(batch)[0]
    with pytest.raises(UserError, match="has no checkpoint after step 9"):
        open_judge("implicit", {"run": f"{run}@9"})


def test_a_run_that_went_on_is_another_version(run: Path) -> None:
    name = str(run)
    first, second = (open_judge("implicit", {"run": f"{name}@{step}"}).versions for step in (1, 2))
    last = open_judge("implicit", {"run": name}).versions
    assert first[f"{name}@1"] != second[f"{name}@2"] == last[name]
