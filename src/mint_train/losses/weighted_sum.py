"""Sums of losses: `dpo+0.2*sft` trains both with one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError
from mint_train.losses.loss import Loss
from mint_train.losses.term import Term
from mint_train.plugins.discovery import load_plugin
from mint_train.settings.loss_names import parse_terms


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
    parts = [Term(plugin, None, weight) for plugin, (weight, _) in zip(plugins, terms, strict=True)]
    return with_options(Loss(parts, expression), options)


def with_options(loss: Loss, options: Mapping[str, Any]) -> Loss:
    """Return a loss with options of its own, named as `open_loss` takes them.

    Raises:
        OptionError: an option is unknown or malformed, or belongs to no term, or to more than one.
    """
    shares = share_options(loss.terms, options) if loss.is_sum else [options]
    terms = zip(loss.terms, shares, strict=True)
    return Loss([Term(term.chain[-1], share, term.weight) for term, share in terms], loss.name)


def share_options(parts: Sequence[Term], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Distribute options: each to the term that it names, or to the one term that has it.

    Raises:
        OptionError: no term, or more than one, has it.
    """
    shares: list[dict[str, Any]] = [{} for _ in parts]
    # what names its term comes last, because it says more than what is meant for every term
    for name, value in sorted(options.items(), key=lambda option: "." in option[0]):
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
