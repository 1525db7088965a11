"""What rows of pairs may say besides: soft labels, ties, weights of tokens. Every loss is installed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from typing import Any

import pytest
from pair_batches import PairLogprobs, make_batch, open_loss

import mint_train_preferences
from mint_train.backends.local.starter_model import make_starter_tokenizer
from mint_train.errors import ContractError, RowError
from mint_train.plugins.authoring import FunctionLoss
from mint_train.rendering.renderer import Renderer

ROW = {"prompt": "Say one.", "chosen": "one it is", "rejected": "two"}


@pytest.mark.parametrize(
    ("p_chosen", "message"),
    [
        (None, "p_chosen.*: is missing; this loss needs a number from 0.5 to 1"),
        (0.49, r"p_chosen.*: is 0\.49; it must be from 0.5 to 1"),
        (1.01, r"p_chosen.*: is 1\.01"),
        ("high", "p_chosen"),
        (float("nan"), "p_chosen"),
    ],
)
def test_a_bad_soft_label_is_refused(p_chosen: object, message: str) -> None:
    with pytest.raises(RowError, match=message):
        open_loss("gdpo").parse_row(ROW | {"p_chosen": p_chosen})


def test_an_even_label_has_no_gradient_and_a_sure_one_is_dpo() -> None:
    sides = ((-1.0,), (-2.0, -1.0), (-1.5,), (-1.0, -1.0))
    value, _ = open_loss("gdpo").compute(*make_batch([PairLogprobs(*sides, p_chosen=1.0)]), {})
    same, _ = open_loss("dpo", beta=0.1).compute(*make_batch([PairLogprobs(*sides)]), {})
    assert float(value.detach()) == pytest.approx(float(same.detach()), abs=1e-12)
    batch, logprobs = make_batch([PairLogprobs(*sides, p_chosen=0.5)])
    open_loss("gdpo").compute(batch, logprobs, {})[0].backward()
    assert not any(logprob.grad.any() for logprob in logprobs if logprob.grad is not None)


@pytest.mark.parametrize("name", ["dpo-rk", "dpo-davidson"])
def test_a_win_a_loss_and_a_tie_are_all_that_can_happen(name: str) -> None:
    sides = ((-1.0, -0.5), (-4.0,), (-3.0, -1.0), (-1.0,))
    swapped = (sides[1], sides[0], sides[3], sides[2])
    outcomes = [PairLogprobs(*sides), PairLogprobs(*swapped), PairLogprobs(*sides, tie=True)]
    values = [open_loss(name, beta=0.7).compute(*make_batch([one]), {})[0].detach() for one in outcomes]
    assert sum(float((-value).exp()) for value in values) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("tie", [3, "perhaps"])
def test_a_tie_is_true_or_false(tie: object) -> None:
    with pytest.raises(RowError, match="tie"):
        open_loss("dpo-rk").parse_row(ROW | {"tie": tie})
    assert open_loss("dpo-rk").parse_row(ROW).values == {"tie": (0.0, 0.0)}


def test_scores_too_far_apart_are_refused() -> None:
    batch, _ = make_batch([PairLogprobs((-1.0,), (-2.0,), (-1.0,), (-1.0,), scores=(9.0, 3.0))])
    with pytest.raises(ContractError, match=r"pairs\.jsonl:1: pair 0: its scores are 6 apart"):
        open_loss("mappo").check_batch(batch)
    open_loss("mappo", scale=10.0).check_batch(batch)


def weights_of(chosen: Any, rejected: Any, text: str = "one it is") -> list[list[float]]:
    """Flatten a row with token weights or spans; return the weights of the completions' tokens."""
    row: dict[str, Any] = ROW | {"chosen": text}
    for side, weights in (("chosen", chosen), ("rejected", rejected)):
        spans = isinstance(weights, list) and any(isinstance(item, dict) for item in weights)
        row[f"{side}_spans" if spans else f"{side}_token_weights"] = weights
    loss = open_loss("tis-dpo")
    datums = loss.flatten(loss.parse_row(row), Renderer(make_starter_tokenizer()))
    found = []
    for one in datums:
        trained = one.datum.loss_fn_inputs["weights"].to_numpy() != 0
        laid = one.attached["token_weights"]
        assert not any(weight for weight, own in zip(laid, trained, strict=True) if not own)
        found.append([weight for weight, own in zip(laid, trained, strict=True) if own])
    return found


def token_count(text: str) -> int:
    return len(make_starter_tokenizer().encode(f" {text}", add_special_tokens=False)) + 1


def test_weights_are_given_by_token_or_by_span() -> None:
    count, other = token_count("one it is"), token_count("two")
    numbers = [float(number) for number in range(count)]
    assert weights_of(numbers, [2.0] * (other - 1)) == [numbers, [*[2.0] * (other - 1), 1.0]]
    span = {"start": 0, "end": 9, "weight": 3}
    assert weights_of([span], [{"start": 0, "end": 1, "weight": 0.5}])[0] == [*[3.0] * (count - 1), 1.0]


def test_a_span_weighs_the_tokens_that_it_overlaps() -> None:
    text = "größer 🙂 naïve words"
    ids = make_starter_tokenizer().encode(f" {text}", add_special_tokens=False)
    start = text.index("words")
    (weights, _) = weights_of([{"start": start, "end": len(text), "weight": 4}], [1.0], text)
    heavy = [index for index, weight in enumerate(weights) if weight == 4]
    assert heavy == list(range(heavy[0], len(ids)))
    assert make_starter_tokenizer().decode(ids[heavy[0] :]).strip() == "words"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (None, "chosen_token_weights.*: is missing"),
        ([], "chosen_token_weights.*: must be a list"),
        ([1.0, -1.0], r"chosen_token_weights\[1\].*: is -1; a weight is 0 or more"),
        ([1.0, float("inf")], r"chosen_token_weights\[1\]"),
        ([{"start": 0, "end": 10, "weight": 1}], "outside of the text's 9 characters"),
        ([{"start": 2, "end": 2, "weight": 1}], "must begin at 0"),
        ([{"start": 0, "weight": 1}], "must be a span"),
        ([{"start": 0, "end": 1, "weight": 1}, 2.0], "must be a span"),
        ([{"start": 0, "end": 1.5, "weight": 1}], "whole numbers"),
        ([1.0] * 99, r"holds 99 weights for the completion's \d+ tokens"),
    ],
)
def test_bad_token_weights_are_refused(chosen: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        weights_of(chosen, [1.0])


def test_numbers_and_spans_together_are_refused() -> None:
    row = ROW | {"chosen_token_weights": [1.0], "chosen_spans": [{"start": 0, "end": 1, "weight": 1}]}
    with pytest.raises(RowError, match=r"chosen_spans.*: stands beside chosen_token_weights"):
        open_loss("tis-dpo").parse_row(row)


def test_every_loss_of_the_package_has_an_entry_point() -> None:
    named = {entry.value for entry in entry_points(group="mint_train.losses")}
    package = mint_train_preferences.__name__
    for module in pkgutil.iter_modules(mint_train_preferences.__path__, f"{package}."):
        loaded = importlib.import_module(module.name)
        for name, _ in inspect.getmembers(loaded, lambda one: isinstance(one, FunctionLoss)):
            assert f"{module.name}:{name}" in named, f"{name} has no entry point"
        if hasattr(loaded, "compute_loss"):
            assert module.name in named, f"{module.name} has no entry point"


PLAIN = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("p_chosen", 0.7),
        ("tie", True),
        ("gold", "d"),
        ("margin", 1),
        ("chosen_token_weights", [1]),
        ("rejected_spans", [1]),
    ],
)
def test_a_field_that_a_loss_does_not_use_is_refused(field: str, value: object) -> None:
    dpo = open_loss("dpo")
    with pytest.raises(RowError, match=f"leave it out with --columns {field}="):
        dpo.parse_row(PLAIN | {field: value})
    dpo.parse_row(PLAIN | {field: None})
    if field != "gold":
        with pytest.raises(RowError, match=f"--columns {field}="):
            open_loss("tpo").parse_row(PLAIN | {"gold": "d", field: value})


def test_a_margin_stands_for_two_scores() -> None:
    odpo = open_loss("odpo")
    example = odpo.parse_row(PLAIN | {"margin": 2})
    assert (example.chosen_score, example.rejected_score) == (2, 0)
    for wrong in ({"margin": 0}, {"margin": "much"}, {"margin": 1, "chosen_score": 2}):
        with pytest.raises(RowError) as raised:
            odpo.parse_row(PLAIN | wrong)
        assert raised.value.field == "margin"
