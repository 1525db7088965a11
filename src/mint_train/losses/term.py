"""One term of a loss: a plugin with what it extends, its options and its weight, behind the hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import cached_property
from typing import Any

import torch
from pydantic import BaseModel

from mint_train.batches.batch import Batch
from mint_train.batches.datums import AttachedDatum
from mint_train.batches.vocabulary import Vocabulary
from mint_train.errors import LossError, MintTrainError, PluginError, RowError
from mint_train.losses.guard import (
    check_batch_untouched,
    check_metric_names,
    check_scalar,
    check_weights_were_read,
    loss_and_metrics,
)
from mint_train.losses.loss_options import NoOptions, validate_options
from mint_train.plugins.discovery import NamedPlugin, check_options, load_chain, make_manager
from mint_train.plugins.docstrings import describe_loss
from mint_train.plugins.guarding import failure, file_of, raised_at, said
from mint_train.plugins.options import NO_REFERENCE
from mint_train.rendering.renderer import Renderer
from mint_train.rows.forms import Forms, Reading
from mint_train.rows.verdicts import ColumnRefusedError, Survey
from mint_train.run_folder.description import LossDescription
from mint_train.run_folder.metric import Metric
from mint_train.sdk import Datum


class Term:
    """A loss plugin with its options and its weight."""

    def __init__(
        self, plugin: NamedPlugin, options: Mapping[str, Any] | None = None, weight: float = 1.0
    ) -> None:
        """Load the plugin's chain and validate the options.

        Raises:
            PluginError: a plugin of the chain breaks the hook contract.
            OptionError: an option is unknown or malformed.
        """
        self.name, self.weight = plugin.name, weight
        self.chain = load_chain(plugin)
        self.manager = make_manager(self.chain)
        self.hook = self.manager.hook
        check_options(self.manager, self.chain)
        self.options_model: type[BaseModel] = self.hook.loss_options() or NoOptions
        self.options = validate_options(self.name, self.options_model, options or {})

    @property
    def reference(self) -> str | None:
        """The reference model that the term needs with its options, or None."""
        found = self.hook.reference(options=self.options)
        if found is None:
            found = getattr(self.options, "reference", NO_REFERENCE)
        return None if found == NO_REFERENCE else str(found)

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """What the term needs of the whole distribution at each token, with its options."""
        return frozenset(self.hook.vocabulary(options=self.options) or ())

    def trait(self, name: str, bases: int = 0) -> Any:
        """Look up a trait of the term's plugin, or of one that it extends; a function gets the options.

        Args:
            name: the trait.
            bases: this many plugins at the base of the chain are not asked.

        Raises:
            PluginError: the function raised.
        """
        for link in reversed(self.chain[bases:]):
            value = getattr(link.plugin, name, None)
            if value is not None:
                try:
                    return value(self.options) if callable(value) else value
                except Exception as error:
                    file = file_of(link.plugin)
                    raise PluginError(f'the loss "{link.name}" {failure(name, error, file)}') from error
        return None

    @cached_property
    def is_linear(self) -> bool:
        """Whether the loss is linear in the logprobs; a plugin that replaces the computation says so anew."""
        return bool(self.trait("LINEAR", self.depth("compute_loss")))

    @property
    def metrics(self) -> dict[str, Metric]:
        """The chain's descriptions of metrics, by name; the most derived plugin's counts."""
        merged: dict[str, Metric] = {}
        for described in reversed(self.hook.metrics()):  # pluggy puts the most derived plugin first
            merged |= described
        return merged

    @cached_property
    def forms(self) -> Forms | None:
        """The forms of rows that the term reads, or None where its plugins parse rows themselves."""
        forms: Forms | None = self.hook.row_forms(options=self.options)
        return forms

    @cached_property
    def parses(self) -> bool:
        """Whether a plugin parses rows itself, and none that is more derived says which forms there are."""
        return self.depth("parse_row") >= self.depth("row_forms")

    def read_row(self, row: Mapping[str, Any], survey: Survey) -> Reading:
        """Read a row: the plugin's examples, the form where there are forms, the columns that were not read.

        Args:
            row: the row, its columns renamed.
            survey: the values that columns of verdicts and labels have in all rows.

        Raises:
            RowError: the row does not hold what the loss needs, or suits two forms.
            PluginError: no plugin of the chain reads rows.
        """
        if self.parses:
            example = self.hook.parse_row(row=row, options=self.options)
            if example is not None:
                return Reading([example], self.form_name(row))
        if self.forms is None:
            raise PluginError(
                f'the loss "{self.name}" reads no rows: implement "row_forms", or extend a loss that has it'
            )
        try:
            return self.forms.read(row, survey)
        except (MintTrainError, ColumnRefusedError):
            raise
        except Exception as error:  # the plugin's own forms read it
            raise PluginError(f'the loss "{self.name}" {failure("row_forms", error)}') from error

    def form_name(self, row: Mapping[str, Any]) -> str | None:
        """Name the form of a row that `parse_row` has read, where it has one."""
        try:
            return self.forms.read(row).form if self.forms else None
        except RowError:  # the parser reads more than the forms say
            return None

    def depth(self, hook: str) -> int:
        """Return the position in the chain of the most derived plugin that implements a hook; -1 for none."""
        implementing = {id(one.plugin) for one in getattr(self.hook, hook).get_hookimpls()}
        return max((n for n, link in enumerate(self.chain) if id(link.plugin) in implementing), default=-1)

    def link_examples(self, examples: Iterable[Any]) -> Iterable[Any]:
        """Let the plugin link the examples to one another; most losses leave them as they are."""
        linked: Iterable[Any] | None = self.hook.link_examples(examples=examples, options=self.options)
        return examples if linked is None else linked

    def flatten(self, example: Any, renderer: Renderer) -> Sequence[Datum | AttachedDatum]:
        """Turn an example into its datums."""
        datums: Sequence[Datum | AttachedDatum] = self.first("flatten", example=example, renderer=renderer)
        return datums

    def evaluate(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        state: MutableMapping[str, float],
        vocabulary: Vocabulary,
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Ask the plugin for its loss, a scalar tensor, and its metrics.

        Raises:
            LossError: the plugin raised, with its own file and line, returned something else, or wrote over
                the batch; a metric has the name of a figure of the run's own; or the plugin was not given
                what it needs of the vocabulary.
        """
        if missing := sorted(self.vocabulary - vocabulary.keys()):
            raise LossError(f'the loss "{self.name}" was not given {missing[0]} of the vocabulary')
        # a fresh batch knows whether this loss, and not another term, has asked for the weights
        batch = Batch(batch.groups) if batch.carries_weights else batch
        try:
            given = {"batch": batch, "logprobs": logprobs, "state": state, "vocabulary": vocabulary}
            result = self.first("compute_loss", **given)
        except MintTrainError:
            raise
        except Exception as error:
            where = raised_at(error, map(file_of, (link.plugin for link in self.chain)))
            raise LossError(
                f'the loss "{self.name}" raised {type(error).__name__} at {where}: {said(error)}'
            ) from error
        value, metrics = loss_and_metrics(self.name, result)
        check_metric_names(self.name, metrics)
        check_scalar(self.name, value)
        check_batch_untouched(self.name, batch)
        check_weights_were_read(self.name, batch)
        return value, metrics

    def own_note(self, hook: str, **arguments: Any) -> str | None:
        """Return what the term's own plugin answers to a hook that is not inherited; bases are not asked."""
        available = {"options": self.options, **arguments}
        for implementation in getattr(self.hook, hook).get_hookimpls():
            if implementation.plugin is self.chain[-1].plugin:
                note: str | None = implementation.function(*(available[n] for n in implementation.argnames))
                return note
        return None

    def describe(self, name: str, weight: float | None = None) -> LossDescription:
        """Return what `run.json` records of the term, under the name and weight that it has in the loss."""
        described = describe_loss(self.chain[-1].plugin)
        return LossDescription(
            name=name,
            weight=weight,
            description=described.text.partition("\n")[0],
            paper=described.parts.get("Paper"),
            options=self.options.model_dump(mode="json"),
            plugins={link.name: link.origin for link in self.chain},
        )

    def first(self, hook: str, **arguments: Any) -> Any:
        """Call a hook that must be answered.

        Raises:
            PluginError: no plugin of the chain answers it.
        """
        result = getattr(self.hook, hook)(options=self.options, **arguments)
        if result is None:
            raise PluginError(
                f'the loss "{self.name}" has no "{hook}": implement the hook, or extend a loss that has it'
            )
        return result
