"""The proof of gradients, against the embedded backend behind a service that gets them wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import SecretStr

from mint_train.backends.base import Future
from mint_train.backends.local.adapter import LoraShape
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.backends.local.load import open_local_client
from mint_train.backends.mint.gradient_form import FORMS
from mint_train.backends.mint.gradient_guard import Proof, find_proof, prove
from mint_train.backends.mint.gradient_probe import CannotMeasureError, Probe
from mint_train.backends.mint.server_description import SKYRL, ServerDescription
from mint_train.backends.mint.service import Service
from mint_train.backends.mint.session import Session
from mint_train.errors import BackendError, ServiceError
from mint_train.sdk import Datum, types

Weights = Callable[[list[torch.Tensor]], list[torch.Tensor]]


class LostAnswer:
    """A request of which nobody knows whether it was carried out."""

    def result(self, timeout: float | None = None) -> Any:  # noqa: ARG002
        raise ServiceError("the connection was reset")


class FaultyService:
    """The embedded backend under the service's calls; a fault changes the weights that a loss is sent."""

    def __init__(self, client: LocalTrainingClient, faults: dict[str, Weights]) -> None:
        self.client, self.faults = client, faults
        self.taken = 0
        """Slots in use."""
        self.opened = 0
        self.slots = 10
        """How many adapters are ever opened."""
        self.steps_alike = False
        """Whether an update ignores the betas and the epsilon that it is asked for."""
        self.fails: Sequence[int] = ()
        """The requests that fail, counted from 1; an even one although it is carried out."""
        self.asked = 0
        self.fresh = client.save_state("fresh").result().path

    def open(self) -> FaultyService:
        if self.opened == self.slots:
            raise BackendError("there is no slot left for an adapter")
        self.taken += 1
        self.opened += 1
        self.client.optim_step(types.AdamParams(learning_rate=0)).result()  # uses gradients up
        self.client.load_state_with_optimizer(self.fresh).result()
        return self

    def leave(self) -> None:
        self.taken -= 1

    def forward_backward(self, data: list[Datum], loss_fn: str) -> Future[types.ForwardBackwardOutput]:
        if loss_fn not in self.faults:
            raise BackendError(f"there is no loss {loss_fn}")
        key = "weights" if loss_fn == "cross_entropy" else "advantages"
        asked = [datum.loss_fn_inputs[key].to_torch() for datum in data]
        old = [datum.loss_fn_inputs["logprobs"].to_torch() for datum in data] if key == "advantages" else []
        weights = self.faults[loss_fn](asked)

        def loss(_: object, logprobs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
            terms = (
                [(logprob - o).exp() for logprob, o in zip(logprobs, old, strict=True)] if old else logprobs
            )
            value = -torch.stack([(t * w).sum() for t, w in zip(terms, weights, strict=True)]).sum()
            return value, {}

        bare = [
            Datum(
                model_input=datum.model_input,
                loss_fn_inputs={
                    "target_tokens": datum.loss_fn_inputs["target_tokens"],
                    "weights": torch.ones(len(weight)),
                },
            )
            for datum, weight in zip(data, weights, strict=True)
        ]
        return self.answered(lambda: self.client.forward_backward_custom(bare, loss))

    def optim_step(self, adam_params: types.AdamParams) -> Future[Any]:
        asked = types.AdamParams(learning_rate=1e-3) if self.steps_alike else adam_params
        return self.answered(lambda: self.client.optim_step(asked))

    def answered(self, carry_out: Callable[[], Future[Any]]) -> Future[Any]:
        self.asked += 1
        if self.asked not in self.fails:
            return carry_out()
        if self.asked % 2 == 0:
            carry_out()
        return LostAnswer()


def right(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    return weights


def of_each(change: Callable[[torch.Tensor], torch.Tensor]) -> Weights:
    return lambda weights: [change(weight) for weight in weights]


UNDIVIDED = (FORMS[0], FORMS[2])
"""The forms of a service that does not divide by a text's tokens."""
FAULTS = {
    "normalises": of_each(lambda weight: weight / weight.sum().clamp(min=1e-9)),
    "negative weights": of_each(lambda weight: weight.clamp(min=0)),
    "the sign": of_each(lambda weight: -weight),
    "mean over the datums": lambda weights: [weight / len(weights) for weight in weights],
    "text's length": of_each(lambda weight: weight / len(weight)),
    "bfloat16": of_each(lambda weight: weight.bfloat16().float()),
    "do not add up": lambda weights: (
        weights if not weights[0].any() else [weights[0], *map(torch.zeros_like, weights[1:])]
    ),
}


@pytest.fixture
def client(starter_model_folder: Path, tmp_path: Path) -> LocalTrainingClient:
    return open_local_client(str(starter_model_folder), LoraShape(8), 1, tmp_path)


@pytest.fixture
def proved(client: LocalTrainingClient) -> Callable[..., Proof]:
    def run(
        *,
        slots: int = 10,
        steps_alike: bool = False,
        trust: bool = False,
        fails: Sequence[int] = (),
        **faults: Weights,
    ) -> Proof:
        service = FaultyService(client, faults)
        service.slots, service.steps_alike, service.fails = slots, steps_alike, fails
        try:
            return prove("http://service", service.open, UNDIVIDED, trust=trust)
        finally:
            assert service.taken == 0, "a slot is not freed, or is freed twice"

    return run


def test_a_plain_sum_is_proved(proved: Callable[..., Proof]) -> None:
    proof = proved(cross_entropy=right)
    assert (proof.form, proof.clips, proof.proved) == (FORMS[0], True, True)
    assert "cross_entropy" in proof.note


def test_a_right_service_is_proved_in_six_updates(client: LocalTrainingClient) -> None:
    service = FaultyService(client, {"cross_entropy": right})
    prove("http://service", service.open)
    assert service.asked == 6 + 7, "six updates, one of them of the gradients of two requests"


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"bfloat16"}))
def test_the_experiments_in_one_series_pass_no_fault(client: LocalTrainingClient, fault: str) -> None:
    probe = Probe(FaultyService(client, {"cross_entropy": FAULTS[fault]}), FORMS[0])
    with suppress(CannotMeasureError):
        assert probe.judge_at_once().fault is not None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_another_form_is_taken(proved: Callable[..., Proof], fault: str) -> None:
    proof = proved(cross_entropy=FAULTS[fault], importance_sampling=right)
    assert proof.form == FORMS[2]
    assert fault in proof.note


def test_rounded_weights_are_said_and_not_refused(proved: Callable[..., Proof]) -> None:
    proof = proved(cross_entropy=FAULTS["bfloat16"], importance_sampling=FAULTS["bfloat16"])
    assert proof.form == FORMS[0]
    assert "precision" in proof.note


@pytest.mark.parametrize("fault", ["normalises", "the sign", "mean over the datums", "do not add up"])
def test_a_service_without_a_right_form_is_refused(proved: Callable[..., Proof], fault: str) -> None:
    with pytest.raises(BackendError, match=fault):
        proved(cross_entropy=FAULTS[fault], importance_sampling=FAULTS[fault])


def test_a_service_that_knows_one_form_only_is_trusted_with_it(proved: Callable[..., Proof]) -> None:
    assert proved(cross_entropy=right).form == FORMS[0]
    other = proved(importance_sampling=right)
    assert other.form == FORMS[2]
    assert "with cross_entropy, there is no loss cross_entropy" in other.note


def test_a_form_that_is_wrong_is_not_excused_by_one_that_is_unknown(proved: Callable[..., Proof]) -> None:
    with pytest.raises(BackendError, match="does not carry out gradients"):
        proved(cross_entropy=FAULTS["the sign"], trust=True)


def test_what_cannot_be_measured_is_refused_unless_it_is_trusted(proved: Callable[..., Proof]) -> None:
    with pytest.raises(BackendError, match="cannot be measured") as refused:
        proved(cross_entropy=right, importance_sampling=right, steps_alike=True)
    assert "train with --trust-gradients" in str(refused.value)
    proof = proved(cross_entropy=right, importance_sampling=right, steps_alike=True, trust=True)
    assert (proof.form, proof.proved) == (FORMS[0], False)
    assert proof.form_name == "cross_entropy (not proved)"
    assert "could not be proved right" in proof.note
    assert "--trust-gradients" in proof.note


def test_a_slot_that_runs_out_in_the_middle_of_the_proof_is_said(proved: Callable[..., Proof]) -> None:
    """The first form spoils its adapter, and there is no second one."""
    enlarges = of_each(lambda weight: torch.where(weight < 0, 1e6 * weight, weight))
    with pytest.raises(BackendError, match="no slot left"):
        proved(cross_entropy=enlarges, importance_sampling=right, slots=1)


@pytest.mark.parametrize("fault", [None, "normalises", "do not add up"])
def test_a_request_that_is_lost_changes_no_verdict(proved: Callable[..., Proof], fault: str | None) -> None:
    """Lost are some of both kinds, carried out or not; each series of experiments is repeated."""
    faults = {"cross_entropy": right if fault is None else FAULTS[fault], "importance_sampling": right}
    unbroken = proved(**faults)
    assert proved(**faults, fails=(4, 25, 60, 101)) == unbroken


def test_a_service_that_fails_again_and_again_is_given_up(proved: Callable[..., Proof]) -> None:
    with pytest.raises(ServiceError, match="reset"):
        proved(cross_entropy=right, fails=range(5, 1000))


def test_another_version_of_a_service_is_proved_again(client: LocalTrainingClient) -> None:
    service = FaultyService(client, {"cross_entropy": right})

    def find(version: str) -> Proof:
        described = ServerDescription("A service", digest=version)
        address = Service("http://service", SecretStr("tml-x"))
        return find_proof(Session(address, Any, "a model", described), service.open)

    first = find("1")
    assert find("1") == first
    opened = service.opened
    assert opened == 1
    service.faults = {"cross_entropy": FAULTS["the sign"], "importance_sampling": right}
    assert find("2").form == FORMS[2]
    assert service.opened > opened


def test_with_a_service_that_is_known_to_divide_its_right_form_comes_first(
    client: LocalTrainingClient,
) -> None:
    tried = list[str]()

    def seen(weights: list[torch.Tensor]) -> list[torch.Tensor]:
        tried.append("cross_entropy")
        return weights

    service = FaultyService(client, {"cross_entropy": seen, "importance_sampling": right})
    address = Service("http://service", SecretStr("tml-x"))
    proof = find_proof(Session(address, Any, "a model", ServerDescription(SKYRL)), service.open)
    assert (proof.form, tried) == (FORMS[2], [])
