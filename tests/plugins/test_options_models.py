"""Which models of options a plugin may have: values are given by the names of fields, recorded, and read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any

import pytest
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

from mint_train.errors import PluginError
from mint_train.judging.judge import JUDGE, as_options
from mint_train.losses.loss import Loss
from mint_train.plugin import Options, hookimpl
from mint_train.plugins.discovery import NamedPlugin
from mint_train.sampling.making import ROW_WRITER


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
