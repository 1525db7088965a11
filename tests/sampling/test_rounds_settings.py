"""The options of rounds, and of the commands that sample and judge, from a config file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from few_rows import lines, write_lines

from mint_train.cli.commands.pairs import make_rows
from mint_train.cli.commands.sample import sample
from mint_train.cli.commands.winrate import winrate
from mint_train.errors import OptionError
from mint_train.sampling.round_plan import Plan, read_plan
from mint_train.settings.fields import JUDGE_SECONDS
from mint_train.settings.merge import load_rounds, load_settings
from mint_train.settings.model import Settings
from mint_train.settings.rounds import RoundsSettings
from mint_train.settings.sampling import COMPARED, DRAWN, JUDGED, SHOWN, Sampling

FILE = """
loss = "dpo"
backend = "local"
seed = 3
steps = 1
rounds = 1
prompts = "prompts.jsonl"
judge = "length"
samples = 3
max_tokens = 6
output = "all"

[options]
reference = "initial"

[judge_options]
unit = "characters"
target = 20
prefer = "near"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Say it."}, {"prompt": "Go on."}])
    path = tmp_path / "rounds.toml"
    path.write_text(FILE)
    return path


def test_the_command_line_comes_before_the_file_and_the_file_before_the_defaults(config: Path) -> None:
    asked = load_rounds({"samples": "5", "judge_options": {"target": "9"}}, config)
    assert asked is not None
    assert (asked.rounds, asked.prompts, asked.judge) == (1, "prompts.jsonl", "length")
    assert (asked.samples, asked.max_tokens, asked.temperature) == (5, 6, 1.0)
    assert asked.judge_options == {"unit": "characters", "target": "9", "prefer": "near"}
    own = load_settings({"judge_options": {"target": "9"}}, config)
    assert (own.judge, own.judge_options) == ("length", asked.judge_options), "a run has a judge too"
    assert load_settings({}, config).options == {"reference": "initial"}
    assert load_rounds({}) is None


@pytest.mark.parametrize(("command", "drawn"), [(make_rows, JUDGED), (winrate, COMPARED), (sample, SHOWN)])
def test_what_is_not_given_is_the_same_for_a_command_for_rounds_and_for_python(
    command: click.Command, drawn: Sampling
) -> None:
    options = {option.name: option.default for option in command.params}
    assert Sampling(**{name: options[name] for name in DRAWN}) == drawn
    assert options.get("judge_timeout", JUDGE_SECONDS) == JUDGE_SECONDS
    plan = Plan.of(
        RoundsSettings(rounds=1, prompts="prompts.jsonl", judge="length"), Settings(loss="dpo").seed
    )
    assert (plan.sampling, plan.judge_timeout) == (JUDGED, JUDGE_SECONDS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rounds = 0", "rounds.toml: rounds=0: input should be greater than or equal to 1"),
        ("rounds = 2\nprompts = 'x'", "--rounds needs --judge"),
        ("samples = 4", "rounds.toml: samples is for --rounds N, which is not given"),
        (
            "rounds = 2\njudge_options = 3",
            r"rounds.toml: the options of the judge belong in a table \[judge_o",
        ),
        ("round = 2", 'rounds.toml: no setting is called "round"; did you mean "rounds"'),
        ("rounds = 1\nmix_previous = 1", "rounds.toml: mix_previous=1: input should be less than 1"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "rounds.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=problem) as refused:
        load_rounds({}, path)
    assert "\n" not in str(refused.value)


def test_rounds_from_a_file_keep_what_it_says_when_they_are_resumed(
    run_cli: Any, config: Path, tmp_path: Path
) -> None:
    ended = run_cli("--config", config, "--max-tokens", 5)
    assert ended.status == 0, ended.err
    config.unlink()
    plan, settings = read_plan(tmp_path / "all")
    assert (plan.sampling.samples, plan.sampling.max_tokens, plan.sampling.seed) == (3, 5, 3)
    assert plan.judge_options == {"unit": "characters", "target": 20, "prefer": "near"}
    assert settings["options"] == {"reference": "initial"}
    before = (tmp_path / "all" / "round-001.jsonl").read_bytes()
    assert run_cli("resume", "all").status == 0
    assert (tmp_path / "all" / "round-001.jsonl").read_bytes() == before


def test_pairs_are_made_by_the_same_file(run_cli: Any, config: Path, tmp_path: Path) -> None:
    ended = run_cli("pairs", "--config", config, "--keep-all", "--seed", 4, "--output", "own.jsonl")
    assert ended.status == 0, ended.err
    assert "2 prompts, 6 completions" in ended.out
    (first, *_) = lines(tmp_path / "own.jsonl")
    assert first["sampled_with"]["seed"] == 4
    assert first["chosen_score"] == -abs(len(first["chosen"]) - 20), "by the judge of the file"
    assert len(first["samples"]) == 3


def test_what_compare_and_a_dry_run_cannot_do_is_refused(run_cli: Any, config: Path) -> None:
    ended = run_cli("compare", "dpo", "ipo", "--config", config, "--output", "both")
    assert (ended.status, "max_tokens is for --rounds, which compare does not do" in ended.err) == (2, True)
    ended = run_cli("--config", config, "--dry-run")
    assert (ended.status, "--dry-run looks at rows, and --rounds makes them" in ended.err) == (2, True)
