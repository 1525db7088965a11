"""The command line: quick answers, help from the plugin, clear refusals, exit statuses."""

from __future__ import annotations

import io
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mint_train.cli.main import cli, main
from mint_train.plugins.known_losses import known_losses
from mint_train.settings.model import Settings, option_name
from mint_train.settings.other_names import OTHER_NAMES

ROOT = Path(__file__).parents[1]

HEAVY = ("matplotlib", "torch", "transformers", "peft", "tinker", "mint", "numpy")

REPORT_IMPORTS = """
import sys
sys.argv = ["mint-train", *{arguments!r}]
from mint_train.cli.main import main
try:
    main()
finally:
    loaded = {{name.partition(".")[0] for name in sys.modules}}
    print("HEAVY", sorted(loaded & set({heavy!r})), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["losses"],
        ["--version"],
        *([name, "--help"] for name in ("losses", "plot", "eval", "sample", "export", "compare")),
    ],
)
def test_quick_answers_import_nothing_heavy(arguments: list[str]) -> None:
    """The import is what would make the answer slow."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT_IMPORTS.format(arguments=arguments, heavy=HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    assert done.stderr == "HEAVY []\n"


def test_the_program_itself_runs() -> None:
    program = Path(sys.executable).with_name("mint-train")
    command = [str(program)] if program.exists() else [sys.executable, "-m", "mint_train"]
    done = subprocess.run([*command, "losses"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mint-train-dpo ")
    module = subprocess.run(
        [sys.executable, "-m", "mint_train", "losses"], capture_output=True, text=True, check=True
    )
    assert module.stdout == done.stdout


def test_a_terminal_of_any_encoding_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr("sys.argv", ["mint-train", "losses"])
    monkeypatch.setattr("mint_train.cli.listing.losses_text", lambda: "größer █")
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.flush()
    assert ended.value.code in (0, None)
    assert written.getvalue() == "größer ?\n".encode("latin-1")


def test_help_shows_every_setting_but_the_secrets(run_cli: Callable[..., Any]) -> None:
    status, out, err = run_cli("--help")
    assert (status, err) == (0, "")
    for field in set(Settings.model_fields) - {"api_key", "options"}:
        assert option_name(field) in out
    flat = " ".join(out.split())
    for variable in (
        "MINT_BASE_MODEL",
        "MINT_BASE_URL",
        "MINT_LORA_RANK",
        "MINT_<LOSS>_STEPS",
        "MINT_<LOSS>_LR",
    ):
        assert f"[{variable}]" in flat.replace("<LOSS>_ ", "<LOSS>_"), variable
    assert "[default: 16]" in flat
    assert "[default: 1e-05]" in flat
    assert "--set KEY=VALUE" in out


def test_no_arguments_are_answered_in_one_line(run_cli: Callable[..., Any]) -> None:
    status, out, err = run_cli()
    assert (status, out) == (2, "")
    assert err == (
        "mint-train: no loss is chosen: give --loss NAME; `mint-train losses` lists what is installed, "
        "`mint-train --help` all options\n"
    )


def test_the_help_says_of_each_command_what_it_is_for_in_whole_words(run_cli: Callable[..., Any]) -> None:
    commands = run_cli("--help").out.partition("Commands:")[2]
    assert set(cli.commands) <= set(commands.split())
    assert "..." not in commands


@pytest.mark.parametrize(
    "arguments",
    [
        ["--loss", "dpo", "--help"],
        ["--help", "--loss", "dpo"],
        ["--loss=dpo", "--help"],
        ["--steps", "3", "--help", "--loss", "dpo", "--set", "beta=0.5"],
    ],
)
def test_help_shows_the_options_of_the_chosen_loss(run_cli: Callable[..., Any], arguments: list[str]) -> None:
    status, out, err = run_cli(*arguments)
    assert (status, err) == (0, "")
    section = " ".join(out.partition("Options of the loss dpo")[2].split())
    assert "beta NUMBER Inverse temperature on the margins. [default: 1.0]" in section
    assert "reference TEXT" in section
    assert "[default: none]" in section


def test_help_without_a_loss_shows_no_loss_options(run_cli: Callable[..., Any]) -> None:
    assert "Options of the loss" not in run_cli("--help").out


def test_help_of_an_unknown_loss_says_so(run_cli: Callable[..., Any]) -> None:
    status, _, err = run_cli("--loss", "dppo", "--help")
    assert status == 2
    assert 'no loss "dppo" is installed; did you mean "dpo"?' in err


def test_losses_lists_dpo(run_cli: Callable[..., Any]) -> None:
    status, out, err = run_cli("losses")
    assert (status, err) == (0, "")
    sections = {section.split()[0]: section for section in out.split("\n\n")}
    title, *entries = sections["mint-train-dpo"].splitlines()
    assert title == f"mint-train-dpo {version('mint-train-dpo')}"
    assert " ".join(" ".join(entries).split()) == (
        "dpo Direct Preference Optimization: the Bradley-Terry loss on pairs (Rafailov et al., 2023)."
    )
    assert "Extends dpo." in sections["mint-train-preferences"]


@pytest.mark.parametrize("columns", ["60", "80", "100", "200"])
def test_losses_wraps_on_words_at_the_width_of_the_terminal(
    run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", "5000")
    whole = run_cli("losses").out
    monkeypatch.setenv("COLUMNS", columns)
    wrapped = run_cli("losses").out
    assert wrapped.split() == whole.split()
    assert max(map(len, wrapped.splitlines())) <= min(int(columns), 100)


def refused(run_cli: Callable[..., Any], *arguments: object) -> str:
    """Run what must be refused: exit 2, one line, nothing printed, nothing written; return the line."""
    before = sorted(Path().rglob("*"))
    status, out, err = run_cli(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("mint-train: ")
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return err


@pytest.mark.parametrize(("name", "meant"), [("dop", "dpo"), ("DPO", "dpo"), ("SimPO", "simpo")])
def test_an_unknown_loss_names_the_nearest(run_cli: Callable[..., Any], name: str, meant: str) -> None:
    line = refused(run_cli, "--loss", name)
    assert line == f'mint-train: no loss "{name}" is installed; did you mean "{meant}"?\n'


def test_a_known_loss_that_is_not_installed_names_the_line_that_installs_it(
    run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mint_train.plugins.installed.entry_points",
        lambda group: [entry for entry in entry_points(group=group) if entry.name == "dpo"],
    )
    line = refused(run_cli, "--loss", "ipo")
    assert 'the loss "ipo" comes with mint-train-preferences, which is not installed' in line
    assert line.endswith(": pip install -e plugins/mint-train-preferences\n")
    assert 'did you mean "ipo"?' in refused(run_cli, "--loss", "IPO")


def test_the_known_losses_are_those_of_the_distributions() -> None:
    projects = [
        tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        for path in (ROOT / "plugins").glob("*/pyproject.toml")
    ]
    brought = {
        loss: project["name"]
        for project in projects
        for loss in project.get("entry-points", {}).get("mint_train.losses", {})
    }
    assert known_losses() == brought


def test_a_name_like_no_other_is_refused_without_a_guess(run_cli: Callable[..., Any]) -> None:
    line = refused(run_cli, "--loss", "qqqqqqqq")
    assert line == 'mint-train: no loss "qqqqqqqq" is installed; `mint-train losses` lists those that are\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "betta=1"], 'has no option "betta"; did you mean "beta"?; its options: beta, reference'),
        (["--set", "zzz=1"], 'has no option "zzz"; its options: beta, reference'),
        (["--set", "beta"], "--set beta: write it as --set KEY=VALUE"),
        (["--set", "=1"], "--set =1: write it as --set KEY=VALUE"),
        (["--set", "beta=hot"], '--set beta=hot of the loss "dpo": '),
        (["--set", "beta=0"], '--set beta=0 of the loss "dpo": input should be greater than 0'),
        (["--set", "beta=-1"], "--set beta=-1"),
        (["--set", "beta=nan"], "--set beta=nan"),
        (["--set", "beta=inf"], "--set beta=inf"),
        (["--set", "beta="], "--set beta="),
        (["--set", "reference="], "--set reference="),
        (["--steps", "0"], "--steps=0: "),
        (["--steps", "1.5"], "--steps=1.5: "),
        (["--epochs", "-1"], "--epochs=-1: "),
        (["--lr", "0"], "--lr=0: "),
        (["--rank", "x"], "--rank=x: "),
        (["--batch-size", ""], "--batch-size=: "),
        (["--max-length", "1"], "--max-length=1: "),
        (["--steps", "2", "--epochs", "2"], "--steps and --epochs are both given"),
        (["--config", "none.toml"], "--config none.toml: "),
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_a_wrong_option_is_one_line(run_cli: Callable[..., Any], arguments: list[str], message: str) -> None:
    assert message in refused(run_cli, "--loss", "dpo", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "dpo", "--stepz", "3"], 'no such option: --stepz; did you mean "--steps"?'),
        (["--loss"], "option '--loss' requires an argument"),
        (["--backend", "cloud", "--loss", "dpo"], "'cloud' is not one of"),
        (["eval"], "missing argument 'RUN_OR_CHECKPOINT'; see mint-train eval --help"),
        (["--steps", "3"], "no loss is chosen: give --loss NAME"),
        # as other tools have it
        (["train"], 'no such command: "train"; mint-train --loss NAME trains'),
        (["evaluate", "runs/mine"], 'no such command: "evaluate"; it is called mint-train eval'),
        (["resme", "runs/mine"], 'no such command: "resme"; did you mean "resume"?'),
        (["dpo"], '"dpo" is a loss, not a command; train with it: mint-train --loss dpo'),
        (["--loss", "dpo", "--learning-rate", "1"], "no such option: --learning-rate; here it is --lr;"),
        (["--loss", "dpo", "--max_steps", "1"], "no such option: --max_steps; here it is --steps;"),
        (["--loss", "dpo", "--bf16"], "no such option: --bf16; here it is --dtype bfloat16;"),
        (["--loss", "dpo", "--ref_model", "x"], "--ref_model; here it is --set reference=NAME;"),
        (["--loss", "dpo", "--beta", "1"], "no such option: --beta; here it is --set beta=NUMBER;"),
        # given more than once
        (["--loss", "dpo", "--lr", "1", "--lr", "1"], "--lr is given 2 times; give one of them"),
        (["--loss", "dpo", "--json", "--quiet"], "--json and --quiet exclude each other"),
        (["eval", "run", "--step", "1", "--step", "2"], "--step is given 2 times; give one of them"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line(
    run_cli: Callable[..., Any], arguments: list[str], message: str
) -> None:
    assert message in refused(run_cli, *arguments)


def test_a_pattern_that_the_shell_expanded_is_to_be_quoted(run_cli: Callable[..., Any]) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).touch()
    line = refused(run_cli, "--loss", "dpo", "--data", "a.jsonl", "b.jsonl")
    assert "b.jsonl is a file, not a command; to read several files, quote a pattern, --data " in line


def test_every_option_of_another_tool_is_answered_with_one_of_ours() -> None:
    ours = {name for param in cli.params for name in param.opts}
    for asked, answer in OTHER_NAMES.items():
        assert f"--{asked}" not in ours
        assert not answer.startswith("--") or answer.split()[0] in ours


def test_a_config_file_can_stand_for_the_command_line(
    run_cli: Callable[..., Any], starter_model_folder: Path, short_pairs: Path
) -> None:
    Path("run.toml").write_text(
        f'loss = "dpo"\ndata = "{short_pairs}"\nmodel = "{starter_model_folder}"\nsteps = 2\n'
        'output = "out"\n[options]\nbeta = 0.5\n'
    )
    status, out, err = run_cli("--config", "run.toml", "--steps", 1)
    assert (status, err) == (0, "")
    assert "Step 1: " in out
    assert "Step 2: " not in out
    assert '"beta": 0.5' in Path("out/run.json").read_text()


def test_exit_status_of_success_and_a_run_folder_of_its_own(
    run_cli: Callable[..., Any], starter_model_folder: Path, short_pairs: Path
) -> None:
    status, out, err = run_cli(
        "--loss", "dpo", "--data", short_pairs, "--model", starter_model_folder, "--steps", 1
    )
    assert (status, err) == (0, "")
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("dpo-")
    assert f"Run folder: {folder}" in out
    assert out.startswith("Backend local (MINT_API_KEY is not set), model: ")


def test_exit_status_of_an_interrupt_before_the_first_step(
    run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mint_train.training.training.train_with", interrupted)
    status, out, err = run_cli("--loss", "dpo")
    assert (status, out, err.strip()) == (130, "", "mint-train: interrupted")


@pytest.mark.parametrize(("run_status", "exit_status"), [("done", 0), ("interrupted", 130)])
def test_exit_status_follows_how_the_run_ended(
    run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, run_status: str, exit_status: int
) -> None:
    monkeypatch.setattr(
        "mint_train.training.training.train_with", lambda _: SimpleNamespace(status=run_status)
    )
    assert run_cli("--loss", "dpo").status == exit_status


def test_a_model_that_is_not_there_is_one_line(run_cli: Callable[..., Any]) -> None:
    status, out, err = run_cli("--loss", "dpo", "--model", "no/such-model", "--output", "run")
    assert status == 2
    assert out.count("\n") == 1  # the backend's line
    assert "--model no/such-model: the tokenizer cannot be loaded" in err
    assert err.count("\n") == 1
    assert not Path("run").exists()


def test_the_starter_model_is_introduced(run_cli: Callable[..., Any], short_pairs: Path) -> None:
    status, out, err = run_cli("--loss", "dpo", "--data", short_pairs, "--steps", 1, "--output", "run")
    assert (status, err) == (0, "")
    assert "model: a tiny starter model that answers simple questions" in out.splitlines()[0]


def test_resume_of_what_is_no_run(run_cli: Callable[..., Any]) -> None:
    assert "none holds no run: there is no run.json in it" in refused(run_cli, "resume", "none")
    Path("broken").mkdir()
    Path("broken/run.json").write_text("{")
    assert "broken/run.json cannot be read" in refused(run_cli, "resume", "broken")
    for content in ("{}", "[]", '{"settings": {}, "backend": "local"}'):
        Path("broken/run.json").write_text(content)
        refused(run_cli, "resume", "broken")


def test_ctrl_c_while_the_program_is_imported_is_one_line() -> None:
    code = """
import sys

class Interrupted:
    def find_spec(self, name, *others):
        if name == "click":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
from mint_train.__main__ import run
run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "mint-train: interrupted\n")
