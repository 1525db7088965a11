"""Sums of losses: one forward for all parts, each part's value in the metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mint_train import loss, sequence_logprobs
from mint_train.errors import OptionError, PluginError
from mint_train.losses.loss import Loss
from mint_train.losses.term import Term
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.settings.loss_names import parse_terms
from mint_train.testing import make_batch, make_group, make_logprobs

RunCli = Callable[..., tuple[int, str, str]]


def test_terms() -> None:
    assert parse_terms("dpo") == [(1.0, "dpo")]
    assert parse_terms("dpo+0.2*sft") == [(1.0, "dpo"), (0.2, "sft")]
    assert parse_terms("2*dpo + 1e-3*kl") == [(2.0, "dpo"), (0.001, "kl")]


@pytest.mark.parametrize(
    "expression", ["dpo+", "+dpo", "0*dpo", "-1*dpo", "x*dpo", "dpo**2", "1.2.3*dpo", "dpo+dpo", ""]
)
def test_what_is_no_sum_is_refused(expression: str) -> None:
    with pytest.raises(OptionError, match="--loss"):
        parse_terms(expression)


def test_the_open_character_training_objective_is_one_command(run_cli: RunCli, tmp_path: Path) -> None:
    status, out, err = run_cli(
        "--loss", "dpo+0.1*sft+0.001*squared-log-ratio",
        "--set", "dpo.beta=0.1", "--set", "reference=initial",
        "--steps", "2", "--lr", "1e-3", "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert status == 0, err
    assert "Step 2: loss=" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in (one["metrics"] for one in lines):
        parts = line["dpo/loss"] + 0.1 * line["sft/loss"] + 0.001 * line["squared-log-ratio/loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-6)
    assert lines[0]["metrics"]["dpo/loss"] == pytest.approx(0.6931472, abs=1e-5)
    first, second = (line["metrics"]["squared-log-ratio/loss"] for line in lines)
    assert second > first == 0
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [(part["name"], part["weight"]) for part in described["losses"]] == [
        ("dpo", 1.0), ("sft", 0.1), ("squared-log-ratio", 0.001),
    ]  # fmt: skip


def test_parts_on_different_data_are_refused_with_the_reason() -> None:
    with pytest.raises(PluginError, match=r'"dpo" and "kto" cannot be added: they need different data'):
        open_loss("dpo+kto", {})


def test_an_option_goes_to_the_part_that_has_it() -> None:
    loss = open_loss("dpo+0.5*ipo", {"dpo.beta": "0.3", "reference": "initial"})
    assert loss.describe()[0].options["beta"] == 0.3
    assert loss.reference == "initial"


@pytest.mark.parametrize(
    ("option", "words"), [("nonsense", "no term has it"), ("ipo.gamma", 'no option "gamma"')]
)
def test_an_option_without_a_place_is_refused(option: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        open_loss("dpo+ipo", {option: "1"})


def test_two_terms_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sft.py"
    file.write_text(
        'from mint_train import loss\n@loss(extends="dpo")\ndef mine(batch, logprobs):\n    return 0\n'
    )
    with pytest.raises(OptionError, match=r'two terms are called "sft", and share their options and metrics'):
        open_loss(f"{file}+sft", {})


def test_what_a_term_deletes_from_its_state_is_gone_in_the_next_step() -> None:
    @loss(extends="dpo")
    def turning(batch, logprobs, state):
        if state.pop("once", None) is None:
            state["once"] = 1.0
        return sequence_logprobs(logprobs, batch).sum()

    terms = [Term(NamedPlugin(name, turning, "a test")) for name in ("a", "b")]
    summed = Loss(terms, "a+b")
    batch, logprobs = make_batch(make_group([[3], [4]])), make_logprobs([[-1.0], [-2.0]])
    state: dict[str, float] = {}
    summed.compute(batch, logprobs, state)
    assert state == {"a/once": 1.0, "b/once": 1.0}
    summed.compute(batch, logprobs, state)
    assert state == {}


def test_two_references_in_one_run_are_refused() -> None:
    loss = open_loss("dpo+ipo", {"dpo.reference": "Qwen/Qwen3-0.6B"})
    with pytest.raises(OptionError, match="one run has one reference"):
        _ = loss.reference
