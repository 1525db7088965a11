"""A command that is interrupted says how it goes on, and goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from few_rows import lines, write_lines

SLOW_JUDGE = """\
import time
from pathlib import Path


def score(prompt, completion):
    if not Path("quick").exists():
        time.sleep(60)
    return len(completion)
"""
GOES_ON = "interrupted; the same command goes on with what is written and judged\n"
COMMON = ("--judge", "function", "--set", "file=slow.py", "--samples", "2", "--max-tokens", "4")


@pytest.mark.parametrize("command", ["pairs", "winrate"])
def test_an_interrupted_command_goes_on(tmp_path: Path, starter_model_folder: Path, command: str) -> None:
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Say it."}, {"prompt": "Go on."}])
    (tmp_path / "slow.py").write_text(SLOW_JUDGE)
    model = str(starter_model_folder)
    given = {
        "pairs": ["pairs", "prompts.jsonl", "--model", model, *COMMON],
        "winrate": ["winrate", model, model, "--data", "prompts.jsonl", *COMMON],
    }[command]
    whole = [sys.executable, "-m", "mint_train", *given, "--output", "rows.jsonl", "--backend", "local"]
    scores = tmp_path / "rows.jsonl.scores"
    with subprocess.Popen(
        whole, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not scores.exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            time.sleep(0.2)  # the judge has begun
            process.terminate()
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert err.endswith(f"mint-train: {GOES_ON}"), err
    assert not (tmp_path / "rows.jsonl").exists()

    (tmp_path / "quick").touch()
    ended = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert lines(tmp_path / "rows.jsonl")
    assert not list(tmp_path.glob("rows.jsonl.*"))
