"""The loss of a run: a weighted sum of one or more terms, each a plugin with its options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pluggy
import torch
from pydantic import BaseModel

from mint_train.batches.batch import Batch
from mint_train.batches.datums import AttachedDatum
from mint_train.batches.groups import Group
from mint_train.batches.vocabulary import Vocabulary, of_tokens
from mint_train.errors import ContractError, LossError, OptionError, PluginError
from mint_train.losses.guard import check_metric_names, check_total_weight, finite_metrics
from mint_train.losses.term import Term
from mint_train.plugins.discovery import NamedPlugin
from mint_train.rendering.renderer import Renderer
from mint_train.rows.forms import Reading
from mint_train.rows.verdicts import Survey
from mint_train.run_folder.description import LossDescription
from mint_train.run_folder.metric import Metric
from mint_train.sdk import Datum

DATA_HOOKS = ("row_forms", "parse_row", "link_examples", "flatten")
"""The hooks that turn rows into datums; the first term's answer for the whole sum."""
NOTHING_ASKED: Vocabulary = MappingProxyType({})


class Loss:
    """A weighted sum of one or more terms on one kind of data.

    A single term of weight 1 keeps its own names. In a sum, options, state and each term's value carry the
    term's name: `dpo.beta`, `dpo/loss`.
    """

    def __init__(self, terms: Sequence[Term], name: str) -> None:
        """Put the terms together.

        Args:
            terms: at least one; the first reads and flattens the rows.
            name: the loss as the user wrote it.

        Raises:
            OptionError: two terms have one name.
            PluginError: two terms read or flatten rows differently.
        """
        self.terms, self.name = tuple(terms), name
        self.is_sum = len(terms) > 1 or terms[0].weight != 1.0
        check_names(self.terms, name)
        check_same_data(self.terms)

    @classmethod
    def of(cls, plugin: NamedPlugin, options: Mapping[str, Any] | None = None) -> Loss:
        """Make the loss of a single plugin.

        Raises:
            PluginError: a plugin of the chain breaks the hook contract.
            OptionError: an option is unknown or malformed.
        """
        return cls([Term(plugin, options)], plugin.name)

    @property
    def plugins(self) -> list[NamedPlugin]:
        """Every plugin of every term, each once, bases first."""
        links = {id(link.plugin): link for term in self.terms for link in term.chain}
        return list(links.values())

    @property
    def reference(self) -> str | None:
        """The reference model that the terms need, or None.

        Raises:
            OptionError: two terms need different ones.
        """
        needed = {term.reference: term.name for term in self.terms if term.reference is not None}
        if len(needed) > 1:
            wishes = ", ".join(f"{name} wants {reference}" for reference, name in needed.items())
            raise OptionError(f"--loss {self.name}: one run has one reference, but {wishes}; set one for all")
        return next(iter(needed), None)

    @property
    def is_linear(self) -> bool:
        """Whether all terms are linear in the logprobs, so that their gradients do not depend on these."""
        return all(term.is_linear for term in self.terms)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """What the terms together need of the whole distribution at each token, sorted."""
        return tuple(sorted(frozenset().union(*(term.vocabulary for term in self.terms))))

    @property
    def metrics(self) -> dict[str, Metric]:
        """The terms' descriptions of metrics, by name; an earlier term's counts."""
        described: dict[str, Metric] = {}
        if self.is_sum:
            value = Metric(".6f", better="lower", shown=True)
            described = {f"{term.name}/loss": value for term in self.terms}
        for term in self.terms:
            for name, metric in term.metrics.items():
                described.setdefault(name, metric)
        return described

    @property
    def bundled_rows(self) -> Path | None:
        """The rows that a run without data trains on, or None."""
        path: Path | None = self.terms[0].hook.bundled_rows()
        return path

    @property
    def datum_names(self) -> Sequence[str]:
        """What the datums of a group are called, in order; empty where they have no names."""
        return self.terms[0].hook.datum_names(options=self.options) or ()

    @property
    def untrained_datums(self) -> frozenset[int]:
        """The positions in a group whose datums no term trains: they are measured, or ignored."""
        return frozenset.intersection(
            *(frozenset(term.trait("UNTRAINED_DATUMS") or ()) for term in self.terms)
        )

    @property
    def options_model(self) -> type[BaseModel]:
        """The model of the first term's options."""
        return self.terms[0].options_model

    @property
    def options(self) -> BaseModel:
        """The first term's options."""
        return self.terms[0].options

    @property
    def option_values(self) -> dict[str, Any]:
        """The options as `--set` names them, with their values as JSON has them."""
        return {
            f"{term.name}." * self.is_sum + name: value
            for term in self.terms
            for name, value in term.options.model_dump(mode="json").items()
        }

    def data_hooks(self) -> list[pluggy.HookImpl]:
        """Return the implementations of the hooks that turn rows into datums."""
        hook = self.terms[0].hook
        return [found for name in DATA_HOOKS for found in getattr(hook, name).get_hookimpls()]

    @property
    def links_examples(self) -> bool:
        """Whether examples must be linked to one another before any is flattened."""
        return bool(self.terms[0].hook.link_examples.get_hookimpls())

    @property
    def surveyed_columns(self) -> frozenset[str]:
        """The columns whose values mean something only all together, such as verdicts."""
        forms = self.terms[0].forms
        return forms.surveyed if forms is not None else frozenset()

    def read_row(self, row: Mapping[str, Any], survey: Survey) -> Reading:
        """Read a row: the loss's examples, the form where the loss has forms, the columns that were not read.

        Args:
            row: the row, its columns renamed.
            survey: the values that columns of verdicts and labels have in all rows.
        """
        return self.terms[0].read_row(row, survey)

    def parse_row(self, row: Mapping[str, Any]) -> Any:
        """Read a row as the loss's example, as if it were the only row."""
        return self.read_row(row, Survey()).example

    def link_examples(self, examples: Iterable[Any]) -> Iterable[Any]:
        """Link the examples to one another, where the loss does that."""
        return self.terms[0].link_examples(examples)

    def flatten(self, example: Any, renderer: Renderer) -> Sequence[Datum | AttachedDatum]:
        """Turn an example into its datums."""
        return self.terms[0].flatten(example, renderer)

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that breaks the contract of any term, with the file and line of the group.

        Raises:
            ContractError: with the first plugin's objection.
        """
        for term in self.terms:
            try:
                term.hook.check_batch(batch=batch, options=term.options)
            except ContractError as error:
                if error.group is not None:
                    error.locate(batch.groups[error.group].source)
                raise

    def options_notes(self) -> list[str]:
        """Collect what the terms have to say about their options, each line once."""
        return distinct(term.own_note("options_note") for term in self.terms)

    def data_notes(self, batch: Batch) -> list[str]:
        """Collect what the terms have to say about the data, each line once."""
        return distinct(term.own_note("data_note", batch=batch) for term in self.terms)

    def describe(self) -> list[LossDescription]:
        """Return what `run.json` records of the loss: of a sum, each term with its weight."""
        if not self.is_sum:
            return [self.terms[0].describe(self.name)]
        return [term.describe(term.name, term.weight) for term in self.terms]

    def compute(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        state: MutableMapping[str, float],
        vocabulary: Vocabulary = NOTHING_ASKED,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Compute the loss and its metrics, "loss" among them, checked.

        Args:
            batch: the batch.
            logprobs: the policy's, per datum, `[target tokens]`.
            state: what the loss keeps from step to step, which is updated.
            vocabulary: what the property of that name asks for, packed.

        Raises:
            LossError: the loss is not a scalar tensor, does not depend on the logprobs, or is not finite; a
                metric is not a finite number; all rows weigh nothing.
        """
        check_total_weight(batch)
        value, metrics = self.evaluate(batch, logprobs, state, vocabulary)
        if not torch.isfinite(value):
            where = self.where_not_finite(batch, logprobs, state, vocabulary)
            raise LossError(f"the loss is {float(value.detach())}{where}")
        return value, {"loss": float(value.detach()), **finite_metrics(self.name, metrics)}

    def evaluate(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        state: MutableMapping[str, float],
        vocabulary: Vocabulary = NOTHING_ASKED,
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Add up the terms; of two metrics with one name, the earlier term's is kept.

        Raises:
            LossError: a plugin raised, with its own file and line, or returned something else; a metric has
                the name of a figure of the run's own.
        """
        if not self.is_sum:
            return self.terms[0].evaluate(batch, logprobs, state, vocabulary)
        parts: list[torch.Tensor] = []
        values: dict[str, Any] = {}
        metrics: dict[str, Any] = {}
        reserved = [f"{term.name}/loss" for term in self.terms]
        for term in self.terms:
            prefix = f"{term.name}/"
            own = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            value, of_term = term.evaluate(batch, logprobs, own, vocabulary)
            check_metric_names(term.name, of_term, reserved)
            for name in [name for name in state if name.startswith(prefix)]:
                del state[name]  # the term may have deleted it
            state.update({prefix + name: number for name, number in own.items()})
            values[f"{term.name}/loss"] = value.detach()
            metrics = {**of_term, **metrics}
            parts.append(term.weight * value)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total, values | metrics

    def where_not_finite(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        state: MutableMapping[str, float],
        vocabulary: Vocabulary,
    ) -> str:
        """Name the first group whose loss alone is not finite, where the loss of a single group exists."""
        for group, own, of_group in each_group(batch, logprobs, vocabulary):
            try:
                value, _ = self.evaluate(Batch([group]), own, dict(state), of_group)
            except LossError:
                continue  # a loss over whole batches may refuse a single group
            if not torch.isfinite(value):
                return f" at {group.source}"
        return ""


def each_group(
    batch: Batch, logprobs: Sequence[torch.Tensor], vocabulary: Vocabulary
) -> Iterator[tuple[Group, Sequence[torch.Tensor], Vocabulary]]:
    """Yield each group with its own logprobs and values over the vocabulary."""
    datum = token = 0
    for group in batch.groups:
        last, end = datum + len(group.datums), token + sum(group.lengths)
        yield group, logprobs[datum:last], of_tokens(vocabulary, token, end)
        datum, token = last, end


def distinct(notes: Iterable[str | None]) -> list[str]:
    """Return the notes that there are, each once."""
    return list(dict.fromkeys(note for note in notes if note is not None))


def check_names(terms: Sequence[Term], loss: str) -> None:
    """Refuse two terms of one name, such as `sft` and `./sft.py`: their options and metrics would mix.

    Raises:
        OptionError: naming the loss and the terms' name.
    """
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(
                f'--loss {loss}: two terms are called "{name}", and share their options and metrics; '
                "rename the file of one"
            )


def check_same_data(terms: Sequence[Term]) -> None:
    """Refuse terms whose rows are read or flattened by different plugins.

    Raises:
        PluginError: naming both terms and the hook.
    """
    first = terms[0]
    for term in terms[1:]:
        for hook in DATA_HOOKS:
            if answering(first, hook) is not answering(term, hook):
                raise PluginError(
                    f'"{first.name}" and "{term.name}" cannot be added: they need different data '
                    f"(each has its own {hook}); add losses that extend the same one"
                )


def answering(term: Term, hook: str) -> object:
    """Return the plugin that answers a hook of a term, or None."""
    implementations = getattr(term.hook, hook).get_hookimpls()
    return implementations[-1].plugin if implementations else None
