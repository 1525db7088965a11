"""Sums of losses: `dpo+0.2*sft` trains both with one forward."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError
from mint_train.losses.loss import Loss
from mint_train.losses.term import Term
from mint_train.plugins.discovery import load_plugin

TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:[eE]-?[0-9]+)?)\*)?(?P<name>[^*+]+)")


def open_loss(expression: str, options: Mapping[str, Any]) -> Loss:
    """Load the loss that an expression names: one name, or a weighted sum such as `dpo+0.2*sft`.

    Args:
        expression: terms joined by `+`, each a name or `weight*name`.
        options: of one loss, by name; in a sum `term.name`, or `name` where one term alone has it.

    Raises:
        OptionError: the expression is malformed, or an option belongs to no term, or to more than one.
        PluginError: a loss is missing or broken, or terms need different data.
    """
    # a path may hold + and *
    terms = [(1.0, expression)] if Path(expression).is_file() else parse_terms(expression)
    plugins = [load_plugin(name) for _, name in terms]
    if len(terms) == 1 and terms[0][0] == 1.0:
        return Loss.of(plugins[0], options)
    shares = share_options([Term(plugin) for plugin in plugins], options)
    return Loss(
        [
            Term(plugin, share, weight)
            for (weight, _), plugin, share in zip(terms, plugins, shares, strict=True)
        ],
        expression,
    )


def parse_terms(expression: str) -> list[tuple[float, str]]:
    """Split an expression into weights and names.

    Raises:
        OptionError: a term is not `weight*name`, a weight is not a positive number, a name comes twice.
    """
    terms: list[tuple[float, str]] = []
    for part in expression.split("+"):
        match = TERM.fullmatch(part.strip())
        weight = float_or_nan(match["weight"] or "1") if match else math.nan
        if match is None or not 0 < weight < math.inf:
            raise OptionError(
                f'--loss {expression}: "{part}" is not a term; write NAME or WEIGHT*NAME, WEIGHT above 0'
            )
        terms.append((weight, match["name"].strip()))
    names = [name for _, name in terms]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f'--loss {expression}: "{name}" appears twice; combine its weights')
    return terms


def float_or_nan(text: str) -> float:
    """Read a number; NaN where the text is something else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def share_options(parts: Sequence[Term], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Distribute options: each to the term that it names, or to the one term that has it.

    Raises:
        OptionError: no term, or more than one, has it.
    """
    shares: list[dict[str, Any]] = [{} for _ in parts]
    for name, value in options.items():
        part_name, dot, own = name.rpartition(".")
        owners = [
            index
            for index, part in enumerate(parts)
            if (part.name == part_name if dot else own in part.options_model.model_fields)
        ]
        # one run has one reference, so a bare "reference" is meant for every term
        if not owners or (len(owners) > 1 and own != "reference"):
            known = ", ".join(
                f"{part.name}.{field}" for part in parts for field in part.options_model.model_fields
            )
            problem = "more than one term has it" if owners else "no term has it"
            raise OptionError(f"--set {name}: {problem}; the options are {known or 'none'}")
        for index in owners:
            shares[index][own] = value
    return shares
