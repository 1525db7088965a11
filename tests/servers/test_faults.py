"""A bad network between a run and a real server: the run ends with the figures of an unbroken one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from few_rows import PAIRS, write_lines
from proxy import Kind, Proxy, running_proxy
from run_files import flat, metrics
from server import SkyrlServer

import mint_train
from mint_train.backends.mint.client import MintTrainingClient
from mint_train.sdk import types

RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def network(skyrl_server: SkyrlServer) -> Iterator[Proxy]:
    with running_proxy(Proxy(skyrl_server.base_url, slow_seconds=1.0)) as proxy:
        yield proxy


@pytest.fixture
def proxy(network: Proxy, skyrl_server: SkyrlServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("MINT_API_KEY", "tml-x")
    monkeypatch.setenv("MINT_BASE_MODEL", skyrl_server.model)
    monkeypatch.setenv("MINT_BASE_URL", network.url)
    yield network
    network.heal()


@pytest.fixture(scope="module")
def unbroken(network: Proxy, skyrl_server: SkyrlServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that no fault has met; it also proves the server's gradients."""
    folder = tmp_path_factory.mktemp("unbroken")
    mint_train.train(
        "dpo", data=write_lines(folder / "pairs.jsonl", PAIRS), lr=1e-3, steps=4, save_every=1,
        output=folder / "run", base_url=network.url, model=skyrl_server.model, api_key="tml-x",
        backend="mint", progress="quiet",
    )  # fmt: skip
    return folder / "run"


@pytest.fixture
def train(run_cli: RunCli, short_pairs: Path) -> Callable[[str], str]:
    def run(folder: str) -> str:
        status, out, err = run_cli(
            "--loss", "dpo", "--data", short_pairs, "--lr", "1e-3", "--steps", 4, "--save-every", 1,
            "--output", folder,
        )  # fmt: skip
        assert status == 0, err
        return out + err

    return run


def assert_same_figures(one: str, other: Path) -> None:
    for line, expected in zip(metrics(one), metrics(other), strict=True):
        assert flat(line) == pytest.approx(flat(expected), rel=1e-4, abs=1e-6)


def test_one_request_in_ten_spoilt(unbroken: Path, proxy: Proxy, train: Callable[[str], str]) -> None:
    proxy.rate = 0.1
    train("spoilt")
    assert proxy.spoilt, "the network was a good one after all"
    assert_same_figures("spoilt", unbroken)


@pytest.mark.parametrize("kind", ["lose", "error-after"])
def test_an_update_is_never_applied_twice(
    unbroken: Path, proxy: Proxy, train: Callable[[str], str], kind: Kind
) -> None:
    """The server has carried it out, and the client cannot know: it says so, and goes back."""
    proxy.rate, proxy.kinds, proxy.paths, proxy.at_most = 1.0, (kind,), ("optim_step",), 1
    printed = train("spoilt")
    assert proxy.spoilt == {("optim_step", kind): 1}
    assert "may or may not have done what it was asked: to update the adapter" in printed
    assert_same_figures("spoilt", unbroken)


def test_an_update_before_its_gradients_is_noticed(
    unbroken: Path, proxy: Proxy, train: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy server may do it; here the second step's update is sent first.

    The server still has the gradients when the adapter is given up, and the next adapter gets its place.
    """
    differentiate, steps = MintTrainingClient.forward_backward_custom, list[int]()

    def overtaken(client: MintTrainingClient, data: Any, loss_fn: Callable[..., Any], known: Any) -> Any:
        steps.append(len(steps) + 1)

        def update_and_loss(*arguments: Any) -> Any:
            sent = client.client.optim_step(adam_params)
            monkeypatch.setattr(client.client, "optim_step", lambda _: sent)
            return loss_fn(*arguments)

        return differentiate(client, data, update_and_loss if len(steps) == 2 else loss_fn, known)

    adam_params = types.AdamParams(learning_rate=1e-3)
    monkeypatch.setattr(MintTrainingClient, "forward_backward_custom", overtaken)
    printed = train("overtaken")
    assert "updated the adapter before it took up the gradients" in printed
    assert_same_figures("overtaken", unbroken)


def test_headers_that_a_proxy_strips_change_nothing(
    unbroken: Path, proxy: Proxy, train: Callable[[str], str]
) -> None:
    proxy.bare = True
    train("stripped")
    assert proxy.requests["optim_step"]
    assert_same_figures("stripped", unbroken)
