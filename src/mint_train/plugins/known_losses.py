"""Losses that are known but may not be installed, and what to tell somebody who asks for one."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from functools import cache
from importlib.resources import files

from mint_train.errors import nearest


@cache
def known_losses() -> dict[str, str]:
    """Return the distribution of each known loss by the loss's name."""
    text = files("mint_train.plugins").joinpath("known_losses.toml").read_text(encoding="utf-8")
    return {loss: distribution for distribution, losses in tomllib.loads(text).items() for loss in losses}


def not_installed(name: str, installed: Collection[str]) -> str:
    """Say in one line that a loss is not installed, and how to get it or what is meant instead."""
    known = known_losses()
    if name in known:
        return (
            f'the loss "{name}" comes with {known[name]}, which is not installed; in this project\'s '
            f"repository: pip install -e plugins/{known[name]}"
        )
    advice = nearest(name, {*installed, *known}) or "; `mint-train losses` lists those that are"
    return f'no loss "{name}" is installed{advice}'
