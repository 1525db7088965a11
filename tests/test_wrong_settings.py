"""A value of another type than its setting has: the message names the setting and says what it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomlkit

import mint_train
from mint_train.errors import UserError
from mint_train.settings.merge import load_rounds, load_settings
from mint_train.settings.model import SECRET_FIELDS, Settings
from mint_train.settings.rounds import ONLY_ROUNDS

VALUES: dict[str, Any] = {"bool": True, "int": 1, "float": 1.5, "str": "?", "list": [1], "table": {"?": 1}}
WHOLE, NUMBER, SWITCH = "a whole number", "a number", "true or false"
TEXT, PATH, CHOICE = "text", "a path", "' or '"
NAMES = "give names separated by commas, or a list of them"
SOURCES = "give a file, a list of files, or rows"
FIELDS = {
    WHOLE: """max_row_bytes eval_every patience sample_every sample_tokens rank steps epochs batch_size
        accumulate warmup_steps max_length seed save_every keep token_budget max_retries max_tokens_in_flight
        rounds samples max_tokens""",
    NUMBER: """eval_fraction judge_timeout lora_alpha lr adam_beta1 adam_beta2 adam_eps weight_decay grad_clip
        temperature mix_previous""",
    SWITCH: """from_optimizer pipeline group_by_length trust_gradients keep_adapters second_adapter
        gradient_checkpointing overwrite""",
    TEXT: """loss chat_template select_by sample_prompts judge model from_checkpoint price_file base_url
        prompts pair""",
    PATH: "output",
    CHOICE: "on_bad_row special_tokens render train_turns backend schedule dtype quantize progress",
    NAMES: "lora_targets track",
    SOURCES: "data eval_data",
    "FIELD=COLUMN, separated by commas, or give a table": "columns",
    "KEY=VALUE, separated by commas, or give a table": "chat_template_kwargs",
    "table": "options judge_options",
}  # fmt: skip
WANTED = {field: wanted for wanted, fields in FIELDS.items() for field in fields.split()}
TAKEN = {
    WHOLE: {"int"}, NUMBER: {"int", "float"}, SWITCH: {"bool"}, TEXT: {"str"}, PATH: {"str"}, NAMES: {"str"},
    # rows of a program, which are looked at as they are read
    SOURCES: {"str", "list"}, WANTED["chat_template_kwargs"]: {"table"}, "table": {"table"},
}  # fmt: skip
OF_A_PART = {
    **{(field, "bool"): "a number, not true or false" for field in FIELDS[WHOLE].split()},
    ("track", "list"): TEXT, ("lora_targets", "list"): TEXT, ("columns", "table"): TEXT,
    ("data", "table"): "is a table of ?; give a list of rows",
}  # fmt: skip
"""What is wanted of a member of a list or a table."""
CASES = [
    (field, kind, OF_A_PART.get((field, kind), wanted))
    for field, wanted in WANTED.items()
    for kind in VALUES
    if kind not in TAKEN.get(wanted, ())
]
OF_A_FILE = {("data", "table"): 'nothing of a source is called "?"; there are name, weight, columns'}
OF_A_PROGRAM = {"loss": "the name of a loss", "judge": "the name of a judge", "prompts": "prompts"}
"""What a program may give besides: a function, or prompts of its own."""
OF_PYTHON = ("tuple", "dict", "integer", "boolean", "string", "class", "int;", "bool;", "float;")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    said = str(error.value)
    assert not [word for word in OF_PYTHON if word in said]
    return said


def test_every_setting_is_in_the_table() -> None:
    assert WANTED.keys() | SECRET_FIELDS == Settings.model_fields.keys() | ONLY_ROUNDS


@pytest.mark.parametrize(("field", "kind", "wanted"), CASES)
def test_a_file_that_gives_a_setting_another_type(tmp_path: Path, field: str, kind: str, wanted: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(tomlkit.dumps({"loss": "dpo"} | {field: VALUES[kind]}))
    said = refused(lambda: (load_settings({}, path), load_rounds({}, path)))
    named = f"--config {path}: "
    if wanted == "table":
        owner = "judge" if field == "judge_options" else "loss"
        assert said == f"{named}the options of the {owner} belong in a table [{field}]"
    else:
        assert said.startswith(f"{named}{field}")
        assert OF_A_FILE.get((field, kind), wanted) in said


@pytest.mark.parametrize(("field", "kind", "wanted"), CASES)
def test_a_program_that_gives_a_setting_another_type(field: str, kind: str, wanted: str) -> None:
    rounds = {"rounds": 1, "prompts": "?", "judge": "length"} if field in ONLY_ROUNDS else {}
    given: Any = {"loss": "dpo"} | rounds | {field: VALUES[kind]}
    said = refused(lambda: mint_train.train(**given))
    assert said.startswith(field)
    assert OF_A_PROGRAM.get(field, wanted) in said
