"""What a run prints: plain lines, JSON, next to nothing, and a live bar on a real terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.console import Console as Terminal
from run_files import run_description

from mint_train import hookimpl
from mint_train.observers.console import Console
from mint_train.observers.json_lines import JsonLines, parse_event, show_event
from mint_train.observers.live import LiveConsole
from mint_train.observers.notebook import NotebookConsole, in_notebook
from mint_train.run_folder.metric import Metric
from mint_train.run_folder.records import Checkpoint, Evaluation, RunRecord, RunResult, StepRecord
from mint_train.training.interrupts import STOPPING

COLUMNS, LINES = 90, 40


@pytest.fixture
def arguments(starter_model_folder: Path, short_pairs: Path) -> list[object]:
    return [
        "--loss", "dpo", "--data", short_pairs, "--model", starter_model_folder, "--steps", 3,
        "--batch-size", 2, "--output", "run",
    ]  # fmt: skip


def metrics_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


def test_plain_lines_where_there_is_no_terminal(run_cli: Callable[..., Any], arguments: list[object]) -> None:
    status, out, err = run_cli(*arguments)
    assert (status, err) == (0, "")
    shown = "Step {step}: loss={loss:.6f}, pair_accuracy={pair_accuracy:.2f}, mean_margin={mean_margin:.6f}"
    steps = [shown.format(step=line["step"], **line["metrics"]) for line in metrics_lines()]
    tokens = sum(line["tokens"] for line in metrics_lines())
    assert out.splitlines()[-7:] == [
        *steps,
        f"Tokens: {2 * tokens} ({tokens} forward, {tokens} backward).",
        "Final checkpoint: run/adapter",
        "Run folder: run",
        "Next: mint-train sample run (or eval, or plot)",
    ]
    assert out.startswith("Backend local (MINT_API_KEY is not set), model: ")
    assert "5 groups, 3 steps of at most 2." in out
    assert "\x1b" not in out


def test_quiet_prints_where_the_results_are_and_nothing_else(
    run_cli: Callable[..., Any], arguments: list[object]
) -> None:
    status, out, err = run_cli(*arguments, "--quiet")
    assert (status, out, err) == (0, "Final checkpoint: run/adapter\nRun folder: run\n", "")


def test_a_quiet_run_in_a_program_prints_nothing_at_all(
    train: Callable[..., Any], install_loss: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Its result is returned; even a hook that fails, which the command line warns of, stays silent."""

    class Failing:
        EXTENDS = "dpo"

        @hookimpl
        def step_finished(self) -> None:
            raise ValueError("on purpose")

    install_loss("failing", Failing())
    capfd.readouterr()
    result = train("failing", steps=1, progress="quiet")
    assert (result.status, result.folder) == ("done", Path("run"))
    assert capfd.readouterr() == ("", "")
    train("failing", steps=1, output=Path("loud"))
    out, err = capfd.readouterr()
    assert "Step 1: loss=" in out
    assert 'the loss "failing" failed in step_finished' in err


def test_what_one_process_printed_as_events_another_shows_as_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    described = {"mean_margin": Metric(".2f", shown=True)}
    saved = Checkpoint(2, "run/checkpoints/step-000002", "run/adapter", {})
    step = StepRecord(2, {"loss": 0.5, "mean_margin": 1.0}, 1e-5, 100, 0.25)
    evaluation = Evaluation(
        2, 3, {"loss": 0.4, "mean_margin": 2.0}, {"loss": (0.3, 0.5)}, ("mean_margin",), ()
    )

    def tell(display: Any) -> str:
        display.notice(text="3 groups held out.", warning=False)
        display.step_finished(step=step)
        display.evaluated(evaluation=evaluation)
        display.run_rolled_back(step=2, problem="the service failed")
        display.run_finished(result=RunResult("done", Path("run"), 2, step.metrics, saved))
        return capsys.readouterr().out

    printed = tell(JsonLines())
    console = Console(metrics=described)
    for line in printed.splitlines():
        event = parse_event(line)
        assert event is not None
        show_event(event, console)
    shown = capsys.readouterr().out
    assert shown == tell(Console(metrics=described))
    assert "Step 2: loss=0.500000, mean_margin=1.00\n" in shown
    assert parse_event("mint-train: no memory") is None
    assert parse_event('{"step": 1}') is None


def test_json_prints_an_object_a_line_and_nothing_else(
    run_cli: Callable[..., Any], arguments: list[object], short_pairs: Path
) -> None:
    status, out, err = run_cli(*arguments, "--json", "--eval-data", short_pairs)
    assert (status, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    names = [event["event"] for event in events]
    assert [name for name in names if name != "notice"] == [
        "run_started", "evaluated", *3 * ["step_finished"], "evaluated", "checkpoint_saved", "run_finished",
    ]  # fmt: skip
    assert names[0] == "notice"
    assert events[0]["text"].startswith("Backend local")
    started = events[names.index("run_started")]
    assert (started["folder"], started["loss"], started["steps"], started["groups"]) == ("run", "dpo", 3, 5)
    steps = [event for event in events if event["event"] == "step_finished"]
    for event, line in zip(steps, metrics_lines(), strict=True):
        line["event"] = "step_finished"
        assert event.pop("seconds") == pytest.approx(line.pop("seconds"), abs=1e-6)
        assert event == line
    evaluations = [json.loads(line) for line in Path("run/evaluations.jsonl").read_text().splitlines()]
    shown = [event for event in events if event["event"] == "evaluated"]
    assert shown == [{"event": "evaluated", **line} for line in evaluations]
    assert events[-1]["status"] == "done"
    assert events[-1]["checkpoint"]["sampler"] == "run/adapter"


def test_an_error_of_a_quiet_or_json_run_is_one_line_on_stderr(
    run_cli: Callable[..., Any], arguments: list[object]
) -> None:
    for switch in ("--quiet", "--json"):
        status, out, err = run_cli(*arguments, "--data", "nowhere.jsonl", switch)
        assert (status, out) == (2, "")
        assert err.startswith("mint-train: ")
        assert err.count("\n") == 1


def test_a_resume_prints_as_the_run_did_unless_it_is_told_otherwise(
    run_cli: Callable[..., Any], arguments: list[object]
) -> None:
    assert run_cli(*arguments, "--json").status == 0
    longer = run_cli("resume", "run", "--steps", 4)
    events = [json.loads(line) for line in longer.out.splitlines()]
    assert {"event": "notice", "text": "Resuming after step 3."} in events
    plain = run_cli("resume", "run", "--steps", 5, "--progress", "plain")
    assert "Step 5: loss=" in plain.out


def test_a_real_terminal_shows_a_bar_and_keeps_the_step_lines(
    arguments: list[object], tmp_path: Path, warm_python: str
) -> None:
    """A recorded session: what the bytes leave on the screen of a terminal."""
    recorded = record_session([warm_python, "-m", "mint_train", *map(str, arguments)], tmp_path)
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    during: list[str] = []
    for part in re.split(rb"(?=\x1b\[2K)", recorded):
        stream.feed(part)
        during.append("\n".join(line.rstrip() for line in screen.display))
    bars = [text for text in during if re.search(r"^ *[123]/3 ━", text, re.MULTILINE)]
    figures = r"^loss=\S+ pair_accuracy=\S+ mean_margin=\S+\n"
    bar = r" *[12]/3 .*[\d,]+ tokens/s \d:\d\d:\d\d \d:\d\d:\d\d left"
    assert any(re.search(figures + bar, text, re.MULTILINE) for text in bars), during[-20:]
    left = [line for line in during[-1].splitlines() if line]
    assert [line.partition(":")[0] for line in left[-6:]] == [
        "Step 2", "Step 3", "Tokens", "Final checkpoint", "Run folder", "Next",
    ]  # fmt: skip
    assert "━" not in during[-1], "the bar stays on the screen"
    assert not screen.cursor.hidden
    assert b"Backend local" in recorded


def test_an_interrupt_leaves_nothing_stale_on_the_screen(
    arguments: list[object], tmp_path: Path, warm_python: str
) -> None:
    """A terminal echoes `^C` behind the bar, whose lines must all be erased nevertheless."""
    command = [warm_python, "-m", "mint_train", *map(str, arguments)]
    command[command.index("--steps") + 1] = "5000"
    recorded = record_session(command, tmp_path, typed=(b"Step 1:", b"\x03"), status=130)
    screen = pyte.Screen(COLUMNS, LINES)
    pyte.ByteStream(screen).feed(recorded)
    left = [line.rstrip() for line in screen.display if line.strip()]
    *steps, stopping, press, tokens, saved, folder = left[
        left.index(next(x for x in left if x[:6] == "Step 1")) :
    ]
    assert all(re.match(r"Step \d+: loss=", line) for line in steps), left
    assert f"{stopping} {press}" == f"mint-train: {STOPPING}"
    assert re.fullmatch(r"Tokens: [\d,]+ \([\d,]+ forward, [\d,]+ backward\)\.", tokens)
    assert re.fullmatch(r"The state after step \d+ is saved; continue with: mint-train resume run", saved), (
        left
    )
    assert folder == "Run folder: run"


def test_a_terminal_shows_four_significant_digits() -> None:
    console, written = live_console(1)
    console.step_finished(StepRecord(1, {"loss": 0.0001234567, "mean_margin": 1234.5678}, 1e-5, 100, 0.5))
    console.run_finished(RunResult("done", Path("my run"), 1, {}, None))
    assert "Step 1: loss=0.0001235, mean_margin=1234.57\n" in written.getvalue()
    assert "Next: mint-train sample 'my run' (or eval, or plot)" in written.getvalue()


def record_session(
    command: list[str], folder: Path, *, typed: tuple[bytes, bytes] = (b"", b""), status: int = 0
) -> bytes:
    """Run a command whose output is a terminal of `COLUMNS` and `LINES`; return all that it wrote.

    Once it has written the first part of `typed`, the second part is typed.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    unset = ("COLUMNS", "LINES", "NO_COLOR", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env=environment | {"TERM": "xterm-256color"}, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    recorded = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        recorded += part
        if typed[1] and typed[0] in recorded:
            os.write(ours, typed[1])
            typed = (b"", b"")
    os.close(ours)
    assert process.wait() == status, recorded.decode()
    return recorded


def live_console(steps: int) -> tuple[LiveConsole, io.StringIO]:
    written = io.StringIO()
    console = LiveConsole()
    described = {"mean_margin": Metric(".2f", shown=True)}
    console.terminal = console.bar.live.console = Terminal(file=written, force_terminal=True, width=COLUMNS)
    console.run_started(
        RunRecord(Path("run"), "dpo", "local", "a model", steps, 8, described, run_description())
    )
    return console, written


def shown_steps(written: io.StringIO) -> list[int]:
    return [int(number) for number in re.findall(r"Step (\d+):", written.getvalue())]


def test_thousands_of_steps_leave_about_a_hundred_lines() -> None:
    console, written = live_console(5000)
    for step in range(1, 5001):
        console.step_finished(StepRecord(step, {"loss": 0.5, "mean_margin": 1.0}, 1e-5, 100, 0.5))
    task = console.bar.tasks[0]
    assert (task.completed, task.fields["speed"], task.fields["left"]) == (5000, "200", "0:00:00")
    console.run_finished(RunResult("done", Path("run"), 5000, {}, None))
    steps = shown_steps(written)
    assert steps == [1, *range(50, 5001, 50)]


def test_time_left_counts_the_steps_that_are_left() -> None:
    console, _ = live_console(100)
    try:
        console.step_finished(StepRecord(40, {"loss": 0.5}, 1e-5, 100, 90.0))  # resumed at 39
        assert console.bar.tasks[0].fields["left"] == "1:30:00"
    finally:
        console.stop()


def test_a_run_that_breaks_off_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from mint_train.observers import display

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    def break_off() -> None:
        with display.open_display("auto") as console:
            assert isinstance(console, LiveConsole)
            console.run_started(
                RunRecord(Path("run"), "dpo", "local", "a model", 3, 8, {}, run_description())
            )
            raise KeyboardInterrupt

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")
    assert sys.stdout is screen


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from mint_train.observers import display

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with display.open_display("auto") as console:
        assert type(console) is Console


def test_a_notebook_shows_a_bar_that_each_step_moves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_train.observers.notebook.PAUSE_SECONDS", -1.0)
    cell: list[str] = []
    console = NotebookConsole(lambda: cell.append)
    described = run_description().metrics
    console.run_started(
        RunRecord(Path("run"), "dpo", "local", "a model", 100, 8, described, run_description())
    )
    for step in range(1, 101):
        console.step_finished(StepRecord(step, {"loss": 1 / step}, 1e-5, 100, 0.25))
    console.run_finished(RunResult("done", Path("run"), 100, {}, None))
    assert cell[0] == '<progress value="0" max="100"></progress> 0 of 100 steps <code></code>'
    assert cell[50] == '<progress value="50" max="100"></progress> 50 of 100 steps <code>loss=0.02</code>'
    assert (len(cell), cell[-1]) == (102, "")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["Step 1", "Step 5", "Step 10"]
    assert not in_notebook()
