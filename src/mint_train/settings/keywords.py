"""The settings as keywords of a Python call: an editor completes them, a type checker checks them.

Each is a field of `Settings`, which checks the values and has the defaults; a test compares the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic_core import to_jsonable_python

from mint_train.errors import MintTrainError, OptionError
from mint_train.settings.model import OPTION_NAMES, Settings
from mint_train.settings.wrong_values import described

FIELDS = {option: field for field, option in OPTION_NAMES.items()}
"""Settings whose option is called otherwise."""
SWITCHES = {name for name, field in Settings.model_fields.items() if field.annotation is bool}
SWITCHES |= {"trust_loss", "keep_all"}


class PolicyKeywords(TypedDict, total=False):
    """Settings with which a trained policy can be evaluated."""

    special_tokens: Literal["allow", "split", "fail"]
    render: Literal["recipe", "template", "raw"]
    chat_template: str | Path | None
    chat_template_kwargs: Mapping[str, Any]
    train_turns: Literal["all", "last"]
    model: str | Path | None
    rank: int
    batch_size: int
    max_length: int | None
    base_url: str | None


class SettingsKeywords(PolicyKeywords, total=False):
    """All settings but the loss, its options and the key, which only the environment gives."""

    data: Any
    columns: Mapping[str, str] | str
    on_bad_row: Literal["fail", "skip"]
    max_row_bytes: int
    eval_data: Any
    eval_fraction: float | None
    eval_every: int | None
    select_by: str | None
    patience: int | None
    sample_prompts: str | Path | None
    sample_every: int | None
    sample_tokens: int
    judge: str | Callable[[str, Sequence[str]], Sequence[float | None]] | None
    judge_options: Mapping[str, Any]
    judge_timeout: float
    backend: Literal["auto", "mint", "local"]
    lora_alpha: float | None
    lora_targets: Sequence[str] | str
    from_checkpoint: str | Path | None
    from_optimizer: bool
    steps: int | None
    epochs: int | None
    accumulate: int
    lr: float
    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: int
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    weight_decay: float
    grad_clip: float
    pipeline: bool
    group_by_length: bool
    seed: int
    save_every: int
    keep: int | None
    price_file: str | Path | None
    token_budget: int | None
    max_retries: int
    trust_gradients: bool
    keep_adapters: bool
    second_adapter: bool
    dtype: Literal["auto", "float32", "bfloat16"]
    quantize: Literal["int8", "nf4"] | None
    max_tokens_in_flight: int | None
    gradient_checkpointing: bool
    output: str | Path | None
    overwrite: bool
    progress: Literal["auto", "plain", "json", "quiet"]
    track: Sequence[str] | str


class DrawnKeywords(TypedDict, total=False):
    """How completions are drawn; see `mint_train.settings.sampling.Sampling`."""

    samples: int
    max_tokens: int
    temperature: float


class TrainKeywords(SettingsKeywords, DrawnKeywords, total=False):
    """All settings of a run, and those of rounds: the fields of `RoundsSettings`."""

    rounds: int | None
    prompts: Any
    pair: str
    mix_previous: float


class SeededKeywords(DrawnKeywords, total=False):
    """How completions are drawn, with the seed, which is a setting of a run too."""

    seed: int


class OpenedKeywords(TypedDict, total=False):
    """The settings with which a policy is opened and prompts are read."""

    model: str | Path | None
    backend: Literal["auto", "mint", "local"]
    base_url: str | None
    dtype: Literal["auto", "float32", "bfloat16"]
    quantize: Literal["int8", "nf4"] | None
    columns: Mapping[str, str] | str
    on_bad_row: Literal["fail", "skip"]
    max_row_bytes: int
    special_tokens: Literal["allow", "split", "fail"]
    render: Literal["recipe", "template", "raw"]
    chat_template: str | Path | None
    chat_template_kwargs: Mapping[str, Any]


POLICY_SETTINGS = frozenset(OpenedKeywords.__annotations__)


class SampledKeywords(OpenedKeywords, SeededKeywords, total=False):
    """How a policy is opened, and how it completes prompts for a judge."""

    judge_options: Mapping[str, Any]
    judge_timeout: float
    overwrite: bool
    progress: Literal["auto", "quiet"]


class PairsKeywords(SampledKeywords, total=False):
    """What `pairs` takes besides."""

    pair: str
    keep_all: bool


def plain_options(options: object, called: str) -> dict[str, Any]:
    """Return options as a file can keep them: a path as text, a number of numpy as one; none for None.

    Raises:
        OptionError: they are not a dictionary, or a file cannot keep a value; the message names the keyword
            that they are called by.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise OptionError(f"{called} is {described(options)}; give a table of options by name")
    return {name: recordable(value, f'{called}: "{name}"') for name, value in options.items()}


def recordable(value: object, called: str) -> Any:
    """Return the value of an option as JSON has it.

    Raises:
        OptionError: JSON has nothing like it.
    """
    try:
        plain = to_jsonable_python(value, fallback=as_numbers)
        json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        kind = str(value) if isinstance(value, float) else described(value)
        raise OptionError(
            f"{called} is {kind}, which cannot be recorded; give a number, text, or a list or table of these"
        ) from error
    return plain


def as_numbers(value: Any) -> Any:
    """Return a number, an array or a tensor, of numpy or torch, as numbers.

    Raises:
        TypeError: it is something else.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"no number: {type(value).__name__}")


@contextmanager
def in_python() -> Iterator[None]:
    """Let the errors of a call from Python speak of keywords in place of options."""
    try:
        yield
    except MintTrainError as error:
        error.rephrase = as_keywords
        raise


def as_keywords(text: str) -> str:
    """Return a message with keywords for options, `eval_data` for `--eval-data`, except in commands."""
    parts = re.split(r"(`[^`]*`|mint-train .*)", text)
    parts[::2] = map(without_flags, parts[::2])
    return "".join(parts)


def without_flags(text: str) -> str:
    """Return a text that holds no command with keywords for options."""
    text = re.sub(r"--set ([^\s=:]+)=([^\s:;]+)", r'options={"\1": \2}', text)
    text = re.sub(r"--set ([^\s=:]+)", r"option \1", text)
    return re.sub(r"(?<![\w-])--([a-z][a-z0-9-]*)", keyword, text)


def keyword(found: re.Match[str]) -> str:
    """Return the keyword of an option; a switch gets its value."""
    name = FIELDS.get(found[0], found[1].replace("-", "_"))
    off = name.startswith("no_")
    name = name.removeprefix("no_")
    return f"{name}={not off}" if name in SWITCHES else name
