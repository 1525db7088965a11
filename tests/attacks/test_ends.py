"""Every end is an orderly end: a lost reader, a lost terminal, a plugin that exits."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_files import checkpoints

import mint_train
from mint_train.errors import LossError, MintTrainError, PluginError
from mint_train.losses.guard import RESERVED, check_state
from mint_train.losses.loss import Loss
from mint_train.losses.term import Term
from mint_train.plugin import sequence_logprobs
from mint_train.plugins.discovery import NamedPlugin, hook_arguments, make_manager
from mint_train.plugins.hookspecs import LossSpec
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.names import make_unused_folder
from mint_train.run_folder.records import Checkpoint
from mint_train.settings.loss_names import parse_terms
from mint_train.testing import make_batch, make_group, make_logprobs
from mint_train.training.interrupts import Interrupts, handled_signals

pytestmark = pytest.mark.attacks

# streams

TALKATIVE = """
import sys
from mint_train.cli.streams import outlast_readers
outlast_readers()
for number in range(20_000):
    print("line", number)
sys.stdout.flush()
open(sys.argv[1], "w").write("done")
"""


def ends(redirected: str, done: Path) -> subprocess.CompletedProcess[str]:
    """Run a talkative program in a shell, with its output redirected."""
    command = f'"$0" -c "$1" "$2" {redirected}'
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}", sys.executable, TALKATIVE, str(done)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("redirected", "says"),
    [("| head -n 5 >/dev/null", "Broken pipe"), (">/dev/full", "No space left"), (">&-", ""),
     (">&- 2>&-", ""), ("2>/dev/full >/dev/null", ""), ("<&- >/dev/null", "")],
)  # fmt: skip
def test_a_lost_reader_does_not_end_the_work(tmp_path: Path, redirected: str, says: str) -> None:
    ended = ends(redirected, tmp_path / "done")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "done").read_text() == "done"
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert ended.stderr.count("\n") == (1 if says else 0)


# signals


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_checkpoint(number: int) -> None:
    said: list[str] = []
    before = signal.signal(number, signal.default_int_handler)  # whoever runs the tests may ignore it
    try:
        with Interrupts(said.append) as interrupts:
            os.kill(os.getpid(), number)
            assert interrupts.asked
    finally:
        signal.signal(number, before)
    assert len(said) == 1


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in handled_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


# plugins

RAISED = {
    "exit": lambda: sys.exit(0), "exit with text": lambda: sys.exit("bye"), "value": lambda: int("x"),
    "key": lambda: {}["x"], "index": lambda: [][1], "type": lambda: None + 1,  # type: ignore[operator]
    "attribute": lambda: None.x, "zero": lambda: 1 / 0, "recursion": lambda: endless(),  # type: ignore[attr-defined]
    "memory": lambda: (_ for _ in ()).throw(MemoryError("no")), "lines": lambda: (_ for _ in ()).throw(
        ValueError("one\ntwo\nthree")), "stop": lambda: next(iter(())), "unicode": lambda: b"\xff".decode(),
    "os": lambda: os.stat("/nowhere/at/all"), "assertion": lambda: (_ for _ in ()).throw(AssertionError()),
}  # fmt: skip
HOOKS = sorted(hook_arguments(LossSpec))


def endless() -> None:
    endless()


def plugin_with(hook: str, action: Callable[[], Any]) -> object:
    """Make a plugin whose hook does something."""
    arguments = ", ".join(hook_arguments(LossSpec)[hook])
    space: dict[str, Any] = {"action": action}
    code = compile(f"def {hook}({arguments}):\n    return action()\n", "misbehaving.py", "exec")
    exec(code, space)
    return SimpleNamespace(**{hook: mint_train.hookimpl(space[hook])})


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_plugin_raises_in_a_hook_is_one_line(hook: str, raised: str) -> None:
    manager = make_manager([NamedPlugin("mine", plugin_with(hook, RAISED[raised]), "a test")])
    arguments = dict.fromkeys(hook_arguments(LossSpec)[hook])
    mathematics = hook == "compute_loss" and not raised.startswith("exit")
    with pytest.raises(Exception if mathematics else PluginError) as failed:
        getattr(manager.hook, hook)(**arguments)
    assert not isinstance(failed.value, SystemExit)
    if not mathematics:
        assert str(failed.value).startswith(f'the loss "mine" failed in {hook} at ')
        assert "\n" not in str(failed.value)


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_plugin_prints_stays_out_of_standard_output(hook: str) -> None:
    manager = make_manager([NamedPlugin("mine", plugin_with(hook, lambda: print("hello")), "a test")])
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        getattr(manager.hook, hook)(**dict.fromkeys(hook_arguments(LossSpec)[hook]))
    assert out.getvalue() == ""
    assert err.getvalue() == "hello\n"


FUNCTION = """\
import sys
from mint_train.plugin import loss
@loss(extends="dpo")
def leaving(batch, logprobs):
    sys.exit(0)
"""


@pytest.mark.parametrize(
    ("name", "text", "line"), [("at_once", "import sys\nsys.exit(0)\n", 2), ("leaving", FUNCTION, 5)]
)
def test_a_loss_file_that_exits_is_a_failure(
    tmp_path: Path, run_cli: Callable[..., Any], name: str, text: str, line: int
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    ended = run_cli("--loss", f"./{name}.py")
    assert ended.status != 0
    assert f"{name}.py:{line}" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "text", None, [1.0], {"a": 1}, True, 1j, b"x", object()]
)
def test_a_state_that_no_checkpoint_can_hold_is_refused(value: Any) -> None:
    with pytest.raises(LossError, match="as its state 'mean'"):
        check_state("mine", {"mean": value})
    check_state("mine", {"mean": 0.5, "count": 3})


@pytest.mark.parametrize(
    ("expression", "metric"),
    [*(("mine", name) for name in sorted(RESERVED)), ("mine+other", "other/loss"), ("2*mine", "mine/loss")],
)
def test_a_metric_by_the_name_of_a_figure_of_the_run_is_refused(expression: str, metric: str) -> None:
    def opened(metric: str) -> Loss:
        def mine(batch, logprobs):
            return sequence_logprobs(logprobs, batch).sum(), {metric: 1.0}

        plugin = mint_train.loss(extends="dpo")(mine)
        terms = [
            Term(NamedPlugin(name, plugin, "a test"), None, weight)
            for weight, name in parse_terms(expression)
        ]
        return Loss(terms, expression)

    batch, logprobs = make_batch(make_group([[3], [4]])), make_logprobs([[-1.0], [-2.0]])
    assert opened("own").compute(batch, logprobs, {})[1]["own"] == 1.0
    with pytest.raises(LossError, match=f"a metric called '{metric}', which is a figure of the run's own"):
        opened(metric).compute(batch, logprobs, {})


# files


def test_runs_started_in_one_second_each_get_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mint_train.run_folder.names.strftime", lambda _: "2026-01-01-000000")
    assert len({make_unused_folder("dpo") for _ in range(20)}) == 20


def saved(folder: Path, step: int, sampler: str | None = None) -> Checkpoint:
    state = folder / "checkpoints" / f"step-{step:06d}"
    state.mkdir(parents=True, exist_ok=True)
    (state / "state.safetensors").touch()
    return Checkpoint(step, str(state), sampler, {})


def test_the_last_checkpoint_has_one_line_however_often_it_is_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, sampler in ((2, None), (4, None), (4, "adapter"), (4, "adapter")):
        folder.append_checkpoint(saved(tmp_path, step, sampler))
    assert [(line["step"], line["sampler"]) for line in checkpoints(tmp_path)] == [(2, None), (4, "adapter")]


def test_a_state_that_a_kill_left_behind_is_forgotten_with_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (2, 4, 6):
        folder.append_checkpoint(saved(tmp_path, step))
    assert len(folder.forget_checkpoints(1)) == 2  # and then the run is killed
    folder.append_checkpoint(saved(tmp_path, 8))
    dropped = {Path(path).name for path in folder.forget_checkpoints(1)}
    assert dropped == {"step-000002", "step-000004", "step-000006"}
    assert [line["step"] for line in checkpoints(tmp_path)] == [8]


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(MintTrainError) as refused:
        RunFolder(tmp_path).read_description()
    assert "\n" not in str(refused.value)
