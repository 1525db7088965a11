"""Which models of options a plugin may have: values are given by the names of fields, recorded, and read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    Secret,
    SecretBytes,
    SecretStr,
    create_model,
)

from mint_train.errors import OptionError, PluginError
from mint_train.judging.judge import JUDGE, as_options
from mint_train.losses.loss import Loss
from mint_train.plugin import Options, hookimpl
from mint_train.plugins.discovery import NamedPlugin
from mint_train.sampling.making import ROW_WRITER
from mint_train.settings.keywords import plain_options


class Renamed(Options):
    lam: float = Field(default=0.1, alias="lambda")


class Chosen(Options):
    lam: float = Field(default=0.1, validation_alias=AliasChoices("a", "b"))


class Generated(BaseModel):
    model_config = ConfigDict(alias_generator=str.upper)

    lam: float = 0.1


class Nested(Options):
    inner: list[Renamed] | None = None


def opened(model: type[BaseModel], options: dict[str, Any] | None = None) -> Loss:
    hooks = SimpleNamespace(
        EXTENDS="dpo", loss_options=hookimpl(lambda: model), compute_loss=hookimpl(lambda: None)
    )
    return Loss.of(NamedPlugin("mine", hooks, "a test"), options)


@pytest.mark.parametrize("model", [Renamed, Chosen, Generated, Nested])
def test_an_option_with_an_alias_is_refused(model: type[BaseModel]) -> None:
    problem = '"mine": its option "lam" has an alias, and a value given by the name would be dropped'
    with pytest.raises(PluginError, match=f"^the loss {problem}; leave the alias out$"):
        opened(model, dict.fromkeys(model.model_fields))
    with pytest.raises(PluginError, match=f"^the judge {problem}"):
        as_options(JUDGE, "mine", {})(SimpleNamespace(Options=model))


class Keys(BaseModel):
    keys: dict[str, SecretStr | None] = Field(default_factory=dict)


@pytest.mark.parametrize("kind", [SecretStr, SecretBytes | None, Secret[int], list[Keys], Annotated[Keys, 1]])
def test_an_option_that_holds_a_secret_is_refused(kind: Any) -> None:
    model = create_model("Secretive", __base__=Options, token=(kind, Field(default=None)))
    problem = (
        '"mine": its option "token" holds a secret, and options are recorded; read the secret from an '
        "environment variable"
    )
    with pytest.raises(PluginError, match=f"^the loss {problem}$"):
        opened(model, {"token": "1"})
    with pytest.raises(PluginError, match=f"^the row writer {problem}$"):
        as_options(ROW_WRITER, "mine", {"token": "1"})(SimpleNamespace(Options=model))


def test_an_alias_that_is_the_name_is_accepted() -> None:
    class Same(Options):
        lam: float = Field(default=0.1, alias="lam")

    assert opened(Same, {"lam": "0.5"}).option_values == {"lam": 0.5}


class AnyKind(Options):
    scale: float = 1.0
    count: int = 1
    numbers: list[float] | None = None
    other: Any = None


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("scale", np.float32(0.5), 0.5),
        ("scale", torch.tensor(0.5), 0.5),
        ("count", np.int64(3), 3),
        ("numbers", np.array([1.0, 2.0]), [1.0, 2.0]),
        ("numbers", [np.float32(1), torch.tensor(2.0)], [1.0, 2.0]),
        ("other", Path("a/b"), "a/b"),
        ("other", None, None),
    ],
)
def test_numbers_of_numpy_and_torch_are_numbers(name: str, value: Any, kept: Any) -> None:
    given = plain_options({name: value}, "options")
    assert given == {name: kept}
    assert json.dumps(given[name]) == json.dumps(kept)
    assert opened(AnyKind, given).option_values[name] == kept


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (print, "a builtin_function_or_method"), (torch.float32, "a dtype"), (object(), "a object"),
        (b"\xff", "a bytes"), (float("nan"), "nan"), ("\ud800", "a str"),
    ],
    ids=["function", "dtype", "object", "bytes", "nan", "surrogate"],
)  # fmt: skip
def test_a_value_that_cannot_be_recorded_is_refused(value: Any, kind: str) -> None:
    problem = f'options: "other" is {kind}, which cannot be recorded; give a number, text, or a list or table'
    with pytest.raises(OptionError, match=f"^{problem} of these$"):
        plain_options({"other": value}, "options")
    with pytest.raises(OptionError, match="which cannot be recorded"):
        plain_options({"other": {"in": [value]}}, "options")


def test_a_default_that_cannot_be_recorded_is_refused() -> None:
    class Calling(Options):
        call: Any = print

    with pytest.raises(PluginError, match=r'^the loss "mine" has an option that cannot be recorded'):
        opened(Calling)
