"""A loss that is linear in the logprobs takes one pass over the model, with the figures of two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_files import adapter, metrics

import mint_train
from mint_train import Batch, hookimpl, loss, sequence_logprobs
from mint_train.backends.local.engine import Engine
from mint_train.batches.logprobs import packed_logprobs
from mint_train.errors import LossError, PluginError
from mint_train.losses.custom_loss import CustomLoss
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.testing import make_batch, make_group

LINEAR = {"LINEAR": True}


def one_batch() -> Batch:
    return make_batch(make_group([(11, 12, 13), (21, 22)]), make_group([(14,), (23, 24, 25)]))


def logprobs_of(batch: Batch, value: float = -0.7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (value * torch.rand(length, generator=generator)).requires_grad_()
        for length in batch.lengths.tolist()
    ]


def bound(function: Any, state: dict[str, float] | None = None) -> CustomLoss:
    return CustomLoss(Loss.of(NamedPlugin("mine", function, "a test")), [one_batch()], state or {})


def mean_score(batch, logprobs):
    return -sequence_logprobs(logprobs, batch).mean()


def curved(batch, logprobs):
    return sequence_logprobs(logprobs, batch).square().mean()


def remembering(batch, logprobs, state):
    state["steps"] = state.get("steps", 0.0) + 1.0
    return mean_score(batch, logprobs)


@pytest.mark.parametrize("expression", ["sft", "0.3*sft", "reinforce"])
def test_the_gradients_are_known_before_the_logprobs(expression: str) -> None:
    attached = [{"advantage": 1.5, "reward": 0.0, "scored": 0.0, "count": 2.0}] * 2
    batch = make_batch(*[make_group([(11, 12), (21,)], attached, weight=weight) for weight in (1.0, 2.0)])
    custom = CustomLoss(open_loss(expression, {}), [batch, batch], {})
    known = custom.known_gradients()
    logprobs = logprobs_of(custom.step)
    value, found = custom([], logprobs)
    value.backward()
    assert known is not None
    assert found["loss"] != 0
    for one, logprob in zip(known, logprobs, strict=True):
        assert torch.equal(one, logprob.grad)


@pytest.mark.parametrize(
    ("expression", "options"),
    [("dpo+sft", {}), ("dft", {}), ("grpo", {}), ("reinforce", {"kl": 0.1, "reference": "initial"})],
)
def test_a_loss_is_linear_only_as_a_whole(expression: str, options: dict[str, Any]) -> None:
    """`dft` has no such trait, `grpo` computes another loss than the one that it extends, and a KL bends."""
    assert not open_loss(expression, options).is_linear


def test_the_trait_is_inherited_with_the_computation() -> None:
    noted = SimpleNamespace(EXTENDS="sft", data_note=hookimpl(lambda batch: str(len(batch.groups))))
    assert Loss.of(NamedPlugin("mine", noted, "a test")).is_linear
    assert not Loss.of(NamedPlugin("mine", loss(extends="sft")(curved), "a test")).is_linear


def test_a_trait_that_raises_is_one_line() -> None:
    broken = loss(extends="dpo", traits={"LINEAR": lambda options: 1 / options.nothing})(curved)
    with pytest.raises(PluginError, match=r'^the loss "mine" failed in LINEAR at test_one_pass.*Attribute'):
        _ = Loss.of(NamedPlugin("mine", broken, "a test")).is_linear


def test_a_loss_with_state_takes_two_passes() -> None:
    linear = loss(extends="dpo", traits=LINEAR)
    assert bound(linear(mean_score)).known_gradients() is not None
    assert bound(linear(mean_score), {"steps": 1.0}).known_gradients() is None
    assert bound(linear(remembering)).known_gradients() is None


def test_a_loss_that_falsely_calls_itself_linear_is_refused() -> None:
    custom = bound(loss(extends="dpo", traits=LINEAR)(curved))
    assert custom.known_gradients() is not None
    with pytest.raises(LossError, match=r'^the loss "mine" has the trait LINEAR, but its gradient changes'):
        custom([], logprobs_of(custom.step))


def test_state_that_begins_with_the_real_logprobs_is_refused() -> None:
    def late(batch, logprobs, state):
        if float(packed_logprobs(logprobs).detach().max()) > -0.5:
            state["seen"] = 1.0
        return mean_score(batch, logprobs)

    custom = bound(loss(extends="dpo", traits=LINEAR)(late))
    assert custom.known_gradients() is not None
    with pytest.raises(LossError, match="LINEAR, but keeps seen as state: leave the trait out"):
        custom([], logprobs_of(custom.step))


def test_a_metric_that_fails_on_the_trial_alone_costs_the_second_pass() -> None:
    def picky(batch, logprobs):
        return mean_score(batch, logprobs), {"spread": float("nan" if logprobs[0].std() == 0 else 1.0)}

    custom = bound(loss(extends="dpo", traits=LINEAR)(picky))
    assert custom.known_gradients() is None
    custom([], logprobs_of(custom.step))


def test_a_run_in_one_pass_is_the_run_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, also where a batch is larger than what fits into memory at once."""
    monkeypatch.setattr(Engine, "_default_budget", lambda *_: 100)
    graphs: list[bool] = []
    score = Engine._score
    monkeypatch.setattr(
        Engine, "_score", lambda *given: (graphs.append(torch.is_grad_enabled()), score(*given))[1]
    )
    passes = {}
    for form in ("one", "two"):
        if form == "two":
            monkeypatch.setattr(CustomLoss, "known_gradients", lambda _: None)
        graphs.clear()
        mint_train.train("sft", backend="local", steps=2, batch_size=4, lr=1e-3, output=tmp_path / form)
        passes[form] = (graphs.count(True), graphs.count(False))
    assert passes["one"] == (passes["two"][0], 0)
    assert passes["two"][1] == passes["two"][0] > 2
    one, two = ([line["metrics"] for line in metrics(tmp_path / form)] for form in ("one", "two"))
    assert one == two
    assert adapter(tmp_path / "one") == adapter(tmp_path / "two")
