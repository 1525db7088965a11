"""The chosen loss: its plugins behind one object, and the guard around its mathematics."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from mint_train.batches.batch import Batch
from mint_train.batches.datums import AttachedDatum
from mint_train.errors import ContractError, LossError, MintTrainError, PluginError
from mint_train.losses.guard import check_scalar, finite_metrics
from mint_train.losses.loss_options import NoOptions, validate_options
from mint_train.plugins.discovery import NamedPlugin, load_chain, make_manager
from mint_train.rendering.renderer import Renderer
from mint_train.sdk import Datum

PAPER = re.compile(r"^Paper: (.*(?:\n +.*)*)", re.MULTILINE)
"""Where a plugin's docstring names its paper."""


class Loss:
    """A loss with its options, as the runner uses it."""

    def __init__(self, plugin: NamedPlugin, options: Mapping[str, Any] | None = None) -> None:
        """Load the plugin's chain and validate the options.

        Raises:
            PluginError: a plugin of the chain breaks the hook contract.
            OptionError: an option is unknown or malformed.
        """
        self.name = plugin.name
        self.chain = load_chain(plugin)
        self.manager = make_manager(self.chain)
        self.hook = self.manager.hook
        self.options_model: type[BaseModel] = self.hook.loss_options() or NoOptions
        self.options = validate_options(self.name, self.options_model, options or {})

    @property
    def plugins(self) -> list[NamedPlugin]:
        """The plugins of the loss, the base first."""
        return self.chain

    @property
    def reference(self) -> str | None:
        """The reference model that the loss needs with its options, or None."""
        reference: str | None = self.hook.reference(options=self.options)
        return reference

    @property
    def step_line(self) -> Mapping[str, str]:
        """The metrics of the step line with their formats, by name."""
        return self.hook.step_line() or {}

    def parse_row(self, row: Mapping[str, Any]) -> Any:
        """Turn a row into the plugin's example."""
        return self._first("parse_row", row=row)

    def row_form(self, row: Mapping[str, Any]) -> str | None:
        """Name the form of a row, where the plugin knows forms."""
        form: str | None = self.hook.row_form(row=row, options=self.options)
        return form

    def relate_examples(self, examples: Iterable[Any]) -> Iterable[Any]:
        """Let the plugin relate all examples to one another; most leave them as they are."""
        related: Iterable[Any] | None = self.hook.relate_examples(examples=examples, options=self.options)
        return examples if related is None else related

    def flatten(self, example: Any, renderer: Renderer) -> Sequence[Datum | AttachedDatum]:
        """Turn an example into its datums."""
        flattened: Sequence[Datum | AttachedDatum] = self._first(
            "flatten", example=example, renderer=renderer
        )
        return flattened

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that breaks the contract, with the file and line of the group.

        Raises:
            ContractError: with the first plugin's objection.
        """
        try:
            self.hook.check_batch(batch=batch, options=self.options)
        except ContractError as error:
            if error.group is not None:
                error.locate(batch.groups[error.group].source)
            raise

    @property
    def option_values(self) -> dict[str, Any]:
        """The options as `--set` names them, with their values as JSON has them."""
        return self.options.model_dump(mode="json")

    def describe(self) -> dict[str, Any]:
        """Tell `run.json` what the loss says of itself, its options, and the plugins, base first."""
        text = inspect.cleandoc(self.chain[-1].plugin.__doc__ or "")
        paper = PAPER.search(text)
        return {
            "description": text.partition("\n")[0],
            "paper": " ".join(paper[1].split()) if paper else None,
            "options": self.option_values,
            "plugins": {link.name: link.origin for link in self.chain},
        }

    def remarks(self, batch: Batch) -> list[str]:
        """Collect what the plugins have to say about the data, one line each."""
        return [*self.hook.remark(batch=batch, options=self.options)]

    def compute(
        self, batch: Batch, logprobs: Sequence[torch.Tensor], state: MutableMapping[str, float]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Compute the loss and its metrics, "loss" among them, checked.

        Raises:
            LossError: the loss is no scalar tensor, does not depend on the logprobs, or is not finite; a
                metric is not a finite number.
        """
        value, metrics = self.evaluate(batch, logprobs, state)
        if not torch.isfinite(value):
            raise LossError(
                f"the loss is {float(value.detach())}{self._where_not_finite(batch, logprobs, state)}"
            )
        return value, {"loss": float(value.detach()), **finite_metrics(self.name, metrics)}

    def evaluate(
        self, batch: Batch, logprobs: Sequence[torch.Tensor], state: MutableMapping[str, float]
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Ask the plugin for its loss, a scalar tensor, and its metrics.

        Raises:
            LossError: the plugin raised, with its own file and line, or returned something else.
        """
        try:
            result = self._first("compute_loss", batch=batch, logprobs=logprobs, state=state)
        except MintTrainError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            raise LossError(
                f'the loss "{self.name}" raised {type(error).__name__} at {where}: {error}'
            ) from error
        value, metrics = result if isinstance(result, tuple) else (result, {})
        check_scalar(self.name, value)
        return value, metrics

    def _first(self, hook: str, **arguments: Any) -> Any:
        result = getattr(self.hook, hook)(options=self.options, **arguments)
        if result is None:
            raise PluginError(
                f'the loss "{self.name}" has no "{hook}": implement the hook, or extend a loss that has it'
            )
        return result

    def _where_not_finite(
        self, batch: Batch, logprobs: Sequence[torch.Tensor], state: MutableMapping[str, float]
    ) -> str:
        """Name the first group whose loss alone is not finite, where a loss can be taken group by group."""
        start = 0
        for group in batch.groups:
            own = logprobs[start : start + len(group.datums)]
            start += len(group.datums)
            try:
                value, _ = self.evaluate(Batch([group]), own, dict(state))
            except LossError:
                continue  # a loss over whole batches may refuse a single group
            if not torch.isfinite(value):
                return f" at {group.source}"
        return ""
