"""Sums of losses: `dpo+0.2*sft` trains both with one forward."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mint_train.batches.batch import Batch
from mint_train.errors import OptionError, PluginError
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import NamedPlugin, load_plugin

TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:[eE]-?[0-9]+)?)\*)?(?P<name>[^*+]+)")
DATA_HOOKS = ("parse_row", "relate_examples", "flatten")


def open_loss(expression: str, options: Mapping[str, Any]) -> Loss:
    """Load the loss that an expression names: one name, or a weighted sum such as `dpo+0.2*sft`.

    Args:
        expression: terms joined by `+`, each a name or `weight*name`.
        options: of one loss, by name; in a sum `part.name`, or `name` where one part alone has it.

    Raises:
        OptionError: the expression is malformed, or an option has no or no single place.
        PluginError: a loss is missing or broken, or parts need different data.
    """
    # a path may hold + and *
    terms = [(1.0, expression)] if Path(expression).is_file() else parse_terms(expression)
    if len(terms) == 1 and terms[0][0] == 1.0:
        return Loss(load_plugin(terms[0][1]), options)
    return WeightedSum(expression, terms, options)


def parse_terms(expression: str) -> list[tuple[float, str]]:
    """Split an expression into weights and names.

    Raises:
        OptionError: a term is no `weight*name`, a weight is not a positive number, a name comes twice.
    """
    terms: list[tuple[float, str]] = []
    for part in expression.split("+"):
        match = TERM.fullmatch(part.strip())
        weight = float_or_nan(match["weight"] or "1") if match else math.nan
        if match is None or not 0 < weight < math.inf:
            raise OptionError(
                f'--loss {expression}: "{part}" is no term; write NAME or WEIGHT*NAME, WEIGHT above 0'
            )
        terms.append((weight, match["name"].strip()))
    names = [name for _, name in terms]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f'--loss {expression}: "{name}" stands in it twice; add up its weights')
    return terms


def float_or_nan(text: str) -> float:
    """Read a number; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


class WeightedSum(Loss):
    """A weighted sum of losses on one kind of data; the first part reads and flattens the rows."""

    def __init__(
        self, expression: str, terms: Sequence[tuple[float, str]], options: Mapping[str, Any]
    ) -> None:
        """Load the parts and share the options out among them."""
        plugins = [load_plugin(name) for _, name in terms]
        bare = [Loss(plugin) for plugin in plugins]
        shares = share_options(bare, options)
        super().__init__(plugins[0], shares[0])
        others = [Loss(plugin, share) for plugin, share in zip(plugins[1:], shares[1:], strict=True)]
        self.parts: list[Loss] = [Loss(plugins[0], shares[0]), *others]
        self.weights = [weight for weight, _ in terms]
        self.name = expression
        check_same_data(self.parts)

    @property
    def plugins(self) -> list[NamedPlugin]:
        """The plugins of all parts, each once."""
        return list({id(link.plugin): link for part in self.parts for link in part.chain}.values())

    @property
    def reference(self) -> str | None:
        """The reference that the parts need, or None.

        Raises:
            OptionError: two parts name different ones.
        """
        named = {part.reference: part.name for part in self.parts if part.reference is not None}
        if len(named) > 1:
            wishes = ", ".join(f"{name} wants {reference}" for reference, name in named.items())
            raise OptionError(f"--loss {self.name}: one run has one reference, but {wishes}; set one for all")
        return next(iter(named), None)

    @property
    def step_line(self) -> Mapping[str, str]:
        """Each part's value, then what the first part shows."""
        return {f"{part.name}/loss": ".6f" for part in self.parts} | dict(super().step_line)

    @property
    def option_values(self) -> dict[str, Any]:
        """The options of all parts, each with its part's name in front."""
        return {
            f"{part.name}.{name}": value for part in self.parts for name, value in part.option_values.items()
        }

    def describe(self) -> dict[str, Any]:
        """Tell `run.json` each part's weight, options and plugins."""
        described = [
            {"name": part.name, "weight": weight, **part.describe()}
            for weight, part in zip(self.weights, self.parts, strict=True)
        ]
        return {"parts": described}

    def remarks(self, batch: Batch) -> list[str]:
        """Collect what the plugins of all parts have to say about the data, each line once."""
        return list(dict.fromkeys(line for part in self.parts for line in part.remarks(batch)))

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that breaks any part's contract."""
        for part in self.parts:
            part.check_batch(batch)

    def evaluate(
        self, batch: Batch, logprobs: Sequence[torch.Tensor], state: MutableMapping[str, float]
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Add the parts up; of two metrics with one name, the earlier part's is kept."""
        total: torch.Tensor | None = None
        values: dict[str, Any] = {}
        metrics: dict[str, Any] = {}
        for weight, part in zip(self.weights, self.parts, strict=True):
            prefix = f"{part.name}/"
            own = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            value, part_metrics = part.evaluate(batch, logprobs, own)
            state.update({prefix + name: number for name, number in own.items()})
            values[f"{part.name}/loss"] = value.detach()
            metrics = {**part_metrics, **metrics}
            total = weight * value if total is None else total + weight * value
        if total is None:
            raise PluginError(f"--loss {self.name} has no part")
        return total, values | metrics


def share_options(parts: Sequence[Loss], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give each option to the part that it names, or to the one part that has it.

    Raises:
        OptionError: no part, or more than one, has it.
    """
    shares: list[dict[str, Any]] = [{} for _ in parts]
    for name, value in options.items():
        part_name, dot, own = name.rpartition(".")
        owners = [
            place
            for place, part in enumerate(parts)
            if (part.name == part_name if dot else own in part.options_model.model_fields)
        ]
        # one run has one reference, so a bare "reference" is meant for every part
        if not owners or (len(owners) > 1 and own != "reference"):
            known = ", ".join(
                f"{part.name}.{field}" for part in parts for field in part.options_model.model_fields
            )
            problem = "more than one part has it" if owners else "no part has it"
            raise OptionError(f"--set {name}: {problem}; the options are {known or 'none'}")
        for place in owners:
            shares[place][own] = value
    return shares


def check_same_data(parts: Sequence[Loss]) -> None:
    """Refuse parts whose rows are read or flattened by different plugins.

    Raises:
        PluginError: naming both.
    """
    first = parts[0]
    for part in parts[1:]:
        for hook in DATA_HOOKS:
            if answering(first, hook) is not answering(part, hook):
                raise PluginError(
                    f'"{first.name}" and "{part.name}" cannot be added: they need different data '
                    f"(each has its own {hook}); add losses that extend the same one"
                )


def answering(loss: Loss, hook: str) -> object:
    """Return the plugin that answers a hook of a loss, or None."""
    implementations = getattr(loss.hook, hook).get_hookimpls()
    return implementations[-1].plugin if implementations else None
