"""Gradients on a real server: the guard, falsified ones, and runs beside the embedded backend."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from adapters import adapter_on_disk, distance, load_adapter, moved
from proxy import Proxy, running_proxy
from pydantic import SecretStr
from run_files import description, metrics
from server import SkyrlServer
from short_rows import LOSSES, write_short_rows

from mint_train.backends.local import load
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.backends.mint.client import MintTrainingClient, open_mint_client
from mint_train.batches.datums import build_datum
from mint_train.errors import BackendError
from mint_train.losses.loss import Loss
from mint_train.sdk import Datum, mint, types
from mint_train.settings.model import Settings

RunCli = Callable[..., tuple[int, str, str]]
Weights = list[list[float]]
KEY = SecretStr("tml-x")
MUTANTS = {"sign": (-1.0,), "scale": (1.0, 2.0, 3.0, 4.0), "one side": (0.0, 1.0)}
"""By what each mutant multiplies the gradients of one datum after another, over and over."""


@pytest.fixture(autouse=True)
def service(skyrl_server: SkyrlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_BASE_URL", skyrl_server.base_url)
    monkeypatch.setenv("MINT_BASE_MODEL", skyrl_server.model)


@pytest.fixture
def eight_pairs(tmp_path: Path) -> Path:
    write_short_rows(tmp_path)
    return tmp_path / "pairs.jsonl"


def opened(server: SkyrlServer, url: str, rank: int = 8, *, trains: bool = True) -> MintTrainingClient:
    settings = Settings(loss="any", rank=rank, base_url=url, api_key=KEY)
    return open_mint_client(settings, print, model=server.model, trains=trains)


def train(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, backend: str, *arguments: object
) -> list[dict[str, Any]]:
    """Train on a backend, and return each step's metrics."""
    if backend == "mint":
        monkeypatch.setenv("MINT_API_KEY", KEY.get_secret_value())
    status, _, err = run_cli("--backend", backend, "--output", backend, "--overwrite", *arguments)
    assert status == 0, err
    return [line["metrics"] for line in metrics(backend)]


# --- the guard


def normalised(weights: Weights) -> Weights:
    return [[one / (sum(row) or 1.0) for one in row] for row in weights]


def without_negative(weights: Weights) -> Weights:
    return [[max(one, 0.0) for one in row] for row in weights]


def negated(weights: Weights) -> Weights:
    return [[-one for one in row] for row in weights]


def mean_of_batch(weights: Weights) -> Weights:
    return [[one / len(weights) for one in row] for row in weights]


def rounded(weights: Weights) -> Weights:
    return [torch.tensor(row).bfloat16().tolist() for row in weights]


def falsified(change: Callable[[Weights], Weights]) -> Callable[[str, Any], Any]:
    """Return what a proxy does to requests whose weights it changes, in whichever form they come."""

    def change_request(name: str, body: Any) -> Any:
        if name == "forward_backward":
            inputs = [datum["loss_fn_inputs"] for datum in body["forward_backward_input"]["data"]]
            for key in ("weights", "advantages"):
                if all(key in one for one in inputs):
                    for one, row in zip(inputs, change([one[key]["data"] for one in inputs]), strict=True):
                        one[key]["data"] = row
        return body

    return change_request


@pytest.fixture
def proxy(
    skyrl_server: SkyrlServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clients: list[MintTrainingClient],
) -> Iterator[Proxy]:
    monkeypatch.setenv("MINT_TRAIN_CACHE", str(tmp_path / "cache"))
    with running_proxy(Proxy(skyrl_server.base_url)) as proxy:
        yield proxy
        while clients:
            clients.pop().close()  # without the proxy it would try for seconds


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (normalised, "it normalises weights"),
        (without_negative, "it does not carry out negative weights"),
        (negated, "the sign is wrong"),
        (mean_of_batch, "it takes the mean over the datums of a request"),
    ],
)
def test_falsified_gradients_are_refused(
    proxy: Proxy, skyrl_server: SkyrlServer, change: Callable[[Weights], Weights], fault: str
) -> None:
    proxy.change = falsified(change)
    with pytest.raises(BackendError, match=fault):
        opened(skyrl_server, proxy.url)
    assert proxy.requests["create_model"] == proxy.requests["unload_model"]


def test_rounded_gradients_are_said(proxy: Proxy, skyrl_server: SkyrlServer) -> None:
    proxy.change = falsified(rounded)
    client = opened(skyrl_server, proxy.url)
    client.close()
    assert "precision" in client.gradients.note


def test_gradients_that_cannot_be_measured_must_be_trusted(
    proxy: Proxy,
    skyrl_server: SkyrlServer,
    run_cli: RunCli,
    eight_pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The proxy has every update be a step of AdamW's usual betas and epsilon, however small it was asked."""

    def usual_step(name: str, body: Any) -> Any:
        if name == "optim_step":
            body["adam_params"] |= {"learning_rate": 3e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12}
        return body

    proxy.change = usual_step
    monkeypatch.setenv("MINT_BASE_URL", proxy.url)
    monkeypatch.setenv("MINT_API_KEY", KEY.get_secret_value())
    common = ("--loss", "dpo", "--data", eight_pairs, "--steps", 1, "--output", "run")
    status, _, err = run_cli(*common)
    assert status == 1
    last = err.splitlines()[-1]  # before it a busy server may be waited for
    assert "cannot be measured" in last
    assert "--trust-gradients" in last
    status, out, err = run_cli(*common, "--trust-gradients")
    assert status == 0, err
    assert out.index("could not be proved right") < out.index("Step 1:")
    assert description("run")["gradients"] == "cross_entropy (not proved)"
    assert description("run")["settings"]["trust_gradients"] is True


def test_gradients_of_another_adapter_are_found(proxy: Proxy, skyrl_server: SkyrlServer) -> None:
    served = []

    def left_over(name: str, body: Any) -> Any:
        if name == "optim_step" and not served:  # of the first adapter
            served.append(body["model_id"])
            other = {"target_tokens": {"data": [5, 6, 7]}, "weights": {"data": [1.0, 2.0, 1.0]}}
            datum = {
                "model_input": {"chunks": [{"tokens": [3, 4, 5], "type": "encoded_text"}]},
                "loss_fn_inputs": other,
            }
            httpx.post(
                f"{skyrl_server.base_url}/api/v1/forward_backward",
                json={
                    "model_id": body["model_id"],
                    "forward_backward_input": {"data": [datum], "loss_fn": "cross_entropy"},
                },
            ).raise_for_status()
            time.sleep(0.5)  # an update must not overtake it
        return body

    proxy.change = left_over
    client = opened(skyrl_server, proxy.url)
    client.close()
    assert "A fresh adapter held gradients of another one" in client.gradients.note


def test_what_was_proved_is_kept_for_a_day(
    proxy: Proxy, skyrl_server: SkyrlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(skyrl_server, proxy.url)
    first.close()
    assert first.gradients.form == "importance_sampling"
    assert proxy.requests["create_model"] == 2
    second = opened(skyrl_server, proxy.url)
    second.close()
    assert second.gradients == first.gradients
    assert proxy.requests["create_model"] == 3
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 60 * 60)
    opened(skyrl_server, proxy.url).close()
    assert proxy.requests["create_model"] == 5


# --- whole runs


def test_dpo_with_a_reference_learns(
    run_cli: RunCli, eight_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--loss", "dpo", "--data", eight_pairs, "--set", "reference=initial", "--lr", "1e-3")
    losses = [line["loss"] for line in train(run_cli, monkeypatch, "mint", *common, "--steps", 8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] <= 0.3
    assert description("mint")["gradients"] == "importance_sampling"
    compute = Loss.compute

    def detached(loss: Any, batch: Any, logprobs: Any, *others: Any) -> Any:
        one_sided = [one if number % 2 else one.detach() + 0 * one for number, one in enumerate(logprobs)]
        return compute(loss, batch, one_sided, *others)

    monkeypatch.setattr(Loss, "compute", detached)
    without = [line["loss"] for line in train(run_cli, monkeypatch, "mint", *common, "--steps", 4)]
    assert abs(without[3] / losses[3] - 1) > 0.01


@pytest.fixture
def without_unembedding(monkeypatch: pytest.MonkeyPatch) -> None:
    """SkyRL never adapts the output layer, so these runs ask for no adapter of it."""
    create = mint.ServiceClient.create_lora_training_client

    def created(*arguments: Any, **options: Any) -> Any:
        return create(*arguments, **options | {"train_unembed": False})

    monkeypatch.setattr(mint.ServiceClient, "create_lora_training_client", created)


@pytest.fixture
def first_adapter(without_unembedding: None, skyrl_server: SkyrlServer) -> dict[str, torch.Tensor]:
    """The fresh adapter that the server gives a run of seed 0."""
    client = opened(skyrl_server, skyrl_server.base_url, rank=16, trains=False)
    path = client.save_weights_for_sampler("fresh").result().path
    client.close()
    return load_adapter(adapter_on_disk(skyrl_server, path))


@pytest.mark.parametrize("loss", LOSSES)
def test_both_backends_take_the_same_steps(
    loss: str,
    run_cli: RunCli,
    skyrl_server: SkyrlServer,
    first_adapter: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From one adapter, twenty steps: the losses agree, and so does the direction of the whole update."""
    # rounding differs between the two, and what it does to AdamW's steps grows with the learning rate
    write_short_rows(tmp_path)
    common = ("--loss", loss, *LOSSES[loss], "--batch-size", 2, "--lr", "5e-5", "--steps", 20, "--seed", 0)
    there = train(run_cli, monkeypatch, "mint", *common)
    open_local_client = load.open_local_client

    def from_there(*arguments: Any, **options: Any) -> LocalTrainingClient:
        client = open_local_client(*arguments, **options)
        for name, parameter in client.parameters.items():
            with torch.no_grad():
                # where both matrices are 0, neither has a gradient
                parameter.copy_(first_adapter.get(name.replace(".default", ""), torch.zeros(())))
        return client

    monkeypatch.setattr(load, "open_local_client", from_there)
    here = train(run_cli, monkeypatch, "local", *common)
    assert [one["loss"] for one in there] == pytest.approx([one["loss"] for one in here], rel=1e-3, abs=1e-3)
    last = json.loads(Path("mint/checkpoints.jsonl").read_text().splitlines()[-1])
    ends = [
        load_adapter(path) for path in (Path("local/adapter"), adapter_on_disk(skyrl_server, last["sampler"]))
    ]
    assert distance(*[moved(first_adapter, end) for end in ends]) < 1e-4


def test_a_wrong_form_would_not_take_the_same_steps(
    run_cli: RunCli, eight_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison sees gradients of the other sign, of another size per datum, of one side only."""
    common = (
        "--loss",
        "dpo",
        "--data",
        eight_pairs,
        "--set",
        "reference=initial",
        "--lr",
        "1e-3",
        "--steps",
        3,
    )
    right = train(run_cli, monkeypatch, "mint", *common)[-1]["loss"]  # proves the form, if no test has
    send = MintTrainingClient.forward_backward

    def mutated(client: MintTrainingClient, data: Any, loss_fn: str) -> Any:
        for datum, factor in zip(data, itertools.cycle(MUTANTS[mutant])):
            advantages = datum.loss_fn_inputs["advantages"].to_numpy() * np.float32(factor)
            datum.loss_fn_inputs["advantages"] = types.TensorData.from_numpy(advantages)
        return send(client, data, loss_fn)

    monkeypatch.setattr(MintTrainingClient, "forward_backward", mutated)
    last = {}
    for mutant in MUTANTS:
        last[mutant] = train(run_cli, monkeypatch, "mint", *common)[-1]["loss"]
    assert min(abs(wrong - right) for wrong in last.values()) > 1e-3, (right, last)


def test_an_update_by_gradients_that_vanish_is_one(skyrl_server: SkyrlServer) -> None:
    """A loss that is saturated has them: the server's norm of them is 0, as if they were not there."""
    client = opened(skyrl_server, skyrl_server.base_url)
    datum = build_datum((5, 6), (7, 8, 9), None)

    def vanishing(_: list[Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return 1e-30 * logprobs[0].sum(), {}

    for _ in range(2):
        client.forward_backward_custom([datum], vanishing)
        client.optim_step(types.AdamParams(learning_rate=1e-3)).result()


def test_the_kit_trusts_the_server_with_one_form(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_API_KEY", KEY.get_secret_value())
    status, out, err = run_cli("check-server", "--rank", "8")
    assert status == 0, out + err
    assert "no      cross_entropy: it normalises weights" in out
    assert "ok      gradients: a run sends them as importance_sampling" in out
    assert "FAILED" not in out
