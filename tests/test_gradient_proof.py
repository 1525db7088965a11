"""The proof of gradients, against the embedded backend behind a service that gets them wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mint_train.backends.base import Future
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.backends.local.load import open_local_client
from mint_train.backends.mint.gradient_form import FORMS
from mint_train.backends.mint.gradient_guard import Proof, prove
from mint_train.errors import BackendError
from mint_train.sdk import Datum, types

Weights = Callable[[list[torch.Tensor]], list[torch.Tensor]]


class FaultyService:
    """The embedded backend under the service's calls; `spoil` changes what a request asks for."""

    def __init__(self, client: LocalTrainingClient, faults: dict[str, Weights]) -> None:
        self.client, self.faults = client, faults
        self.places = 0

    def open(self) -> FaultyService:
        self.places += 1
        return self

    def leave(self) -> None:
        self.places -= 1

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
        return self.client.forward_backward_custom(bare, loss)

    def optim_step(self, adam_params: types.AdamParams) -> Future[Any]:
        return self.client.optim_step(adam_params)


def right(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    return weights


def of_each(change: Callable[[torch.Tensor], torch.Tensor]) -> Weights:
    return lambda weights: [change(weight) for weight in weights]


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
    return open_local_client(str(starter_model_folder), 8, 1, tmp_path)


@pytest.fixture
def proved(client: LocalTrainingClient) -> Callable[..., Proof]:
    def run(**faults: Weights) -> Proof:
        service = FaultyService(client, faults)
        try:
            return prove("http://service", service.open)
        finally:
            assert service.places == 0, "a place is not given back"

    return run


def test_a_plain_sum_is_proved(proved: Callable[..., Proof]) -> None:
    proof = proved(cross_entropy=right)
    assert (proof.form, proof.clips, proof.proved) == (FORMS[0], True, True)
    assert "cross_entropy" in proof.note


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
