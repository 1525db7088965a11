"""The commands as functions of a Python program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from run_files import run_description

import mint_train
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.errors import DataError, MintTrainError, OptionError, UserError
from mint_train.plugin import loss
from mint_train.run_folder.parts import METRICS_FILE, RUN_FILE
from mint_train.run_folder.records import Evaluation, HeldOut
from mint_train.settings.keywords import SettingsKeywords, as_keywords
from mint_train.settings.model import Settings

Train = Callable[..., Any]
RunCli = Callable[..., Any]


def test_the_module_lists_what_it_has_and_imports_it_late() -> None:
    code = (
        "import sys, mint_train; "
        "print(set(mint_train.__all__) <= set(dir(mint_train)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    for name in mint_train.__all__:
        assert getattr(mint_train, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'; did you mean 'train'"):
        mint_train.trian  # noqa: B018


def test_the_keywords_are_the_settings() -> None:
    hints = get_type_hints(SettingsKeywords)
    assert hints.keys() == Settings.model_fields.keys() - {"loss", "options", "api_key"}
    for name, hint in hints.items():
        annotation = Settings.model_fields[name].annotation
        if get_origin(annotation) is Literal:
            assert get_args(hint) == get_args(annotation), name
        elif annotation in (bool, int, float):
            assert hint is annotation, name


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"stepps": 3}, 'no setting is called "stepps"; did you mean "steps"?'),
        ({"learning_rate": 1}, 'no setting is called "learning_rate"; here it is lr'),
        ({"dpo_beta": 1}, 'no setting is called "dpo_beta"; here it is options={"beta": NUMBER}'),
        ({"lr": 7}, "lr=7: input should be less than or equal to 1"),
        ({"steps": 1, "epochs": 1}, "steps and epochs are both given; give one of them"),
        ({"data": "no/rows.jsonl"}, "no/rows.jsonl: no such file; the folder no does not exist"),
    ],
)
def test_an_error_speaks_of_keywords(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(MintTrainError) as refused:
        mint_train.train("dpo", progress="quiet", **given)
    assert str(refused.value) == problem


@pytest.mark.parametrize(
    ("said", "in_python"),
    [
        ("give --eval-data or --from", "give eval_data or from_checkpoint"),
        ("replace it with --overwrite", "replace it with overwrite=True"),
        ("--no-pipeline sends it later", "pipeline=False sends it later"),
        ('--set beta=-1 of the loss "dpo": no', 'options={"beta": -1} of the loss "dpo": no'),
        ("--set betta: no option", "option betta: no option"),
        ("`mint-train export --to merged` does it", "`mint-train export --to merged` does it"),
        ("try: mint-train plot --output x", "try: mint-train plot --output x"),
        ("write a--b or --", "write a--b or --"),
    ],
)
def test_options_become_keywords_but_not_in_commands(said: str, in_python: str) -> None:
    assert as_keywords(said) == in_python


def evaluation(name: str, step: int = 1) -> Evaluation:
    return Evaluation(step, 3, {"loss": float(step)}, {"loss": (0.0, 2.0)}, (), (), name)


def test_held_out_figures_go_by_the_name_of_their_set() -> None:
    one = HeldOut([evaluation("", 0), evaluation("", 4)])
    assert (one.metrics, one.intervals, list(one)) == ({"loss": 4.0}, {"loss": (0.0, 2.0)}, [""])
    two = HeldOut([evaluation("plain"), evaluation("hard", 0), evaluation("hard", 4)])
    assert two["hard"].metrics == {"loss": 4.0}
    with pytest.raises(UserError, match="there are 2 held-out sets; choose one by its name: plain, hard"):
        two.metrics  # noqa: B018
    with pytest.raises(UserError, match="no rows were held out"):
        HeldOut().metrics  # noqa: B018


def test_a_run_is_read_back_with_its_metrics_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json"):
        mint_train.load_run(tmp_path)
    (tmp_path / RUN_FILE).write_text(run_description().to_json())
    step = '{"step": 1, "metrics": {"loss": 0.5}, "learning_rate": 0.1, "tokens": 3, "seconds": 1.0}'
    (tmp_path / METRICS_FILE).write_text(f"{step}\n")
    run = mint_train.load_run(tmp_path)
    assert run.metrics == [{"step": 1, "loss": 0.5, "learning_rate": 0.1, "tokens": 3, "seconds": 1.0}]
    assert (run.description.loss, run.evaluations) == (run_description().loss, [])
    assert not run.held_out


def test_what_is_wrong_with_a_call_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="prompts and data are both given"):
        mint_train.sample(tmp_path, "a", data="b")
    with pytest.raises(OptionError, match="dpx is none of the losses dpo, ipo"):
        mint_train.compare(["dpo", "ipo"], options={"dpx": {}})
    with pytest.raises(OptionError, match="name each loss once"):
        mint_train.compare(["dpo", "dpo"])
    given: dict[str, Any] = {"rounds": 2}
    with pytest.raises(OptionError, match=r"^rounds is for train\(\.\.\., rounds=N\) alone; leave it out$"):
        mint_train.compare(["dpo", "ipo"], **given)
    with pytest.raises(OptionError, match="no run is named"):
        mint_train.plot()
    with pytest.raises(UserError, match="holds no run"):
        mint_train.resume(tmp_path)


@pytest.mark.parametrize("name", ["data", "eval_data"])
def test_rows_given_as_text_are_refused_in_one_line(name: str, train: Train) -> None:
    rows = '{"prompt": "Say it.", "chosen": "it", "rejected": "no"}\n' * 100
    with pytest.raises(DataError) as refused:
        train(**{name: rows})
    assert str(refused.value) == (
        '{"prompt": "Say it.", "chosen": "it", "r ...: File name too long; give a file, or from Python rows '
        "as a list of dictionaries"
    )


class Listener:
    def __init__(self) -> None:
        self.heard: list[int] = []

    @mint_train.hookimpl
    def step_finished(self, step: Any) -> None:
        self.heard.append(step.step)


def test_a_run_of_a_function_goes_on_with_the_function(
    train: Train, run_cli: RunCli, short_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @loss(extends="dpo")
    def pull_up(batch: Any, logprobs: Any) -> Any:
        """Raise all."""
        return -torch.stack([values.sum() for values in logprobs]).mean()

    closed: list[object] = []
    close = LocalTrainingClient.close
    monkeypatch.setattr(LocalTrainingClient, "close", lambda self: closed.append(close(self)))
    listener = Listener()
    result = train(pull_up, steps=1, observers=[listener], eval_data=short_pairs, progress="quiet")
    assert len(closed) == 1
    assert [each.step for each in result.evaluations] == [0, 1]
    assert result.held_out.metrics == result.evaluations[-1].metrics
    for command in ("resume", "eval", "sample"):
        ended = run_cli(command, "run")
        assert ended.status == 2
        assert f'"pull_up" of run is a function of {Path(__file__)}; call ' in ended.err
        assert 'mint_train.resume("run", loss=pull_up) there, or evaluate or sample' in ended.err

    resumed = mint_train.resume("run", loss=pull_up, steps=2, observers=[listener])
    assert (resumed.status, resumed.steps, listener.heard) == ("done", 2, [1, 2])
    assert mint_train.train(pull_up, resume="run").steps == 2
    evaluated = mint_train.evaluate("run", loss=pull_up)
    assert evaluated.metrics == pytest.approx(resumed.held_out.metrics)
    (completed,) = mint_train.sample("run", "Say one.", max_tokens=2)
    assert (completed.prompt, len(completed.after)) == ("Say one.", 1)
    saved = mint_train.load_run("run")
    assert [step["step"] for step in saved.metrics] == [1, 2]
    assert saved.held_out.metrics == resumed.held_out.metrics
    for shown in (resumed._repr_html_(), saved._repr_html_()):
        assert "run: pull_up, done, 2 of 2 steps" in shown
        assert "<th>after step 2</th>" in shown
        assert shown.count("<svg") == len({"loss"})
    pull_up.__name__ = "push_down"
    with pytest.raises(OptionError, match="loss push_down: this run was started with pull_up"):
        mint_train.resume("run", loss=pull_up)


OWN_MODULE = '''
import torch
from mint_train.plugin import loss

@loss(extends="dpo")
def raise_all(batch, logprobs):
    """Raise all."""
    return -torch.stack([values.sum() for values in logprobs]).mean()
'''


def test_a_function_of_a_module_is_found_again(
    train: Train, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "own_losses.py"
    module.write_text(OWN_MODULE)
    with monkeypatch.context() as importing:
        importing.syspath_prepend(tmp_path)
        train(import_module("own_losses").raise_all, steps=1)
    del sys.modules["own_losses"]  # another process, which does not look for modules there
    ended = run_cli("resume", "run", "--steps", "2")
    assert (ended.status, ended.err) == (0, "")
    assert "Resuming after step 1." in ended.out
    monkeypatch.chdir("run")
    assert f"names {module} as its loss, whose code would be run" in run_cli("eval", tmp_path / "run").err
    monkeypatch.chdir(tmp_path)
    module.write_text(OWN_MODULE + "# edited\n")
    assert f"{module} has changed since run was trained with it" in run_cli("resume", "run").err
    module.unlink()
    assert f"{module} is gone, which held the loss" in run_cli("resume", "run").err
