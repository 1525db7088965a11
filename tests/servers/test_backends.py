"""One contract, two backends: the embedded one, and the SDK over HTTP against a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import SecretStr
from server import SkyrlServer

from mint_train.backends.base import TrainingClient
from mint_train.backends.local.adapter import LoraShape
from mint_train.backends.local.load import open_local_client
from mint_train.backends.mint.client import open_mint_client
from mint_train.batches.datums import build_datum
from mint_train.errors import BackendError, LossError, UserError
from mint_train.rendering.recipe import build_completion_tokens
from mint_train.rendering.renderer import Renderer
from mint_train.sdk import Datum, types
from mint_train.settings.model import Settings

TEXTS = [
    ("Why is the sky blue?", "Because air scatters blue light more than red."),
    ("Why is the sky blue?", "No idea."),
    ("Name a river.", "The Danube flows through ten countries."),
]


@pytest.fixture(params=["local", "mint"])
def open_client(
    request: pytest.FixtureRequest, skyrl_server: SkyrlServer, starter_model_folder: Path, tmp_path: Path
) -> Callable[[], TrainingClient]:
    """Open a client with a fresh adapter, on either backend, of one and the same base model."""

    def open_one() -> TrainingClient:
        if request.param == "local":
            return open_local_client(str(starter_model_folder), LoraShape(8), 1, tmp_path)
        settings = Settings(
            loss="any", rank=8, seed=1, base_url=skyrl_server.base_url, api_key=SecretStr("tml-x")
        )
        return open_mint_client(settings, print, model=skyrl_server.model)

    return open_one


@pytest.fixture
def client(open_client: Callable[[], TrainingClient]) -> TrainingClient:
    return open_client()


def make_data(client: TrainingClient) -> list[Datum]:
    tokenizer = client.get_tokenizer()
    return [
        build_datum(Renderer(tokenizer).prompt_tokens(prompt), build_completion_tokens(text, tokenizer), None)
        for prompt, text in TEXTS
    ]


def trained_logprobs(client: TrainingClient, data: list[Datum]) -> torch.Tensor:
    outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
    return torch.cat(
        [
            output["logprobs"].to_torch().flatten()[datum.loss_fn_inputs["weights"].to_torch() != 0]
            for output, datum in zip(outputs, data, strict=True)
        ]
    )


def negative_sum(data: list[Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    weighted = [
        (logprob * datum.loss_fn_inputs["weights"].to_torch()).sum()
        for logprob, datum in zip(logprobs, data, strict=True)
    ]
    loss = -torch.stack(weighted).sum()
    return loss, {"loss": float(loss.detach())}


def train_once(client: TrainingClient, data: list[Datum]) -> float:
    backward = client.forward_backward_custom(data, negative_sum)
    update = client.optim_step(types.AdamParams(learning_rate=1e-2))
    loss = backward.result().metrics["loss"]
    update.result()
    return loss


def test_forward_gives_one_logprob_per_target_token(client: TrainingClient) -> None:
    data = make_data(client)
    outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
    for output, datum in zip(outputs, data, strict=True):
        logprobs = output["logprobs"].to_torch()
        assert logprobs.numel() == len(datum.loss_fn_inputs["target_tokens"].data)
        assert (logprobs <= 0).all()


def test_the_custom_loss_sees_the_forward_s_logprobs_and_training_lowers_it(client: TrainingClient) -> None:
    data = make_data(client)
    before = trained_logprobs(client, data)
    losses = [train_once(client, data) for _ in range(3)]
    assert losses[0] == pytest.approx(-float(before.sum()), rel=1e-6)
    assert losses[2] < losses[1] < losses[0]
    assert trained_logprobs(client, data).sum() > before.sum()


def test_a_loss_that_raises_leaves_the_adapter_as_it_was(client: TrainingClient) -> None:
    data = make_data(client)
    before = trained_logprobs(client, data)

    def broken(*_: object) -> tuple[torch.Tensor, dict[str, float]]:
        raise LossError("the loss is nan")

    with pytest.raises(LossError, match="the loss is nan"):
        client.forward_backward_custom(data, broken)
    torch.testing.assert_close(trained_logprobs(client, data), before)


def test_a_saved_state_brings_weights_and_optimiser_back(open_client: Callable[[], TrainingClient]) -> None:
    first = open_client()
    data = make_data(first)
    train_once(first, data)
    path = first.save_state("after-one").result().path
    unbroken = [train_once(first, data), train_once(first, data)]
    second = open_client()
    second.load_state_with_optimizer(path).result()
    resumed = [train_once(second, data), train_once(second, data)]
    assert resumed == pytest.approx(unbroken, rel=1e-5)


def test_an_unknown_state_is_an_error(client: TrainingClient) -> None:
    with pytest.raises((BackendError, UserError), match="nowhere"):
        client.load_state_with_optimizer("tinker://nowhere/weights/nothing").result()


def test_sampler_weights_are_saved(client: TrainingClient) -> None:
    train_once(client, make_data(client))
    assert client.save_weights_for_sampler("final").result().path
