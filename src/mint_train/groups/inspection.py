"""What a run would train on, looked at before it is paid for: no model is loaded, and no key is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mint_train.batches.batch import Batch
from mint_train.batches.groups import Group
from mint_train.errors import ContractError, Source
from mint_train.groups.build import chunks, flatten_chunk, related
from mint_train.groups.completions import PromptRenderer, render_prompts
from mint_train.groups.examples import Examples, read_training_rows
from mint_train.groups.expected_tokens import ExpectedTokens
from mint_train.groups.held_out import find_held_out, split_examples
from mint_train.groups.order import Order
from mint_train.groups.prompts import read_prompts
from mint_train.groups.shares import shares_of
from mint_train.groups.step_count import count_steps
from mint_train.groups.token_file import digest_of
from mint_train.groups.weightless import parts, training_batches, weightless_notes
from mint_train.losses.loss import Loss
from mint_train.rendering.notes import rendering_notes
from mint_train.rendering.options import Rendering
from mint_train.rendering.renderer import Renderer
from mint_train.rendering.special_tokens import GuardedTokenizer, SpecialTokens
from mint_train.rendering.turn_markers import markers_note
from mint_train.rows.row import BadRow, Example
from mint_train.settings.model import Settings

REMARKED = 1024
"""Groups that the loss may remark on."""


@dataclass
class DataReport:
    """What a run would find in its data."""

    data: str
    """The data, its rows and their forms, in one line."""
    datum_names: Sequence[str]
    untrained: frozenset[int]
    """The positions in a group of datums that the loss does not train."""
    max_length: int | None
    special_tokens: SpecialTokens
    bad_rows: list[BadRow]
    groups: int = 0
    weightless: dict[int, Source] = field(default_factory=dict)
    """The groups whose row has the weight 0, by index."""
    weightless_batches: list[str] = field(default_factory=list)
    """Batches of such groups alone, each at which the run would stop."""
    steps: int = 0
    tokens: list[int] = field(default_factory=list)
    """Tokens of each datum, its prompt included, in the groups' order."""
    trained: list[int] = field(default_factory=list)
    """Tokens of each datum that are trained on; none of one that the loss only measures."""
    left_out: list[str] = field(default_factory=list)
    cut: list[Source] = field(default_factory=list)
    """Groups with a completion that `--max-length` cuts."""
    broken: list[str] = field(default_factory=list)
    """Groups that break the loss's contract: file, line and what is wrong."""
    repeated: list[tuple[Source, Source]] = field(default_factory=list)
    """Groups that are equal to an earlier one, with that."""
    leaked: list[tuple[Source, Source]] = field(default_factory=list)
    """Held-out groups that are trained on too, with where."""
    special: list[tuple[Source, str]] = field(default_factory=list)
    """Rows whose text holds one of the tokenizer's special tokens, with the first one."""
    remarks: list[str] = field(default_factory=list)
    examples: list[tuple[Group, str | None]] = field(default_factory=list)
    """The first groups, each with the form of its row."""
    group_tokens: list[int] = field(default_factory=list)
    """Input tokens of each group."""
    longest: list[int] = field(default_factory=list)
    """Tokens of each group's longest datum."""
    expected: ExpectedTokens | None = None
    """What the run would send; None where nothing is left to train."""
    rendering: Rendering = field(default_factory=Rendering)
    notes: list[str] = field(default_factory=list)
    """What is to be known of how rows are rendered."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """Columns that nothing is read of, with how many rows have them."""
    nothing_held_out: bool = False
    """Whether a held-out set is asked for, and none of its rows is left."""

    @classmethod
    def of(cls, settings: Settings, loss: Loss, rows: Examples) -> DataReport:
        """Begin a report with what reading the rows has found."""
        return cls(
            rows.describe(),
            loss.datum_names,
            loss.untrained_datums,
            settings.max_length,
            settings.special_tokens,
            list(rows.bad_rows),
            rendering=Rendering.of(settings),
            unread=rows.unread,
        )

    @property
    def problems(self) -> int:
        """Count the rows that would stop a run."""
        return len(self.bad_rows) + len(self.broken)


def inspect_data(settings: Settings, loss: Loss, tokenizer: Any, shown: int = 1) -> DataReport:
    """Read, parse and flatten all rows as a run would, but note what is wrong instead of stopping at it.

    Args:
        settings: those of the run.
        loss: the loss.
        tokenizer: the tokenizer of the model that would be trained.
        shown: how many groups to keep as examples.

    Raises:
        UserError: the data cannot be read at all, or no row of it is good.
    """
    lenient = settings.model_copy(update={"on_bad_row": "skip"})
    all_rows = read_training_rows(lenient, loss)
    examples, held_out = split_examples(lenient, loss, all_rows, find_held_out(settings))
    report = DataReport.of(settings, loss, all_rows)
    report.notes = [*loss.options_notes(), *rendering_notes(tokenizer, report.rendering)]
    guarded = GuardedTokenizer(tokenizer, settings.special_tokens)
    seen, first, by_path = inspect_trained(examples, loss, guarded, report, shown)
    own = [inspect_held_out(part, loss, guarded, report, seen) for part in held_out.values()]
    held_out_tokens = sum(sum(part.group_tokens) for part in own)
    for part in own:
        batches = parts(range(part.groups), settings.batch_size)
        report.weightless_batches += weightless_notes("an evaluation", batches, part.weightless)
    if first:
        shares = shares_of(examples.data, by_path)
        report.remarks = [share.describe() for share in shares]
        report.remarks += loss.data_notes(Batch(first))
        report.steps = count_steps(settings, report.groups)
        order = Order.of(settings, report.groups, report.longest, shares)
        batches = training_batches(order, report.steps, settings.batch_size)
        report.weightless_batches += weightless_notes("a step", batches, report.weightless)
        report.expected = ExpectedTokens(
            settings,
            report.steps,
            order=order,
            trained=report.group_tokens,
            held_out=held_out_tokens,
            prompts=prompt_lengths(settings, tokenizer),
            referenced=loss.reference is not None,
            linear=loss.is_linear,
        )
    report_special(report, guarded)
    return report


def report_special(report: DataReport, guarded: GuardedTokenizer) -> None:
    """Add what the good rows have of special tokens and turn markers in their texts."""
    skipped = {bad.source for bad in report.bad_rows}
    report.special = [(source, token) for source, token in guarded.met.items() if source not in skipped]
    report.notes += markers_note([found for found in guarded.markers.items() if found[0] not in skipped])


def prompt_lengths(settings: Settings, tokenizer: Any) -> list[int]:
    """Count the tokens of each prompt of `--sample-prompts`, if it is given.

    Raises:
        DataError: the prompts cannot be read, or the rendering refuses one.
    """
    if settings.sample_prompts is None:
        return []
    prompts = read_prompts(settings.sample_prompts, settings)
    readable = render_prompts(PromptRenderer(settings, tokenizer), prompts, window=None)
    return [len(tokens) for tokens in readable.tokens]


def inspect_trained(
    examples: Examples, loss: Loss, tokenizer: GuardedTokenizer, report: DataReport, shown: int
) -> tuple[dict[bytes, Source], list[Group], dict[str, int]]:
    """Add to a report what is in the rows to train on.

    Returns:
        Where each different group is, by its digest; the first `REMARKED` groups; and how many groups are
        made of the rows of each file.
    """
    seen: dict[bytes, Source] = {}
    first: list[Group] = []
    by_path: Counter[str] = Counter()
    for group, form in checked_groups(examples, loss, tokenizer, report):
        digest = digest_of_group(group, report.untrained)
        if digest in seen:
            report.repeated.append((group.source, seen[digest]))
        seen.setdefault(digest, group.source)
        by_path[group.source.path] += 1
        if len(first) < REMARKED:
            first.append(group)
        if len(report.examples) < shown:
            report.examples.append((group, form))
    return seen, first, by_path


def inspect_held_out(
    held_out: Examples, loss: Loss, tokenizer: GuardedTokenizer, report: DataReport, seen: dict[bytes, Source]
) -> DataReport:
    """Add to a report what is wrong with held-out rows, and which are trained on too; return their own."""
    own = DataReport(
        "", (), frozenset(), report.max_length, report.special_tokens, [], rendering=report.rendering
    )
    for group, _ in checked_groups(held_out, loss, tokenizer, own):
        if (trained := seen.get(digest_of_group(group, report.untrained))) is not None:
            report.leaked.append((group.source, trained))
    report.bad_rows += [bad for bad in own.bad_rows if bad not in report.bad_rows]
    report.broken += own.broken
    report.nothing_held_out |= not own.groups
    return own


def checked_groups(
    examples: Examples, loss: Loss, tokenizer: GuardedTokenizer, report: DataReport
) -> Iterator[tuple[Group, str | None]]:
    """Yield the groups that keep the contract, each with its row's form; count them and note all others."""
    cutting = Renderer(tokenizer, report.max_length, report.rendering)
    whole_renderer = Renderer(tokenizer, None, report.rendering)

    def flatten(value: Any) -> Any:
        return loss.flatten(value, cutting)

    def flatten_whole(value: Any) -> Any:
        return loss.flatten(value, whole_renderer)

    for chunk in tokenizer.encoded(chunks(related(examples, loss)), flatten):
        whole = lengths_by_source(chunk, flatten_whole) if report.max_length else {}
        forms = {example.source: example.form for example in chunk}
        for group in flatten_chunk(tokenizer.reading(chunk), flatten, report.left_out, report.bad_rows):
            try:
                loss.check_batch(Batch([group]))
            except ContractError as error:
                report.broken.append(str(error))
                continue
            if not group.weight:
                report.weightless[report.groups] = group.source
            report.groups += 1
            report.tokens += [length + 1 for length in group.lengths]  # the targets are one token behind
            report.group_tokens.append(sum(group.lengths))
            report.longest.append(max(group.lengths))
            report.trained += [
                0 if index in report.untrained else length
                for index, length in enumerate(group.trained_lengths)
            ]
            if group.source in whole and sum(group.lengths) < whole[group.source]:
                report.cut.append(group.source)
            yield group, forms[group.source]


def lengths_by_source(chunk: Sequence[Example], flatten: Any) -> dict[Source, int]:
    """Return the target tokens of each example where nothing is cut."""
    groups = flatten_chunk(chunk, flatten, [], [])
    return {group.source: sum(group.lengths) for group in groups}


def digest_of_group(group: Group, untrained: Collection[int]) -> bytes:
    """Identify a group by the tokens of its datums that are trained."""
    datums = [arrays for position, arrays in enumerate(group.arrays) if position not in untrained]
    return digest_of((arrays.inputs, arrays.targets) for arrays in datums)
