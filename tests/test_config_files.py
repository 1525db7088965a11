"""Config files: both languages, the schema, and the one that a run leaves to be repeated with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomlkit
import yaml
from click.shell_completion import ShellComplete
from run_files import adapter, metrics

from mint_train.cli.main import cli
from mint_train.errors import OptionError
from mint_train.settings.config_files import config_schema, config_text
from mint_train.settings.merge import load_settings
from mint_train.settings.model import Settings
from mint_train.settings.rounds import ROUNDS_FIELDS

VALUES = {"loss": "ipo", "steps": 7, "lr": 0.002, "pipeline": False, "options": {"beta": 0.25}}


@pytest.mark.parametrize(
    ("name", "write"),
    [("run.toml", tomlkit.dumps), ("run.yaml", yaml.safe_dump), ("run.yml", yaml.safe_dump)],
)
def test_both_languages_say_the_same(tmp_path: Path, name: str, write: Callable[[Any], str]) -> None:
    path = tmp_path / name
    path.write_text(write(VALUES))
    read = load_settings({}, path)
    assert {field: getattr(read, field) for field in VALUES} == VALUES


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("loss: [dpo", "expected ',' or ']'"),
        ("- loss", "must hold settings by name"),
        ("los: dpo", 'no setting is called "los"; did you mean "loss"?'),
        ("api_key: sk-1", "the key does not belong in a file"),
        ("loss: dpo\noptions: 3", "belong in a table"),
        ("loss: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("loss: dpo\nsteps: many", "steps"),
        ("loss: dpo\nlr: 1\nlr: 2", 'the key "lr" is given twice'),
        ("loss: dpo\noptions: {beta: 1, beta: 2}", 'the key "beta" is given twice'),
        pytest.param("loss: " + "[" * 5000, "nested too deeply", id="nested"),
        ("loss: &a [*a]", "more than 10,000 values"),
        pytest.param(
            "a: &a [1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{two}: &{two} [{','.join(f'*{one}' for _ in range(9))}]\n"
                for one, two in pairwise("abcdefghij")
            ),
            "more than 10,000 values",
            id="aliases of aliases",
        ),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(OptionError) as refused:
        load_settings({}, path)
    assert f"--config {path}" in str(refused.value)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "sk-1" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("lr = 1\nlr = 2", "Cannot overwrite"), ("[options]\nbeta = 1\nbeta = 2", "Cannot overwrite"),
     pytest.param("loss = " + "[" * 5000, "nested too deeply", id="nested")],
)  # fmt: skip
def test_a_broken_toml_file_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=problem) as refused:
        load_settings({}, path)
    assert "\n" not in str(refused.value)


def test_aliases_and_merged_keys_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("loss: &a dpo\nmodel: *a\noptions:\n  <<: {beta: 1}\n  beta: 2\n")
    read = load_settings({}, path)
    assert (read.model, read.options) == ("dpo", {"beta": 2})


def test_settings_written_are_the_settings_read(tmp_path: Path) -> None:
    given = VALUES | {"data": 'a\\b "c".jsonl', "options": {"beta": "0.1", "reference": "initial"}}
    settings = load_settings(given)
    path = tmp_path / "run.toml"
    path.write_text(config_text(settings.public()))
    assert load_settings({}, path).public() == settings.public()


def test_a_run_is_repeated_from_the_file_that_it_left(train: Callable[..., Any], run_cli: Any) -> None:
    train("dpo", steps=3, seed=4, options={"reference": "initial"})
    status, _, err = run_cli("--config", "run/run.toml", "--output", "again")
    assert (status, err) == (0, "")
    assert (metrics("again"), adapter("again")) == (metrics("run"), adapter("run"))


def test_the_schema_takes_what_the_program_takes(run_cli: Any) -> None:
    schema = json.loads(run_cli("schema", "--loss", "dpo").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(VALUES, schema)
    jsonschema.validate({"options": {"reference": "initial"}}, schema)
    assert set(schema["properties"]) == (set(Settings.model_fields) | ROUNDS_FIELDS) - {"api_key"}


@pytest.mark.parametrize(
    "wrong",
    [{"stepps": 3}, {"steps": 0}, {"backend": "here"}, {"options": {"betta": 1}}, {"api_key": "sk-1"}],
)
def test_the_schema_refuses_what_the_program_refuses(run_cli: Any, wrong: dict[str, Any]) -> None:
    schema = json.loads(run_cli("schema", "--loss", "dpo").out)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_without_a_loss_the_schema_allows_any_options() -> None:
    jsonschema.validate({"options": {"anything": 1}}, config_schema())


def test_a_schema_of_an_unknown_loss_is_one_line(run_cli: Any) -> None:
    status, _, err = run_cli("schema", "--loss", "dppo")
    assert (status, err.count("\n")) == (2, 1)
    assert "dppo" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run_cli: Any, shell: str) -> None:
    status, out, _ = run_cli("completion", shell)
    assert status == 0
    assert "_MINT_TRAIN_COMPLETE" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--loss dpo+0.2*squ", ["dpo+0.2*squared-log-ratio"]),
        ("--loss ./mi", ["./mi"]),
        ("--loss dpo --set be", ["beta="]),
        ("--loss nix --set ", []),
        ("check kt", ["kto"]),
        ("check dpo --set be", ["beta="]),
        ("losses kt", ["kto"]),
        ("compare dpo kt", ["kto"]),
    ],
)
def test_losses_and_their_options_are_completed(words: str, expected: list[str]) -> None:
    *before, last = words.split(" ")
    found = ShellComplete(cli, {}, "mint-train", "_MINT_TRAIN_COMPLETE").get_completions(before, last)
    assert [item.value for item in found] == expected


@pytest.mark.parametrize(
    ("words", "expected"), [("--loss dp", "dpo"), ("--save", "--save-every"), ("res", "resume")]
)
def test_words_are_completed(words: str, expected: str) -> None:
    """As a shell asks for it: the program itself, with what was typed so far in its environment."""
    program = Path(sys.executable).with_name("mint-train")
    asked = {"_MINT_TRAIN_COMPLETE": "bash_complete", "COMP_WORDS": f"mint-train {words}"}
    asked["COMP_CWORD"] = str(len(words.split()))
    out = subprocess.check_output([program], env=os.environ | asked, text=True)
    assert f"plain,{expected}\n" in out
