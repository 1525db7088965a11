"""A loss from a file: `--loss ./my_loss.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mint_train.errors import PluginError
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.settings.merge import load_settings

GOOD = '''
import torch
from mint_train import loss, sequence_logprobs

@loss(extends="dpo")
def {name}(batch, logprobs):
    """Push each chosen above its rejected."""
    scores = sequence_logprobs(logprobs, batch)
    return batch.mean(torch.nn.functional.softplus(scores[1::2] - scores[::2]))
'''


def write(folder: Path, source: str, name: str = "own_loss_of_a_test.py") -> str:
    path = folder / name
    path.write_text(source, encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def forget_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "own_loss_of_a_test", raising=False)


def test_a_function_under_loss_is_the_plugin(tmp_path: Path) -> None:
    plugin = load_plugin(write(tmp_path, GOOD.format(name="mine")))
    assert plugin.name == "own_loss_of_a_test"
    assert [link.name for link in Loss.of(plugin).plugins] == ["dpo", "own_loss_of_a_test"]


def test_a_module_with_hooks_is_the_plugin(tmp_path: Path) -> None:
    source = 'from mint_train import hookimpl\nEXTENDS = "dpo"\n@hookimpl\ndef metrics():\n    return {}\n'
    plugin = load_plugin(write(tmp_path, source))
    assert plugin.plugin is sys.modules["own_loss_of_a_test"]
    assert Loss.of(plugin).name == "own_loss_of_a_test"


def test_a_loss_imported_into_the_file_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, GOOD.format(name="other"), "other_loss_of_a_test.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from other_loss_of_a_test import other\n" + GOOD.format(name="mine")
    assert load_plugin(write(tmp_path, source)).plugin.__name__ == "mine"  # type: ignore[attr-defined]


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    load_plugin(write(tmp_path, GOOD.format(name="mine")))
    assert load_plugin(write(tmp_path, GOOD.format(name="changed"))).plugin.__name__ == "changed"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = 1\n", "holds no loss: put @mint_train.loss"),
        (GOOD.format(name="one") + GOOD.format(name="two"), "holds 2 losses: one, two"),
        ("x = 1\ndef broken(:\n", r"own_loss_of_a_test\.py:2: SyntaxError"),
        ("x = 1\n\ny = 1 / 0\n", r"own_loss_of_a_test\.py:3: ZeroDivisionError: division by zero"),
        ("import surely_not_installed\n", r"\.py:1: ModuleNotFoundError"),
    ],
)
def test_a_file_that_is_no_loss(source: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=problem):
        load_plugin(write(tmp_path, source))


def test_a_failed_import_leaves_no_module(tmp_path: Path) -> None:
    with pytest.raises(PluginError):
        load_plugin(write(tmp_path, "1 / 0\n"))
    assert "own_loss_of_a_test" not in sys.modules


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"nowhere\.py: no such file"):
        load_plugin("./nowhere.py")
    with pytest.raises(PluginError, match="it is a folder"):
        load_plugin(f"{tmp_path}/")


def test_a_file_cannot_take_the_place_of_a_module(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match='a module "torch" is in use already'):
        load_plugin(write(tmp_path, GOOD.format(name="mine"), "torch.py"))


def test_the_environment_knows_it_by_its_stem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_MY_LOSS_STEPS", "7")
    assert load_settings({"loss": "./losses/my-loss.py"}).steps == 7


def test_it_is_checked_and_trained_by_its_path(run_cli: Any, tmp_path: Path, short_pairs: Path) -> None:
    path = write(tmp_path, GOOD.format(name="mine"))
    assert run_cli("check", path).status == 0
    ended = run_cli("--loss", path, "--data", short_pairs, "--steps", 2, "--backend", "local")
    assert ended.status == 0, ended.err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("own_loss_of_a_test-")
    description = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert description["loss"] == "own_loss_of_a_test"
    assert run_cli("resume", run).status == 0
