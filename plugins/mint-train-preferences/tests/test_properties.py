"""What must hold of the losses whatever the numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_batches import (
    FAMILY,
    PairLogprobs,
    completion_part,
    make_batch,
    open_loss,
    random_pairs,
    value_and_gradients,
)
from torch.nn.functional import logsigmoid

from mint_train.batches.batch import Batch
from mint_train.batches.groups import Group
from mint_train.errors import OptionError, PluginError, RowError

REFERENCE_FREE = {"alphapo", "cpo", "dft", "gamma-po", "orpo", "repo", "sft", "simnpo", "simper", "simpo"}
REGULARISERS = {"kl", "squared-log-ratio"}
UNLEARNING = {"npo", "simnpo"}
IMITATION = {"asft", "dft", "sft"}
SCORED = {"mappo", "odpo", "rebel", "reward-aware-rpo"}

# a function of beta times the margin alone, with sigma(z) and sigma(-z) for the two orders of a pair
BRADLEY_TERRY = ["dpo", "dpo-norm", "d2po", "ld-dpo", "sampo"]

logprob = st.floats(min_value=-8.0, max_value=-0.01)
completion = st.lists(logprob, min_size=1, max_size=4)


@st.composite
def pair_logprobs(draw: st.DrawFn) -> PairLogprobs:
    """A pair of 1 to 4 tokens a side."""
    chosen, rejected = draw(completion), draw(completion)
    of_length = [st.lists(logprob, min_size=len(side), max_size=len(side)) for side in (chosen, rejected)]
    return PairLogprobs(chosen, rejected, draw(of_length[0]), draw(of_length[1]))


few_pairs = st.lists(pair_logprobs(), min_size=1, max_size=4)


def swapped(pair: PairLogprobs) -> PairLogprobs:
    return PairLogprobs(pair.rejected, pair.chosen, pair.reference_rejected, pair.reference_chosen)


def value_of(name: str, batch: Batch, logprobs: list[torch.Tensor], **options: object) -> float:
    return open_loss(name, **options).compute(batch, logprobs, {})[1]["loss"]


@settings(max_examples=25, deadline=None)
@given(pair=pair_logprobs())
def test_swapping_a_pair_mirrors_the_bradley_terry_losses(pair: PairLogprobs) -> None:
    """-log sigma(z) and -log sigma(-z) differ by z, the reward margin."""
    batch, mirror = make_batch([pair]), make_batch([swapped(pair)])
    for name in BRADLEY_TERRY:
        _, metrics = open_loss(name).compute(*batch, {})
        _, mirrored = open_loss(name).compute(*mirror, {})
        z = metrics["rewards/margin"]
        assert mirrored["rewards/margin"] == pytest.approx(-z, abs=1e-9), name
        assert mirrored["loss"] - metrics["loss"] == pytest.approx(z, abs=1e-9), name
        assert math.exp(-metrics["loss"]) + math.exp(-mirrored["loss"]) == pytest.approx(1, abs=1e-9), name


@settings(max_examples=25, deadline=None)
@given(pair=pair_logprobs())
def test_label_smoothing_is_the_mean_of_both_orders(pair: PairLogprobs) -> None:
    batch = make_batch([pair])
    one_way = value_of("cdpo", *batch, label_smoothing=0.0)
    other_way = value_of("cdpo", *make_batch([swapped(pair)]), label_smoothing=0.0)
    smoothed = value_of("cdpo", *batch, label_smoothing=0.3)
    assert smoothed == pytest.approx(0.7 * one_way + 0.3 * other_way)


def shifted(pair: PairLogprobs, constant: float) -> PairLogprobs:
    """Add a constant to the first token of each completion, under policy and reference."""
    return PairLogprobs(
        *(
            [side[0] + constant, *side[1:]]
            for side in (pair.chosen, pair.rejected, pair.reference_chosen, pair.reference_rejected)
        )
    )


# wpo weighs pairs, alpha-dpo compares them, and rpo imitates by the policy's own logprobs
ONLY_RATIOS = sorted(set(FAMILY) - REFERENCE_FREE - {"wpo", "alpha-dpo", "rpo", "h-dpo", "asft"})


@settings(max_examples=8, deadline=None)
@given(pairs=few_pairs, constant=st.floats(min_value=-5, max_value=0))
def test_what_policy_and_reference_share_changes_nothing(pairs: list[PairLogprobs], constant: float) -> None:
    batch, moved = make_batch(pairs), make_batch([shifted(pair, constant) for pair in pairs])
    for name in ONLY_RATIOS:
        assert value_of(name, *moved) == pytest.approx(value_of(name, *batch), rel=1e-9, abs=1e-9), name


@settings(max_examples=8, deadline=None)
@given(pairs=st.lists(pair_logprobs(), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_order_of_groups_does_not_matter(pairs: list[PairLogprobs], seed: int) -> None:
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    batch, shuffled = make_batch(pairs), make_batch([pairs[i] for i in order])
    for name in FAMILY:
        assert value_of(name, *shuffled) == pytest.approx(value_of(name, *batch), rel=1e-9, abs=1e-12), name


# apo-down lowers both, targets may be overshot, some are not monotonic, and the others see one side only
SIGNED = sorted(
    set(FAMILY)
    - {
        "apo-down",
        "ipo",
        "rebel",
        "bco",
        "exo",
        "discopop",
        "robust",
        "minor-dpo",
        "cdpo",
        "nca",
        "reward-aware-rpo",
    }
    - REGULARISERS
    - UNLEARNING
    - IMITATION
)


@settings(max_examples=8, deadline=None)
@given(pairs=few_pairs)
def test_descent_raises_the_chosen_and_lowers_the_rejected(pairs: list[PairLogprobs]) -> None:
    batch, logprobs = make_batch(pairs)
    for name in SIGNED:
        _, gradients = value_and_gradients(open_loss(name), batch, logprobs)
        for chosen, rejected in zip(gradients[::2], gradients[1::2], strict=True):
            assert (completion_part(chosen) <= 0).all(), name
            assert (completion_part(rejected) >= 0).all(), name


# discopop is the exception: see the next test
@pytest.mark.parametrize(
    "name", sorted(set(FAMILY) - REFERENCE_FREE - REGULARISERS - {"npo", "discopop", "asft"})
)
def test_first_step_moves_the_two_completions_apart(name: str) -> None:
    drawn = random_pairs(torch.Generator().manual_seed(2), 3)
    start = [PairLogprobs(p.chosen, p.rejected, p.chosen, p.rejected, p.scores) for p in drawn]
    _, gradients = value_and_gradients(open_loss(name), *make_batch(start))
    chosen = sum(float(completion_part(gradient).sum()) for gradient in gradients[::2])
    rejected = sum(float(completion_part(gradient).sum()) for gradient in gradients[1::2])
    assert chosen < rejected
    if name == "apo-down":
        assert rejected > chosen > -1e-12  # both go down, the chosen no further than its stop
    else:
        assert chosen < 0 < rejected or name == "minor-dpo"


@pytest.mark.parametrize(
    ("margin", "direction"), [(-2.5, 1), (-2.0, -1), (0.0, -1), (1.4, -1), (1.5, 1), (9.0, 1)]
)
def test_discopop_pulls_the_wrong_way_between_its_two_stationary_points(
    margin: float, direction: int
) -> None:
    """Its paper puts them at log-ratio margins of -2.37 and 1.44, for beta = tau = 0.05."""
    pair = PairLogprobs([-1.0], [-1.0 - margin], [-1.0], [-1.0])
    _, gradients = value_and_gradients(open_loss("discopop"), *make_batch([pair]))
    assert math.copysign(1, -float(completion_part(gradients[0]))) == direction
    _, gradients = value_and_gradients(open_loss("discopop", tau=0.5), *make_batch([pair]))
    assert float(completion_part(gradients[0])) < 0


@pytest.mark.parametrize("name", sorted(UNLEARNING))
def test_unlearning_only_lowers_the_rejected(name: str) -> None:
    _, gradients = value_and_gradients(
        open_loss(name), *make_batch(random_pairs(torch.Generator().manual_seed(3), 4))
    )
    assert all(not gradient.any() for gradient in gradients[::2])
    assert all((completion_part(gradient) > 0).all() for gradient in gradients[1::2])


@pytest.mark.parametrize("name", sorted(IMITATION - {"asft"}))  # its leash may pull back
def test_imitation_only_raises_the_chosen(name: str) -> None:
    _, gradients = value_and_gradients(
        open_loss(name), *make_batch(random_pairs(torch.Generator().manual_seed(4), 4))
    )
    assert all((completion_part(gradient) < 0).all() for gradient in gradients[::2])
    assert all(not gradient.any() for gradient in gradients[1::2])


@settings(max_examples=25, deadline=None)
@given(pairs=few_pairs)
def test_regularisers_are_least_at_the_reference_and_pull_towards_it(pairs: list[PairLogprobs]) -> None:
    batch, logprobs = make_batch(pairs)
    references = [reference for group in batch.groups for reference in group.reference_logprobs or ()]
    same = make_batch([PairLogprobs(p.chosen, p.rejected, p.chosen, p.rejected) for p in pairs])
    for name in REGULARISERS:
        value, gradients = value_and_gradients(open_loss(name), batch, logprobs)
        assert float(value.detach()) >= 0
        for policy, reference, gradient in zip(logprobs, references, gradients, strict=True):
            assert ((policy.detach() - reference) * gradient >= -1e-12).all()
        assert value_of(name, *same) == pytest.approx(0, abs=1e-12)


EXTREMES = [
    (-1.0, -10001.0, -1.0, -1.0),
    (-10001.0, -1.0, -1.0, -1.0),
    (-1.0, -1.0, -10001.0, -1.0),
    (-1.0, -1.0, -1.0, -10001.0),
    (-10001.0, -10001.0, -1.0, -1.0),
    (0.0, -10000.0, -10000.0, 0.0),
    (-10000.0, 0.0, 0.0, -10000.0),
    (0.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("tokens", [1, 4])
def test_float32_stays_finite_at_margins_of_ten_thousand(name: str, tokens: int) -> None:
    for extreme in EXTREMES:
        pair = PairLogprobs(*([total / tokens] * tokens for total in extreme))
        batch, logprobs = make_batch([pair], torch.float32)
        value, gradients = value_and_gradients(open_loss(name), batch, logprobs)
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        assert torch.isfinite(value), extreme
        assert all(torch.isfinite(gradient).all() for gradient in gradients), extreme


@pytest.mark.parametrize("function", ["logistic", "hinge", "squared", "truncated-squared", "savage"])
def test_each_function_of_gpo_stays_finite(function: str) -> None:
    for sign in (-1, 1):
        pair = PairLogprobs([-10001.0 if sign > 0 else -1.0], [-1.0], [-1.0], [-1.0])
        value, gradients = value_and_gradients(
            open_loss("gpo", function=function), *make_batch([pair], torch.float32)
        )
        assert torch.isfinite(value)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("divergence", ["forward-kl", "alpha", "reverse-kl"])
def test_each_divergence_stays_finite(divergence: str) -> None:
    for extreme in EXTREMES:
        pair = PairLogprobs(*([total] for total in extreme))
        value, gradients = value_and_gradients(
            open_loss("f-dpo", divergence=divergence), *make_batch([pair], torch.float32)
        )
        assert torch.isfinite(value)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", sorted(set(FAMILY) - REFERENCE_FREE - {"dpo", "hinge"}))
def test_a_loss_against_a_reference_asks_for_one_and_refuses_none(name: str) -> None:
    assert open_loss(name).reference == "initial"
    assert open_loss(name, reference="some/model").reference == "some/model"
    with pytest.raises(OptionError, match="defined against a reference"):
        open_loss(name, reference="none")


@pytest.mark.parametrize("name", sorted(REFERENCE_FREE))
def test_a_loss_without_a_reference_asks_for_none(name: str) -> None:
    assert open_loss(name).reference is None
    with pytest.raises(OptionError, match='no option "reference"'):
        open_loss(name, reference="initial")


def test_dpo_is_the_recipe_until_told_otherwise() -> None:
    recipe = open_loss("dpo", reference="none")
    assert recipe.options.model_dump() == {"beta": 1.0, "reference": "none"}
    assert recipe.reference is None
    assert open_loss("dpo").reference == "initial"
    pairs = random_pairs(torch.Generator().manual_seed(5), 3)
    batch, logprobs = make_batch(pairs)
    scores = torch.stack([completion_part(datum).sum() for datum in logprobs])
    value, _ = recipe.compute(batch, logprobs, {})
    torch.testing.assert_close(value, -logsigmoid(scores[::2] - scores[1::2]).mean())


def test_without_reference_logprobs_the_message_says_how_to_get_them() -> None:
    batch, logprobs = make_batch(random_pairs(torch.Generator().manual_seed(6), 1))
    bare = Batch([Group(group.datums, group.source, group.attached) for group in batch.groups])
    with pytest.raises(PluginError, match="reference=initial"):
        open_loss("ipo").compute(bare, logprobs, {})


@pytest.mark.parametrize("name", FAMILY)
def test_metrics_are_plain_finite_floats(name: str) -> None:
    _, metrics = open_loss(name).compute(*make_batch(random_pairs(torch.Generator().manual_seed(7), 4)), {})
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    if name not in IMITATION | REGULARISERS:
        assert {"rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy"} <= set(metrics)
    assert ("drift" in metrics) == (name not in REFERENCE_FREE)


@pytest.mark.parametrize("name", sorted(SCORED))
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "chosen_score.*missing"),
        ({"chosen_score": 2.0}, "rejected_score.*missing"),
        ({"chosen_score": "good", "rejected_score": 1.0}, "finite number"),
        ({"chosen_score": 1.0, "rejected_score": 1.0}, "not above"),
        ({"score_chosen": math.nan, "score_rejected": 1.0}, "score_chosen.*finite"),
    ],
)
def test_rows_without_good_scores_are_refused(name: str, scores: dict[str, object], message: str) -> None:
    with pytest.raises(RowError, match=message):
        open_loss(name).parse_row({"prompt": "p", "chosen": "a", "rejected": "b", **scores})
