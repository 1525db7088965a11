"""A bad network between a run and a real server: the run ends with the figures of an unbroken one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxy import Kind, Proxy, running_proxy
from run_files import flat, metrics
from server import SkyrlServer

from mint_train.backends.mint.client import MintTrainingClient
from mint_train.sdk import types

RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def proxy(skyrl_server: SkyrlServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("MINT_API_KEY", "tml-x")
    monkeypatch.setenv("MINT_BASE_MODEL", skyrl_server.model)
    with running_proxy(Proxy(skyrl_server.base_url, slow_seconds=1.0)) as proxy:
        monkeypatch.setenv("MINT_BASE_URL", proxy.url)
        yield proxy


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


def assert_same_figures(one: str, other: str) -> None:
    for line, expected in zip(metrics(one), metrics(other), strict=True):
        assert flat(line) == pytest.approx(flat(expected), rel=1e-4, abs=1e-6)


def test_one_request_in_ten_spoilt(proxy: Proxy, train: Callable[[str], str]) -> None:
    train("unbroken")
    proxy.rate = 0.1
    train("spoilt")
    assert proxy.spoilt, "the network was a good one after all"
    assert_same_figures("spoilt", "unbroken")


@pytest.mark.parametrize("kind", ["lose", "error-after"])
def test_an_update_is_never_applied_twice(proxy: Proxy, train: Callable[[str], str], kind: Kind) -> None:
    """The server has carried it out, and the client cannot know: it says so, and goes back."""
    train("unbroken")
    proxy.rate, proxy.kinds, proxy.paths, proxy.at_most = 1.0, (kind,), ("optim_step",), 1
    printed = train("spoilt")
    assert proxy.spoilt == {("optim_step", kind): 1}
    assert "may or may not have done what it was asked: to update the adapter" in printed
    assert_same_figures("spoilt", "unbroken")


def test_an_update_before_its_gradients_is_noticed(
    proxy: Proxy, train: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy server may do it; here the second step's update is sent first.

    The server still has the gradients when the adapter is given up, and the next adapter gets its place.
    """
    train("unbroken")
    differentiate, steps = MintTrainingClient.forward_backward_custom, list[int]()

    def overtaken(client: MintTrainingClient, data: Any, loss_fn: Callable[..., Any]) -> Any:
        steps.append(len(steps) + 1)

        def update_and_loss(*arguments: Any) -> Any:
            sent = client.client.optim_step(adam_params)
            monkeypatch.setattr(client.client, "optim_step", lambda _: sent)
            return loss_fn(*arguments)

        return differentiate(client, data, update_and_loss if len(steps) == 2 else loss_fn)

    adam_params = types.AdamParams(learning_rate=1e-3)
    monkeypatch.setattr(MintTrainingClient, "forward_backward_custom", overtaken)
    printed = train("overtaken")
    assert "updated the adapter before it took up the gradients" in printed
    assert_same_figures("overtaken", "unbroken")
