"""Observers: found by their entry points, refused in one line, and never the end of a run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mint_train.errors import OptionError, PluginError
from mint_train.losses.weighted_sum import open_loss
from mint_train.observers.registry import load_observer, open_observers
from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.records import StepRecord
from mint_train.settings.merge import load_settings


@pytest.fixture
def install_observer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """Make a class look like an installed distribution's observer."""
    added: list[EntryPoint] = []

    def found(group: str) -> Iterator[EntryPoint]:
        yield from entry_points(group=group)
        yield from (entry for entry in added if entry.group == group)

    def install(name: str, observer: object) -> None:
        module = ModuleType(f"observer_{len(added)}_of_a_test")
        module.made = observer  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        added.append(EntryPoint(name, f"{module.__name__}:made", "mint_train.observers"))

    monkeypatch.setattr("mint_train.plugins.installed.entry_points", found)
    return install


class Away:
    """A tracker whose server goes away at the second step."""

    told: list[str]

    def __init__(self) -> None:
        Away.told = []

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        sys.stdout.write("a line of the library's own\n")
        Away.told.append(f"step {step.step}")
        if step.step == 2:
            raise ConnectionError("no route to host\nand a long trace")

    @hookimpl
    def run_finished(self) -> None:
        Away.told.append("finished")


def test_a_tracker_that_fails_costs_one_line_and_never_the_run(
    train: Callable[..., Any],
    install_observer: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    install_observer("away", Away)
    result = train(track=["away"])
    out, err = capsys.readouterr()
    assert (result.status, result.steps) == ("done", 4)
    assert Away.told == ["step 1", "step 2"]
    assert "Step 4: loss=" in out
    assert "library's own" not in out
    assert [line for line in err.splitlines() if line.startswith("mint-train")] == [
        'mint-train: the observer "away" failed in step_finished and is disabled for the rest of this run: '
        "ConnectionError: no route to host"
    ]


class Remarking:
    """A loss on pairs that says something about its data, and hears of the steps."""

    EXTENDS = "dpo"

    def __init__(self, word: str, broken: bool = False) -> None:
        self.word, self.broken = word, broken
        self.heard: list[str] = []

    @hookimpl
    def data_note(self) -> str:
        return f"the data is {self.word}"

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        self.heard.append(f"step {step.step}")
        if self.broken:
            raise ValueError("out of ink")

    @hookimpl
    def run_finished(self) -> None:
        self.heard.append("finished")


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Speechless:
    @hookimpl
    def step_finished(self) -> None:
        raise SpeechlessError


def test_an_observer_whose_exception_cannot_say_what_it_is_never_ends_the_run(
    train: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(steps=1, observers=[Speechless()]).status == "done"
    assert capsys.readouterr().err.endswith("disabled for the rest of this run: SpeechlessError: \n")


@pytest.mark.parametrize(
    ("observers", "found"),
    [(Speechless(), "a Speechless"), (7, "a number"), ("wandb", "a str"), ({}, "a table")],
)
def test_observers_that_are_no_list_are_refused(
    observers: Any, found: str, train: Callable[..., Any]
) -> None:
    with pytest.raises(OptionError, match=f"^observers is {found}; give a list of observers$"):
        train(steps=1, observers=observers)


def test_no_observers_are_none(train: Callable[..., Any]) -> None:
    assert train(steps=1, observers=None).status == "done"


def test_notes_and_observer_hooks_of_every_part_of_a_sum_are_heard_once(
    train: Callable[..., Any], install_loss: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Remarking("short"), Remarking("odd")
    install_loss("first", first)
    install_loss("second", second)
    train("first+0.5*second", steps=2)
    out, _ = capsys.readouterr()
    assert first.heard == second.heard == ["step 1", "step 2", "finished"]
    assert (out.count("the data is short"), out.count("the data is odd")) == (1, 1)


def test_an_observer_hook_of_a_loss_that_fails_never_ends_the_run(
    train: Callable[..., Any], install_loss: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Remarking("short", broken=True)
    install_loss("broken", broken)
    assert train("broken", steps=3).status == "done"
    assert broken.heard == ["step 1"]
    assert capsys.readouterr().err == (
        'mint-train: the loss "broken" failed in step_finished and is disabled for the rest of this run: '
        "ValueError: out of ink\n"
    )


def test_an_unknown_observer_names_the_nearest(run_cli: Callable[..., Any]) -> None:
    status, out, err = run_cli("--loss", "dpo", "--track", "tensorbord")
    assert (status, out) == (2, "")
    assert 'no observer "tensorbord" is installed; did you mean "tensorboard"?; installed: mlflow' in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow"), ("trackio", "trackio")],
)
def test_a_missing_library_says_what_to_install(
    run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    for loaded in [other for other in sys.modules if other.split(".")[0] == "mint_train_trackers"]:
        monkeypatch.delitem(sys.modules, loaded)
    for loaded in [other for other in sys.modules if other.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    status, out, err = run_cli("--loss", "dpo", "--track", name)
    assert (status, out) == (2, "")
    assert re.search(rf"which is not installed: pip install '{name}>=[\d.]+'\n$", err)
    assert (
        f'the observer "{name}" of mint-train-trackers {version("mint-train-trackers")} needs {module}' in err
    )


class Trainer:
    @hookimpl
    def compute_loss(self) -> None: ...


class Misspelt:
    @hookimpl
    def step_finishd(self) -> None: ...


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("no such thing")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Trainer, 'the observer "mine" of .* implements a hook "compute_loss" that does not exist'),
        (Misspelt, 'hook "step_finishd" that does not exist; did you mean "step_finished"?'),
        (Broken, "cannot be created from observer_0_of_a_test:made: RuntimeError: no such thing"),
        (object, "implements no hook; see docs/hooks.md$"),
    ],
)
def test_a_broken_observer_is_refused_before_anything_begins(
    install_observer: Callable[[str, object], None], made: object, message: str
) -> None:
    install_observer("mine", made)
    settings = load_settings({"loss": "dpo", "progress": "quiet", "track": "mine"})
    with (
        pytest.raises(PluginError, match=message.replace("?", r"\?")),
        open_observers(settings, open_loss("dpo", {})),
    ):
        pass


def test_an_observer_is_made_anew_for_each_run(install_observer: Callable[[str, object], None]) -> None:
    install_observer("away", Away)
    assert load_observer("away").plugin is not load_observer("away").plugin


def test_the_observer_of_the_docs_works(
    train: Callable[..., Any], install_observer: Callable[[str, object], None]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "watching.md"
    (source,) = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {}
    exec(source, found)
    install_observer("best", found["BestStep"])
    train(track=["best"])
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["metrics"]["loss"])
    assert (
        Path("run/observers/best.txt").read_text() == f"step {best['step']}: {best['metrics']['loss']:.6f}\n"
    )
