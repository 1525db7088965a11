"""A command that is interrupted says how it goes on, and goes on."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from few_rows import lines, write_lines

from mint_train.cli.pairs import going_on
from mint_train.judging.judge import open_judge
from mint_train.sampling.matches import Comparing
from mint_train.settings.sampling import Sampling

SLOW_JUDGE = """\
import time
from pathlib import Path


def score(prompt, completion):
    if not Path("quick").exists():
        time.sleep(60)
    return len(completion)
"""
COMMON = ("--judge", "function", "--samples", "2", "--max-tokens", "4", "--backend", "local")


def interrupted(python: str, folder: Path, given: list[str], begun: Path) -> str:
    """Stop a command once a file is there, and return the last line that it prints."""
    command = [python, "-m", "mint_train", *given]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not begun.exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            time.sleep(0.2)  # what comes after it has begun
            process.terminate()
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in err) == (130, False), err
    return err.splitlines()[-1].removeprefix("mint-train: ")


def finish(python: str, folder: Path, given: list[str]) -> None:
    """Run a command with a judge that is quick."""
    (folder / "quick").touch()
    command = [python, "-m", "mint_train", *given]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prompts, and a judge that takes long."""
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Say it."}, {"prompt": "Go on."}])
    (tmp_path / "slow.py").write_text(SLOW_JUDGE)
    return tmp_path


@pytest.mark.parametrize("command", ["pairs", "winrate"])
def test_an_interrupted_command_goes_on(
    folder: Path, starter_model_folder: Path, warm_python: str, command: str
) -> None:
    model = str(starter_model_folder)
    given = {
        "pairs": ["pairs", "prompts.jsonl", "--model", model],
        "winrate": ["winrate", model, model, "--data", "prompts.jsonl"],
    }[command]
    given += [*COMMON, "--set", "file=slow.py", "--output", "rows.jsonl"]
    said = interrupted(warm_python, folder, given, folder / "rows.jsonl.scores")
    assert said == "interrupted; the same command goes on with what is written and judged"
    assert not (folder / "rows.jsonl").exists()
    finish(warm_python, folder, given)
    assert lines(folder / "rows.jsonl")
    assert not list(folder.glob("rows.jsonl.*"))


def test_an_interrupt_before_anything_is_written_says_no_more(tmp_path: Path) -> None:
    work = Comparing(open_judge("length", {}), Sampling(), tmp_path / "rows.jsonl")
    with pytest.raises(KeyboardInterrupt), going_on(work):
        raise KeyboardInterrupt


def test_interrupted_rounds_say_how_they_go_on(
    folder: Path, starter_model_folder: Path, warm_python: str
) -> None:
    given = ["--rounds", "1", "--prompts", "prompts.jsonl", *COMMON, "--judge-set", "file=slow.py"]
    given += ["--loss", "dpo", "--model", str(starter_model_folder), "--steps", "1", "--output", "all"]
    said = interrupted(warm_python, folder, given, folder / "all" / "round-001.part.scores")
    assert said == "interrupted; continue the rounds with: mint-train resume all"
    finish(warm_python, folder, ["resume", "all"])
    assert lines(folder / "all" / "round-001.jsonl")
