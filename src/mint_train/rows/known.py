"""Public data sets whose columns need a word of explanation: what `--columns` would say, kept as data."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from mint_train.settings.data_items import HUB


@cache
def known_data_sets() -> Mapping[str, Mapping[str, Any]]:
    """Return what `known_data_sets.toml` says, by the name of the data set in lower case."""
    written = files("mint_train.rows").joinpath("known_data_sets.toml").read_text(encoding="utf-8")
    return {name.lower(): entry for name, entry in tomllib.loads(written).items()}


def known_columns(name: str) -> dict[str, str]:
    """Return the columns of a data set on the hub that is known, by field; none for any other data.

    Args:
        name: as `--data` has it: `hf:org/name`, perhaps with a configuration and a split behind it.
    """
    for prefix in HUB:
        if name.startswith(prefix):
            reference = name.removeprefix(prefix).partition(":")[0]
            entry = known_data_sets().get("/".join(reference.split("/")[:2]).lower())
            return dict(entry["columns"]) if entry else {}
    return {}
