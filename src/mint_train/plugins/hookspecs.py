"""The hook contract between mint-train and its plugins: read this file first to write one.

A loss plugin is a Python object (usually a module, or a function under `@mint_train.loss`) named by an
entry point of the group `mint_train.losses`; the entry point's name is what `--loss` takes. It implements
the hooks of `LossSpec` that it needs, and imports what it needs of mint-train from `mint_train.plugin`.

A plugin that extends another loss (`EXTENDS = "dpo"`) inherits every hook that it leaves out. A hook marked
*first result* is answered by the most derived plugin that returns a value: None means "ask the loss that I
extend". Every plugin of the chain answers a hook marked *all*; one marked *not inherited* is answered by the
plugin of the named loss only. `MINT_TRAIN_TRACE=1` prints which plugin answered each call.

An implementation declares only the arguments that it uses, by name and without defaults. `options` is
always an instance of the model that `loss_options` returned. A plugin may replace the options of the loss
that it extends; where it inherits a hook that takes `options`, only by a subclass of the model that the
hook was written for.

What judges and row writers implement is in `judge_hookspecs.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

    from mint_train.batches.batch import Batch
    from mint_train.batches.datums import AttachedDatum
    from mint_train.rendering.renderer import Renderer
    from mint_train.rows.forms import Forms
    from mint_train.run_folder.metric import Metric
    from mint_train.run_folder.records import (
        Checkpoint,
        Evaluation,
        RunRecord,
        RunResult,
        Samples,
        StepRecord,
    )
    from mint_train.sdk import Datum

CONTRACT_VERSION = 2
"""A plugin may state the contract it was written for as `CONTRACT_VERSION`; another number is refused."""

PROJECT = "mint_train"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

NOT_INHERITED = frozenset({"data_note", "options_note"})
"""The hooks that only the plugin of the named loss answers."""


class LossSpec:
    """What a loss plugin may implement."""

    @hookspec(firstresult=True)
    def loss_options(self) -> type[BaseModel] | None:
        """Return the pydantic model of the loss's options (*first result*).

        It gives `--set` its names, bounds and defaults, and `--help` its text. `Options` is a base that
        refuses unknown names. Options are recorded by their names, so a model with an alias or a secret in
        it is refused; a secret belongs in an environment variable.

        Example:
            >>> class MyOptions(Options):
            ...     beta: float = Field(default=1.0, gt=0, description="Inverse temperature.")
            >>> @hookimpl
            ... def loss_options() -> type[BaseModel]:
            ...     return MyOptions
        """

    @hookspec(firstresult=True)
    def bundled_rows(self) -> Path | None:
        """Return a JSON Lines file of a few rows, which a run without `--data` trains on (*first result*)."""

    @hookspec(firstresult=True)
    def row_forms(self, options: BaseModel) -> Forms | None:
        """Return the forms of rows that the loss reads (*first result*).

        Core recognises each row's form by its fields, reads it, and counts the rows of each form: "8 text
        prompts with chosen and rejected". A form reads a row into the plugin's own example, which `flatten`
        gets.

        Example:
            >>> FORMS = Forms([Form("a grade", ("answer", "grade"), read_graded)], make_graded)
            >>> @hookimpl
            ... def row_forms() -> Forms:
            ...     return FORMS
        """

    @hookspec(firstresult=True)
    def parse_row(self, row: Mapping[str, Any], options: BaseModel) -> Any:
        """Read one row as the plugin's own example, where forms are not enough (*first result*).

        Of `row_forms` and `parse_row`, the one of the more derived plugin reads the rows; `parse_row` where
        one plugin has both.

        Args:
            row: the row as it stands in the data, its columns renamed as `--columns` says.
            options: the loss's options.

        Returns:
            Any object but None; `flatten` gets it.

        Raises:
            RowError: the row lacks a field or holds a wrong one. Core adds the file and the line.
        """

    @hookspec(firstresult=True)
    def datum_names(self, options: BaseModel) -> Sequence[str] | None:
        """Name the datums of a group, in order, where each group has the same number (*first result*).

        Args:
            options: the loss's options.

        Example:
            >>> @hookimpl
            ... def datum_names():
            ...     return ("chosen", "rejected")
        """

    @hookspec(firstresult=True)
    def link_examples(self, examples: Iterable[Any], options: BaseModel) -> Iterable[Any] | None:
        """Give examples what they need of one another, once, before any is flattened (*first result*).

        For a loss whose datums hold something of other rows: KTO's baseline takes a completion that was
        written for another prompt. Without this hook every example stands alone.

        A hook that yields each example as soon as it has what it needs keeps a run's memory bounded.

        Args:
            examples: all examples, in the order of the data. Each iteration reads the data anew, and none
                holds it.
            options: the loss's options.

        Returns:
            As many examples in the same order, or None to leave them as they are.

        Raises:
            DataError: the rows together lack what the loss needs.
        """

    @hookspec(firstresult=True)
    def flatten(
        self, example: Any, renderer: Renderer, options: BaseModel
    ) -> Sequence[Datum | AttachedDatum] | None:
        """Turn one example into its group of datums (*first result*).

        A pair gives `[chosen, rejected]`. A datum holds `n` input tokens, `n` target tokens (int64) and `n`
        weights (float32, 0.0 where nothing is trained); the renderer builds them from a prompt and its
        completions. Whatever else the loss needs per datum is attached with `attach`.

        It is called twice for each example. In the first call the renderer only collects the texts, so that
        many can be encoded together, and what the call returns or raises is thrown away.

        Args:
            example: the example that the row was read as.
            renderer: makes datums of a prompt and its completions, and knows `max_length`.
            options: the loss's options.

        Raises:
            DoesNotFit: `max_length` leaves nothing to train; the example is counted, named and left out.
            RowError: the example does not suit the tokenizer: a token id that it does not have.
        """

    @hookspec
    def check_batch(self, batch: Batch, options: BaseModel) -> None:
        """Refuse a batch that breaks the loss's contract, before anything of it is sent (*all*).

        `require_group_size`, `require_trained`, `require_same_prompt` and `require_distinct` are a line each.

        Raises:
            ContractError: with the problem and, where it lies in one group, that group's index.
        """

    @hookspec(firstresult=True)
    def compute_loss(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        options: BaseModel,
        state: MutableMapping[str, float],
        vocabulary: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, Mapping[str, float]] | None:
        """Compute the loss of a batch from the policy's logprobs (*first result*).

        Args:
            batch: the datums, their groups, packed weights, and reference logprobs where the loss has them.
            logprobs: per datum, float32 `[target tokens]` in nats, requiring grad. Where a weight is 0.0 the
                value has no meaning. Turning one into a Python number detaches it, and is refused.
            options: the loss's options.
            state: numbers that the loss keeps from step to step (a running mean); saved with checkpoints.
            vocabulary: by name, what the hook `vocabulary` asked for, floating `[tokens]`, packed as the
                batch's weights are. Differentiable, and without meaning where a weight is 0.0.

        Returns:
            The loss, a scalar tensor, and the metrics, plain finite floats by name.
        """

    @hookspec(firstresult=True)
    def reference(self, options: BaseModel) -> str | None:
        """Return the reference model that the loss needs with these options (*first result*).

        Where no plugin implements this hook, the option `reference` says it; a loss without that option
        needs no reference. So only a loss whose reference is fixed, or follows from other options, needs
        this hook.

        Returns:
            `NO_REFERENCE` ("none") for none, "initial" for the policy before its first step, else a model or
            a checkpoint.
        """

    @hookspec(firstresult=True)
    def vocabulary(self, options: BaseModel) -> Collection[str] | None:
        """Name what the loss needs of the whole distribution at each target token (*first result*).

        `entropy` is that of the policy's distribution; `forward_kl` is KL(reference || policy), and
        `reverse_kl` is KL(policy || reference); `log_expected_prob` is log sum of pi(v)^2, the probability
        that a token drawn from the policy has on average. All are in nats. `reference_entropy_share` is the
        entropy of the reference's distribution, divided by the logarithm of the vocabulary's size.

        The embedded backend computes them beside the logprobs. A service gives logprobs of target tokens
        only, so there the loss is refused before the run. What takes the reference's distribution needs
        `reference=initial`.

        Example:
            >>> @hookimpl
            ... def vocabulary():
            ...     return ("forward_kl",)
        """

    @hookspec
    def metrics(self) -> Mapping[str, Metric] | None:
        """Describe the metrics that `compute_loss` returns (*all*, merged; the most derived plugin wins).

        The description decides how a metric is written, whether each step's line shows it, whether its
        interval is that of a share, and which direction counts as better. A metric without a description is
        a plain number that is recorded and not shown.

        Example:
            >>> @hookimpl
            ... def metrics() -> dict[str, Metric]:
            ...     return {"accuracy": Metric(".2f", kind="share", better="higher", shown=True)}
        """

    @hookspec
    def data_note(self, batch: Batch, options: BaseModel) -> str | None:
        """Return one line for the user about the data of the first batch, or None (*not inherited*).

        What it says of a loss need not hold for one that extends it, so that one says it itself. In a dry
        run the batch has no reference logprobs, whatever the loss.
        """

    @hookspec
    def options_note(self, options: BaseModel) -> str | None:
        """Return one line for the user about what these options make of the loss, or None (*not inherited*).

        It says, for example, that the defaults are not the paper's. A terminal of 80 columns should show it
        whole.
        """


class ObserverSpec:
    """What an observer (a callback) of a run may implement; a loss plugin may too. It changes nothing.

    An observer is a class, named by an entry point of the group `mint_train.observers`; `--track` takes that
    name, and each run creates one instance. One that raises is disabled with a warning; the run continues.
    """

    @hookspec
    def notice(self, text: str, warning: bool) -> None:
        """Called with each line shown to the user; a warning is of what does not end the run (*all*)."""

    @hookspec
    def run_started(self, run: RunRecord) -> None:
        """Called once before the first step, when settings, versions and data are known (*all*)."""

    @hookspec
    def step_finished(self, step: StepRecord) -> None:
        """Called after each optimiser step with its metrics, tokens and seconds (*all*)."""

    @hookspec
    def evaluated(self, evaluation: Evaluation) -> None:
        """Called after each evaluation on held-out data: metrics, intervals, and each row's own (*all*)."""

    @hookspec
    def sampled(self, samples: Samples) -> None:
        """Called when the prompts of `--sample-prompts` are completed, with scores if any (*all*)."""

    @hookspec
    def checkpoint_saved(self, checkpoint: Checkpoint) -> None:
        """Called when a checkpoint is complete and listed in the run folder (*all*)."""

    @hookspec
    def run_rolled_back(self, step: int, problem: str) -> None:
        """Called when the service failed: the run goes back and repeats the steps after `step` (*all*)."""

    @hookspec
    def run_finished(self, result: RunResult) -> None:
        """Called once at the end: `result.status` is done, failed or interrupted (*all*)."""
