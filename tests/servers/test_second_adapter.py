"""Steps are taken while a second adapter computes references, and no figure changes by it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from few_rows import lines, write_lines
from pydantic import SecretStr
from run_files import flat, metrics
from server import SkyrlServer
from slots import is_unloaded

import mint_train
from mint_train.backends.mint.client import MintTrainingClient, open_mint_client
from mint_train.errors import BackendError
from mint_train.groups import reference_ahead
from mint_train.groups.reference_ahead import SecondAdapter
from mint_train.groups.reference_blocks import BLOCK
from mint_train.settings.model import Settings
from mint_train.training import references

Train = Callable[..., Any]
BLOCKS, STEPS = 5, 6
WAIT_SECONDS = 60.0


class KilledError(BaseException):
    """Stands for the end of the process."""


class Gate:
    """Lets the thread that runs ahead ask for nothing before the first update, and notes what was there."""

    def __init__(self) -> None:
        self.update, self.released = threading.Event(), threading.Event()
        self.released.set()
        self.before_first: int | None = None
        self.updates = 0
        self.dies_at: int | None = None

    def is_open(self) -> bool:
        return threading.current_thread() is threading.main_thread() or (
            self.update.wait(WAIT_SECONDS) and self.released.wait(WAIT_SECONDS)
        )


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gate:
    gate = Gate()
    forward, update = SecondAdapter.forward, MintTrainingClient.optim_step

    def gated_forward(self: SecondAdapter, data: list[Any], loss_fn: str) -> Any:
        assert gate.is_open(), "the first step waits for what later ones need"
        return forward(self, data, loss_fn)

    def noted_update(self: MintTrainingClient, params: Any) -> Any:
        if gate.before_first is None:
            gate.before_first = computed(tmp_path / "early")
        gate.updates += 1
        if gate.updates == gate.dies_at:
            raise KilledError
        gate.update.set()
        return update(self, params)

    monkeypatch.setattr(SecondAdapter, "forward", gated_forward)
    monkeypatch.setattr(MintTrainingClient, "optim_step", noted_update)
    monkeypatch.setattr(references, "FEW_BLOCKS", 2)
    monkeypatch.setattr(reference_ahead, "BLOCKS_AT_ONCE", 1)
    return gate


@pytest.fixture(scope="module")
def start(skyrl_server: SkyrlServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapter has moved far from the base model."""
    folder = tmp_path_factory.mktemp("start")
    mint_train.train("sft", output=folder / "run", **of_server(skyrl_server, folder), steps=2)
    return folder / "run"


@pytest.fixture(scope="module")
def all_first(skyrl_server: SkyrlServer, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from that adapter that had all references before its first step."""
    folder = tmp_path_factory.mktemp("all-first")
    given = of_server(skyrl_server, folder) | REFERENCED
    mint_train.train("dpo", **given, from_checkpoint=start, second_adapter=False, output=folder / "run")
    return folder / "run"


REFERENCED = {"options": {"reference": "initial"}, "steps": STEPS, "save_every": 1}


def of_server(server: SkyrlServer, folder: Path) -> dict[str, Any]:
    """Return the settings of runs whose policy moves far in each step."""
    rows = [
        {"prompt": f"Say {n}.", "chosen": f"{n} it is", "rejected": f"not {n}, no"}
        for n in range(10, 10 + BLOCKS * BLOCK)
    ]
    return {
        "data": write_lines(folder / "pairs.jsonl", rows), "base_url": server.base_url, "api_key": "tml-x",
        "model": server.model, "backend": "mint", "batch_size": 2, "lr": 3e-3, "progress": "plain",
    }  # fmt: skip


@pytest.fixture
def train(skyrl_server: SkyrlServer, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    monkeypatch.setenv("MINT_API_KEY", "tml-x")  # for the resume
    monkeypatch.setenv("MINT_BASE_URL", skyrl_server.base_url)

    def run(**changed: Any) -> Any:
        given = of_server(skyrl_server, tmp_path) | REFERENCED | {"from_checkpoint": start}
        return mint_train.train("dpo", **given | changed, output=tmp_path / "early")

    return run


def computed(folder: Path) -> int:
    return len(list((folder / "reference").glob("*.arrow")))


def assert_same_figures(one: Path, other: Path) -> None:
    assert len(metrics(one)) == STEPS
    for line, expected in zip(metrics(one), metrics(other), strict=True):
        assert flat(line) == pytest.approx(flat(expected), rel=1e-4, abs=1e-5)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """List the second adapters of a run."""
    found: list[Any] = []
    open_start = references.open_start

    def noted(run: Any) -> Any:
        found.append(open_start(run))
        return found[-1]

    monkeypatch.setattr(references, "open_start", noted)
    return found


def test_the_first_step_does_not_wait_for_the_references_of_later_ones(
    train: Train, gate: Gate, all_first: Path, skyrl_server: SkyrlServer, opened: list[Any], tmp_path: Path
) -> None:
    freed: list[bool] = []

    class LooksAtSlots:
        @mint_train.hookimpl
        def step_finished(self, step: Any) -> None:
            if step.step == STEPS - 1:
                freed.append(is_unloaded(opened[0], skyrl_server))

    train(observers=[LooksAtSlots()])
    assert gate.before_first is not None
    assert gate.before_first <= 2, "the blocks of two groups"
    assert computed(tmp_path / "early") == computed(all_first) > 2
    assert_same_figures(tmp_path / "early", all_first)
    assert freed == [True], "once all references are there, and not only when the run ends"


def test_a_killed_run_goes_on_with_the_reference_that_it_began_with(
    train: Train, gate: Gate, all_first: Path, tmp_path: Path
) -> None:
    gate.dies_at = 3
    gate.update.wait = lambda _: gate.updates > STEPS + 1  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        train()
    assert computed(tmp_path / "early") < computed(all_first)
    assert len(metrics(tmp_path / "early")) == 2
    gate.dies_at = None
    mint_train.resume(tmp_path / "early")
    assert_same_figures(tmp_path / "early", all_first)


def test_a_second_adapter_that_is_lost_is_opened_again(
    train: Train, gate: Gate, all_first: Path, opened: list[Any], tmp_path: Path
) -> None:
    class Breaks:
        @mint_train.hookimpl
        def step_finished(self, step: Any) -> None:
            if step.step == 1:
                opened[0].leave()
                gate.released.set()

    gate.released.clear()
    train(observers=[Breaks()])
    assert len(opened) > 1
    assert_same_figures(tmp_path / "early", all_first)


def test_the_first_step_does_not_wait_until_the_second_adapter_is_open(
    train: Train, all_first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    open_start, backward = references.open_start, MintTrainingClient.forward_backward_custom

    def waits(run: Any) -> Any:
        assert begun.wait(WAIT_SECONDS), "the first step waits for a second adapter"
        return open_start(run)

    def noted(self: MintTrainingClient, *given: Any) -> Any:
        begun.set()
        return backward(self, *given)

    monkeypatch.setattr(references, "open_start", waits)
    monkeypatch.setattr(MintTrainingClient, "forward_backward_custom", noted)
    monkeypatch.setattr(references, "FEW_BLOCKS", 2)
    train()
    assert_same_figures(tmp_path / "early", all_first)


class Slots:
    """The slots of a server that others than the run hold."""

    def __init__(self, server: SkyrlServer) -> None:
        self.server = server
        self.taken: list[MintTrainingClient] = []

    def fill(self) -> None:
        """Take all that are free."""
        key = SecretStr("tml-x")
        settings = Settings(loss="any", rank=16, base_url=self.server.base_url, api_key=key)
        with suppress(BackendError):
            while True:
                self.taken.append(open_mint_client(settings, print, model=self.server.model, trains=False))

    def free(self) -> None:
        """Give one back."""
        client = self.taken.pop()
        client.close()
        assert is_unloaded(client, self.server)


@pytest.fixture
def slots(skyrl_server: SkyrlServer) -> Iterator[Slots]:
    slots = Slots(skyrl_server)
    yield slots
    while slots.taken:
        slots.free()


@pytest.fixture
def one_slot(slots: Slots) -> None:
    """Leave one slot of the server."""
    slots.fill()
    slots.free()


def test_a_second_adapter_whose_slot_is_taken_by_another_is_not_needed(
    train: Train, gate: Gate, all_first: Path, slots: Slots, opened: list[Any], tmp_path: Path
) -> None:
    rolled_back: list[str] = []

    class Takes:
        @mint_train.hookimpl
        def step_finished(self, step: Any) -> None:
            if step.step == 1 and not rolled_back:
                opened[0].leave()
                assert is_unloaded(opened[0], slots.server)
                slots.fill()
                gate.released.set()

        @mint_train.hookimpl
        def run_rolled_back(self, step: int, problem: str) -> None:
            rolled_back.append(f"{step}: {problem}")

    gate.released.clear()
    train(observers=[Takes()])
    (problem,) = rolled_back
    assert not problem.startswith("0: ")
    assert "the second adapter is lost" in problem
    assert_same_figures(tmp_path / "early", all_first)


def test_without_a_second_slot_all_references_come_before_the_first_update(
    train: Train,
    gate: Gate,
    all_first: Path,
    one_slot: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train()
    printed = capsys.readouterr().out.splitlines()
    _, line = [line for line in printed if line.startswith("Reference logprobs")]
    assert "all others now, as a second adapter is refused" in line
    assert "no slot left" in line
    assert gate.before_first == computed(all_first)
    assert_same_figures(tmp_path / "early", all_first)
    assert lines(tmp_path / "early/tokens.jsonl")
