"""What tokens cost: the kinds of tokens that a run sends, and `--price-file` with a price for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mint_train.errors import OptionError, nearest
from mint_train.settings.config_files import read_values
from mint_train.settings.wrong_values import in_plain_words

TokenKind = Literal["reference", "forward", "backward", "evaluation", "prompts", "sampled"]
"""Forwards of the reference, forwards and backwards of training, forwards of held-out rows, prompts that are
read to complete them, and what is written for them."""
TOKEN_KINDS: tuple[TokenKind, ...] = get_args(TokenKind)
TABLE = "per_million_tokens"
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """A sum of money."""

    amount: float
    currency: str

    def __str__(self) -> str:
        shown = f"{self.amount:,.2f}" if self.amount >= 1 else f"{self.amount:.3g}"
        return f"{shown} {self.currency}"


class Prices(BaseModel):
    """The content of `--price-file`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: Annotated[str, Field(strict=True, pattern=r"^\S{1,12}$")]
    per_million_tokens: dict[TokenKind, Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]]
    path: Annotated[str, Field(exclude=True)]
    """The file, for messages."""

    @classmethod
    def read(cls, path: str) -> Prices:
        """Read a price file: TOML, or YAML if its name ends in .yaml or .yml.

        Raises:
            OptionError: it cannot be read, a key is unknown or missing, or a price is not a number from 0 on.
        """
        where = f"--price-file {path}"
        values = read_values(Path(path), "--price-file")
        known = ("currency", TABLE)
        if not isinstance(values, dict) or not isinstance(values.get(TABLE, {}), dict):
            raise OptionError(f"{where}: it must hold currency, and the prices in a table [{TABLE}]")
        for keys, allowed in ((values, known), (values.get(TABLE, {}), TOKEN_KINDS)):
            for name in keys:
                if name not in allowed:
                    hint = nearest(str(name), allowed) or f"; there are {', '.join(allowed)}"
                    raise OptionError(f'{where}: nothing is called "{name}"{hint}')
        try:
            return cls(**values, path=path)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise OptionError(f"{where}: {key}: {in_plain_words(first)}") from None

    def require(self, kinds: Iterable[str]) -> None:
        """Refuse prices that lack one that is needed: such tokens must not count as free.

        Raises:
            OptionError: naming the first one.
        """
        for kind in kinds:
            if kind not in self.per_million_tokens:
                raise OptionError(
                    f'--price-file {self.path}: no price for "{kind}", and there are such tokens; '
                    f"add it to [{TABLE}]"
                )

    def cost(self, tokens: Mapping[str, int]) -> Cost:
        """Return what tokens cost, by their kinds.

        Raises:
            OptionError: a kind has no price.
        """
        used = {kind: count for kind, count in tokens.items() if count}
        self.require(used)
        prices: Mapping[str, float] = dict(self.per_million_tokens.items())
        return Cost(sum(prices[kind] * count for kind, count in used.items()) / MILLION, self.currency)


def describe_tokens(tokens: Mapping[str, int]) -> str:
    """Lay out tokens by kind, in one line: `1,234 (834 forward, 400 evaluation)`."""
    used = {kind: tokens[kind] for kind in TOKEN_KINDS if tokens.get(kind)}
    shown = ", ".join(f"{count:,} {kind}" for kind, count in used.items())
    return f"{sum(used.values()):,}" + (f" ({shown})" if shown else "")
