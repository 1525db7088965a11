"""No row, docstring, server or file name controls the terminal, and no name writes into a model card."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, Field
from rich.table import Table
from rich.text import Text
from run_files import run_description

import mint_train
from mint_train.observers.json_lines import JsonLines, parse_event
from mint_train.observers.live import LiveConsole
from mint_train.observers.model_card import model_card
from mint_train.observers.screen import Screen
from mint_train.observers.terminal import LONGEST_PROBLEM, echo, echo_problem
from mint_train.plugins.listing import LossListing
from mint_train.run_folder.description import LossDescription
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.metric import Metric

pytestmark = pytest.mark.attacks

CODES = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x1b]8;;http://x\x1b\\",
    "\b\b\b",
    "\rover",
    "\u202egnp",
    "\x7f",
]
HOSTILE = "a" + "".join(CODES) + "b"


def is_printable(text: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in text)


@pytest.mark.parametrize("code", CODES)
def test_a_control_code_is_shown_and_not_sent(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    echo(f"a {code} b")
    echo_problem(f"a {code} b")
    out, err = capsys.readouterr()
    assert is_printable(out + err)
    assert out.startswith("a \\u")


def test_other_text_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "größer 日本 🙂 👩‍👧 क्षि \t\n\\x1b [bold]"
    echo(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_an_error_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    echo_problem("one\ntwo\r\n" + "x" * 10_000_000 + " the end")
    err = capsys.readouterr().err
    assert err.startswith("mint-train: one two xxx")
    assert err.endswith("xxx the end\n")
    assert len(err) < LONGEST_PROBLEM + 100


def test_events_are_read_back_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    JsonLines().notice(HOSTILE, warning=False)
    out = capsys.readouterr().out
    assert is_printable(out)
    assert parse_event(out) == {"event": "notice", "text": HOSTILE}


def test_a_screen_sends_its_own_codes_alone() -> None:
    written = io.StringIO()
    screen = Screen(file=written, force_terminal=True, width=200, color_system="standard")
    table = Table("cell")
    table.add_row(Text(HOSTILE, style="red"))
    screen.print(table)
    screen.print(Text(HOSTILE), soft_wrap=True)
    screen.out(HOSTILE)
    text = written.getvalue()
    assert "\x1b[31m" in text
    for code in ("\x1b[2J", "\x1b]0", "\x1b]8", "\x9b", "\x07", "\b", "\u202e", "\x7f"):
        assert code not in text


def test_the_live_display_shows_codes_too() -> None:
    written = io.StringIO()
    live = LiveConsole()
    live.terminal = live.bar.live.console = Screen(file=written, force_terminal=True, width=80)
    live.notice(f"A note: {HOSTILE}", warning=False)
    assert is_printable(written.getvalue())


# whole commands


def test_a_dry_run_of_hostile_rows_controls_nothing(
    run_cli: Callable[..., Any], write_rows: Callable[..., Path]
) -> None:
    row = {"prompt": HOSTILE, "chosen": f"{HOSTILE}1", "rejected": "no", HOSTILE: "x"}
    path = write_rows([row, {**row, "prompt": "x"}, {"prompt": HOSTILE, "chosen": HOSTILE}])
    for options in ([], ["--on-bad-row", "skip"], ["--json"], ["--columns", f"chosen={HOSTILE}"]):
        ended = run_cli("--loss", "dpo", "--data", path, "--dry-run", "--backend", "local", *options)
        assert is_printable(ended.out + ended.err)
        assert "\\u001b" in ended.out + ended.err


@pytest.mark.parametrize(
    "arguments",
    [("--loss", HOSTILE), ("--loss", "dpo", "--data", HOSTILE), (HOSTILE,), (f"--{HOSTILE}",),
     ("--loss", "dpo", "--rank", HOSTILE), ("eval", HOSTILE), ("resume", HOSTILE), ("plot", HOSTILE),
     ("--loss", "dpo", "--set", HOSTILE), ("--loss", "dpo", "--config", HOSTILE), ("check", HOSTILE),
     ("--loss", "dpo", "--set", f"beta={HOSTILE}"), ("--loss", "dpo", "--backend", HOSTILE)],
)  # fmt: skip
def test_an_error_that_quotes_a_value_controls_nothing(
    run_cli: Callable[..., Any], arguments: tuple[str, ...]
) -> None:
    ended = run_cli(*arguments)
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert is_printable(ended.err)
    assert "\\u001b" in ended.err or "\\x1b" in ended.err


def test_a_docstring_controls_nothing(
    run_cli: Callable[..., Any],
    install_loss: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Options(BaseModel):
        beta: float = Field(default=0.1, description=HOSTILE)

    plugin = SimpleNamespace(loss_options=mint_train.hookimpl(lambda: Options))
    install_loss("hostile", plugin)
    listing = LossListing("hostile", HOSTILE, None, HOSTILE, HOSTILE)
    monkeypatch.setattr("mint_train.cli.listing.list_losses", lambda: [listing])
    for arguments in (["losses"], ["--loss", "hostile", "--help"]):
        ended = run_cli(*arguments)
        assert "\\u001b" in ended.out
        assert is_printable(ended.out + ended.err)


# model cards

NASTY = "x`|<script>alert(1)</script>\n# Heading\n![i](http://x/y.png) [a](javascript:b) **b** \x1b[2J```\n"


def test_no_name_or_docstring_writes_into_a_model_card(tmp_path: Path) -> None:
    loss = LossDescription(
        name=NASTY, description=NASTY, paper=NASTY, options={NASTY: NASTY}, plugins={NASTY: NASTY}
    )
    names = ("batch_size", "accumulate", "lr", "schedule", "rank", "max_length", "seed", "model")
    described = run_description(
        loss=NASTY, losses=[loss], metrics={"loss": Metric(".6f")}, settings=dict.fromkeys(names, NASTY),
        versions={"python": NASTY, "mint-train": NASTY},
    )  # fmt: skip
    (tmp_path / "run.json").write_text(described.to_json())
    line = {"step": 1, "metrics": {NASTY: 1.0}, "tokens": 1, "seconds": 1.0, "learning_rate": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    body = model_card(RunFolder(tmp_path), 1).split("\n---\n", 1)[1]
    assert is_printable(body)
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert [line.split()[1] for line in headings[1:]] == ["Training", "Results", "How", "Versions"]
    assert body.count("```") == 2
    code = body.split("```")[1]
    outside = body.replace(code, "")
    for piece in ("<", "[", "*", "!["):
        assert piece not in re.sub(r"\\.|`[^`\n]*`", "", outside)
    for row in (line for line in body.splitlines() if line.startswith("|")):
        assert row.count("|") - row.count("\\|") == 3, row
    compile(code.removeprefix("python"), "card", "exec")
