"""Settings: who wins, what is refused and how it is said, and that the key is shown nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, TypeAdapter

from mint_train.errors import OptionError
from mint_train.losses.loss_options import validate_options
from mint_train.plugin import Options
from mint_train.settings.merge import load_rounds, load_settings
from mint_train.settings.model import Settings, option_name
from mint_train.settings.recorded import restore_settings
from mint_train.settings.rounds import RoundsSettings

KEY = "tml-0123456789-never-to-be-seen"
UNKNOWN_KIND = "0123456789-never-to-be-seen"


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """Write a config file."""

    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


LEVELS = [
    # field, variable, environment, file, command line
    ("model", "MINT_BASE_MODEL", "from/environment", "from/file", "from/line"),
    ("rank", "MINT_LORA_RANK", "2", "3", "4"),
    ("base_url", "MINT_BASE_URL", "http://environment", "http://file", "http://line"),
    ("steps", "MINT_DPO_STEPS", "2", "3", "4"),
    ("lr", "MINT_DPO_LR", "0.2", "0.3", "0.4"),
]


@pytest.mark.parametrize(("field", "variable", "environment", "file", "line"), LEVELS)
def test_command_line_over_environment_over_file_over_default(
    monkeypatch: pytest.MonkeyPatch,
    config: Callable[[str], Path],
    field: str,
    variable: str,
    environment: str,
    file: str,
    line: str,
) -> None:
    path = config(f"{field} = {json.dumps(file)}\n")
    default = Settings.model_fields[field].default
    assert getattr(load_settings({"loss": "dpo"}), field) == default
    assert str(getattr(load_settings({"loss": "dpo"}, path), field)) == file
    monkeypatch.setenv(variable, environment)
    assert str(getattr(load_settings({"loss": "dpo"}, path), field)) == environment
    assert str(getattr(load_settings({"loss": "dpo", field: line}, path), field)) == line
    monkeypatch.setenv(variable, "")
    assert str(getattr(load_settings({"loss": "dpo"}, path), field)) == file, (
        "an empty variable counts as unset"
    )


FILE_ONLY = [
    ("data", "rows.jsonl"),
    ("on_bad_row", "skip"),
    ("max_row_bytes", 1000),
    ("special_tokens", "allow"),
    ("render", "template"),
    ("chat_template", "/a/template.jinja"),
    ("train_turns", "last"),
    ("eval_data", "held.jsonl"),
    ("eval_fraction", 0.25),
    ("eval_every", 5),
    ("select_by", "loss:max"),
    ("patience", 3),
    ("sample_prompts", "/a/prompts.jsonl"),
    ("sample_every", 5),
    ("sample_tokens", 64),
    ("judge", "length"),
    ("judge_timeout", 3.5),
    ("backend", "local"),
    ("epochs", 2),
    ("batch_size", 3),
    ("accumulate", 2),
    ("max_length", 128),
    ("seed", 7),
    ("group_by_length", True),
    ("save_every", 5),
    ("keep", 2),
    ("price_file", "/a/prices.toml"),
    ("token_budget", 9),
    ("max_retries", 1),
    ("output", "out"),
    ("progress", "quiet"),
    ("track", ["tensorboard"]),
    ("overwrite", True),
    ("schedule", "linear"),
    ("warmup_steps", 2),
    ("adam_beta1", 0.8),
    ("adam_beta2", 0.99),
    ("adam_eps", 1e-6),
    ("from_checkpoint", "runs/sft"),
    ("from_optimizer", True),
    ("lora_alpha", 16.0),
    ("lora_targets", ["attention"]),
    ("weight_decay", 0.5),
    ("grad_clip", 2.5),
    ("pipeline", False),
    ("trust_gradients", True),
    ("keep_adapters", True),
    ("second_adapter", False),
    ("dtype", "bfloat16"),
    ("quantize", "int8"),
    ("max_tokens_in_flight", 4096),
    ("gradient_checkpointing", True),
]
OTHER_VALUES = {
    "on_bad_row": "fail",
    "special_tokens": "fail",
    "render": "raw",
    "chat_template": "/another/template.jinja",
    "train_turns": "all",
    "backend": "mint",
    "overwrite": False,
    "group_by_length": False,
    "progress": "json",
    "track": ["wandb"],
    "schedule": "cosine",
    "pipeline": True,
    "trust_gradients": False,
    "keep_adapters": False,
    "second_adapter": True,
    "dtype": "float32",
    "quantize": "nf4",
    "gradient_checkpointing": False,
    "adam_eps": 1e-7,
    "from_optimizer": False,
    "lora_targets": ["mlp", "unembed"],
}


@pytest.mark.parametrize(("field", "value"), FILE_ONLY)
def test_fields_without_variable_come_from_file_or_line(
    config: Callable[[str], Path], field: str, value: Any
) -> None:
    path = config(f"{field} = {json.dumps(value)}\n")
    assert load_settings({"loss": "dpo"}, path).public()[field] == value
    other = OTHER_VALUES.get(field, f"{value}1")
    assert str(load_settings({"loss": "dpo", field: other}, path).public()[field]) == str(other)


def test_every_field_is_tested_above() -> None:
    tested = {level[0] for level in LEVELS} | {field for field, _ in FILE_ONLY}
    elsewhere = {"loss", "options", "columns", "chat_template_kwargs", "judge_options", "api_key"}
    assert set(Settings.model_fields) - tested == elsewhere


def test_arguments_of_the_chat_template_are_json_or_text() -> None:
    given = load_settings({"loss": "dpo", "chat_template_kwargs": "enable_thinking=false,effort=low,n=3"})
    assert given.chat_template_kwargs == {"enable_thinking": False, "effort": "low", "n": 3}
    with pytest.raises(OptionError, match="write it as KEY=VALUE"):
        load_settings({"loss": "dpo", "chat_template_kwargs": "enable_thinking"})


def test_no_other_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydantic-settings would read MODEL, DATA or SEED, which other programs set."""
    defaults = load_settings({"loss": "dpo"}).public()
    for field in Settings.model_fields:
        monkeypatch.setenv(field.upper(), "7")
        monkeypatch.setenv(f"MINT_{field.upper()}", "7")
    monkeypatch.delenv("MINT_API_KEY")
    monkeypatch.delenv("MINT_BASE_URL")
    assert load_settings({"loss": "dpo"}).public() == defaults


@pytest.mark.parametrize(
    ("loss", "variable"),
    [("dpo", "MINT_DPO_STEPS"), ("apo-zero", "MINT_APO_ZERO_STEPS"), ("my.loss", "MINT_MY_LOSS_STEPS")],
)
def test_each_loss_has_its_own_variables(monkeypatch: pytest.MonkeyPatch, loss: str, variable: str) -> None:
    monkeypatch.setenv(variable, "9")
    assert load_settings({"loss": loss}).steps == 9
    assert load_settings({"loss": "other"}).steps is None


def test_the_loss_may_stand_in_the_file(
    config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config('loss = "ipo"\nsteps = 3\n')
    monkeypatch.setenv("MINT_IPO_LR", "0.25")
    settings = load_settings({}, path)
    assert (settings.loss, settings.steps, settings.lr) == ("ipo", 3, 0.25)


def test_options_of_line_and_file_are_merged(config: Callable[[str], Path]) -> None:
    path = config('loss = "dpo"\n[options]\nbeta = 0.5\nreference = "initial"\n')
    settings = load_settings({"options": {"beta": "0.25"}}, path)
    assert settings.options == {"beta": "0.25", "reference": "initial"}


def test_columns_are_a_table_in_a_file_and_a_list_on_the_line(config: Callable[[str], Path]) -> None:
    path = config('loss = "dpo"\n[columns]\nprompt = "question, asked"\nchosen = ""\n')
    assert load_settings({}, path).columns == {"prompt": "question, asked", "chosen": ""}
    given = {"columns": "prompt=question, rejected=bad,chosen="}
    assert load_settings(given, path).columns == {"prompt": "question", "rejected": "bad", "chosen": ""}
    assert load_settings({"loss": "dpo", "data": Path("a/b.jsonl")}).public()["data"] == "a/b.jsonl"


WRONG = [
    ({"columns": "prompt"}, {}, "--columns=prompt: write it as FIELD=COLUMN"),
    ({"on_bad_row": "drop"}, {}, "--on-bad-row=drop: "),
    ({"steps": "many"}, {}, "--steps=many: "),
    ({"steps": "0"}, {}, "--steps=0: "),
    ({"lr": "-1"}, {}, "--lr=-1: "),
    ({"lr": "nan"}, {}, "--lr=nan: "),
    ({"lr": "inf"}, {}, "--lr=inf: "),
    ({"rank": "1.5"}, {}, "--rank=1.5: "),
    ({"rank": "-1"}, {}, "--rank=-1: input should be greater than or equal to 1"),
    ({"rank": "0"}, {}, "--rank=0: this asks for full training, which no server says that it can do"),
    ({}, {"MINT_LORA_RANK": "0"}, "MINT_LORA_RANK=0: this asks for full training"),
    ({"batch_size": "0"}, {}, "--batch-size=0: "),
    ({"max_length": "1"}, {}, "--max-length=1: "),
    ({"seed": "-1"}, {}, "--seed=-1: "),
    ({"seed": str(2**63)}, {}, "--seed=9223372036854775808: "),
    ({"max_row_bytes": str(10**19)}, {}, "--max-row-bytes=10000000000000000000: "),
    ({"backend": "cloud"}, {}, "--backend=cloud: "),
    ({}, {"MINT_LORA_RANK": "big"}, "MINT_LORA_RANK=big: "),
    ({}, {"MINT_DPO_STEPS": "0"}, "MINT_DPO_STEPS=0: "),
    ({}, {"MINT_DPO_LR": "fast"}, "MINT_DPO_LR=fast: "),
    ({"steps": "x"}, {"MINT_DPO_STEPS": "3"}, "--steps=x: "),
    ({"steps": 1, "epochs": 1}, {}, "--steps and --epochs are both given"),
    ({"adam_beta1": "1"}, {}, "--adam-beta1=1: "),
    ({"adam_beta2": "-0.1"}, {}, "--adam-beta2=-0.1: "),
    ({"adam_eps": "0"}, {}, "--adam-eps=0: "),
    ({"warmup_steps": 4, "steps": 3}, {}, "--warmup-steps 4: the warm-up is longer than the run's 3 steps"),
    ({"warmup_steps": 4}, {"MINT_DPO_STEPS": "3"}, "--warmup-steps 4: "),
    ({"lr": True}, {}, "--lr=True: input should be a number, not true or false"),
]


@pytest.mark.parametrize(("given", "environment", "message"), WRONG)
def test_an_error_names_its_option_or_variable(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError) as refused:
        load_settings({"loss": "dpo"} | given)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = ", "Invalid value"),
        ("stepz = 3", 'no setting is called "stepz"; did you mean "steps"?'),
        ("learning = 3", 'no setting is called "learning"'),
        (f'api_key = "{KEY}"', "the key does not belong in a file; set MINT_API_KEY"),
        ('steps = "many"', "steps=many: "),
        ("lr = -1", "lr=-1: "),
        ("rank = true", "rank=True: input should be a number, not true or false"),
        ("overwrite = 1", "overwrite=1: input should be true or false, not a number"),
        ("options = 3", "options"),
    ],
)
def test_an_error_in_the_file_names_the_file(config: Callable[[str], Path], text: str, message: str) -> None:
    path = config(text)
    with pytest.raises(OptionError) as refused:
        load_settings({"loss": "dpo"}, path)
    assert str(refused.value).startswith(f"--config {path}: ")
    assert message in str(refused.value)
    assert KEY not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["rounds = true", "temperature = true", "judge_timeout = true"])
def test_true_is_not_a_number_of_rounds_either(config: Callable[[str], Path], text: str) -> None:
    with pytest.raises(OptionError, match="input should be a number, not true or false"):
        load_rounds({}, config(text))


def test_a_file_says_true_or_false_for_a_switch(config: Callable[[str], Path]) -> None:
    assert load_settings({"loss": "dpo"}, config("overwrite = true\npipeline = false")).overwrite


def test_an_option_of_a_loss_keeps_true_and_numbers_apart() -> None:
    class Mine(Options):
        beta: float = 0.1
        clip: bool = False

    for given in ({"beta": True}, {"clip": 1}):
        with pytest.raises(OptionError, match='of the loss "mine": input should be'):
            validate_options("mine", Mine, given)
    assert validate_options("mine", Mine, {"beta": "2", "clip": "true"}) == Mine(beta=2, clip=True)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'model = "\xe9"')
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(OptionError, match="--config "):
            load_settings({"loss": "dpo"}, path)


COUNTS = [
    name
    for name, field in {**Settings.model_fields, **RoundsSettings.model_fields}.items()
    if '"integer"' in json.dumps(TypeAdapter(field.annotation).json_schema())
]


@pytest.mark.parametrize("field", COUNTS)
def test_an_absurd_count_is_refused(field: str) -> None:
    """Some would overflow where they are multiplied, and others let a dry run count for ever."""
    load = load_settings if field in Settings.model_fields else load_rounds
    with pytest.raises(
        OptionError, match=f"^{option_name(field)}=10+: input should be less than or equal to"
    ):
        load({"loss": "dpo", field: 10**22} if load is load_settings else {field: 10**22})


def test_an_unknown_setting_from_python_is_refused() -> None:
    with pytest.raises(OptionError, match="batchsize"):
        load_settings({"loss": "dpo", "batchsize": 3})


def test_no_loss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_DPO_STEPS", "3")
    with pytest.raises(OptionError, match="no loss is chosen: give --loss NAME"):
        load_settings({})


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [({"epochs": 2}, ("MINT_DPO_STEPS", "5"), (None, 2)), ({"steps": 4}, ("MINT_DPO_STEPS", "5"), (4, None))],
)
def test_epochs_on_the_line_win_over_steps_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, int],
    variable: tuple[str, str],
    expected: tuple[int | None, int | None],
) -> None:
    monkeypatch.setenv(*variable)
    settings = load_settings({"loss": "dpo"} | given)
    assert (settings.steps, settings.epochs) == expected


def test_steps_on_the_line_win_over_epochs_in_the_file(config: Callable[[str], Path]) -> None:
    settings = load_settings({"loss": "dpo", "steps": 4}, config("epochs = 2\n"))
    assert (settings.steps, settings.epochs) == (4, None)
    with pytest.raises(OptionError, match="both given"):
        load_settings({"loss": "dpo"}, config("epochs = 2\nsteps = 4\n"))


# a resume


def test_a_resume_takes_its_recorded_settings_and_only_the_key_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = load_settings({"loss": "dpo", "epochs": 2}).public()
    for name, value in {
        "MINT_API_KEY": KEY, "MINT_BASE_MODEL": "other", "MINT_DPO_STEPS": "9", "MINT_DPO_LR": "9",
        "MINT_LORA_RANK": "9", "MODEL": "other", "STEPS": "9",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    restored = restore_settings(recorded)
    assert restored.public() == recorded
    assert restored.api_key == SecretStr(KEY)


# the key


def test_the_key_is_in_no_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_API_KEY", KEY)
    settings = load_settings({"loss": "dpo"})
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == KEY
    shown = (
        f"{settings!r} {settings} {settings.public()} {settings.model_dump()} {settings.model_dump_json()}"
    )
    assert KEY not in shown
    assert "api_key" not in settings.public()


def test_the_key_is_in_no_error_of_another_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_API_KEY", KEY)
    with pytest.raises(OptionError) as refused:
        load_settings({"loss": "dpo", "steps": "x"})
    chain: list[BaseException] = [refused.value]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    assert all(KEY not in f"{error} {error!r}" for error in chain)


def test_the_key_is_in_no_error_of_its_own() -> None:
    with pytest.raises(OptionError) as refused:
        load_settings({"loss": "dpo", "api_key": {"secret": KEY}})
    assert KEY not in str(refused.value)


def test_the_key_is_no_option_of_the_command_line(run_cli: Callable[..., Any]) -> None:
    status, out, err = run_cli("--loss", "dpo", "--api-key", "x")
    assert status == 2
    assert "no such option: --api-key" in err
    assert "api" not in run_cli("--help").out.lower().replace("mint_api_key", "")
    assert out == ""


def test_the_key_is_in_no_file_and_no_line_of_a_local_run(
    run_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    starter_model_folder: Path,
    short_pairs: Path,
) -> None:
    monkeypatch.setenv("MINT_API_KEY", KEY)
    status, out, err = run_cli(
        "--loss", "dpo", "--backend", "local", "--data", short_pairs, "--model", starter_model_folder,
        "--output", "run", "--steps", 1,
    )  # fmt: skip
    assert status == 0
    assert KEY not in out + err
    written = [path for path in Path("run").rglob("*") if path.is_file()]
    assert len(written) >= 5
    assert all(KEY.encode() not in path.read_bytes() for path in written)


@pytest.mark.parametrize(
    ("key", "message"), [(None, "no key for MinT: set MINT_API_KEY"), (UNKNOWN_KIND, "of no known kind")]
)
def test_a_missing_or_unknown_key_is_one_line_without_it(
    run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, key: str | None, message: str
) -> None:
    if key:
        monkeypatch.setenv("MINT_API_KEY", key)
    status, out, err = run_cli("--loss", "dpo", "--backend", "mint")
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert UNKNOWN_KIND not in out + err


def test_an_unreachable_service_is_one_line_without_the_key(
    run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINT_API_KEY", KEY)
    monkeypatch.setenv("MINT_BASE_URL", "http://127.0.0.1:9")
    status, out, err = run_cli("--loss", "dpo", "--output", "run")
    assert status == 1
    assert "http://127.0.0.1:9 cannot be reached" in err
    assert out.startswith("Backend mint (MINT_API_KEY is set), model: Qwen/Qwen3-0.6B")
    assert err.count("\n") == 1
    assert KEY not in out + err
    assert not Path("run").exists(), "the folder of a run that never began stands in the way"
