"""From a run's settings to the groups that it trains on, with their reference, and what the user is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mint_train.backends.base import TrainingClient
from mint_train.batches.batch import Batch
from mint_train.batches.groups import ListedGroups
from mint_train.groups.build import Dataset, build_dataset
from mint_train.groups.examples import Examples, read_examples
from mint_train.groups.held_out import split_examples
from mint_train.groups.order import Order
from mint_train.groups.reference import INITIAL, REFERENCE_FOLDER, open_reference, with_reference
from mint_train.groups.step_count import count_steps, groups_per_step
from mint_train.losses.loss import Loss
from mint_train.observers.registry import Observers
from mint_train.rendering.special_tokens import TAKEN
from mint_train.rows.readers import DataSource
from mint_train.run_folder.folder import SKIPPED_FILE, RunFolder
from mint_train.settings.model import Settings

SHOWN_LEFT_OUT = 5


def find_examples(settings: Settings, loss: Loss, data: DataSource) -> tuple[Examples, Examples | None]:
    """Read the rows to train on and those held out, as the settings say."""
    examples = read_examples(data, loss, settings.columns, settings.on_bad_row)
    return split_examples(settings, loss, examples)


def prepare(
    settings: Settings,
    loss: Loss,
    observers: Observers,
    examples: Examples,
    held_out: Examples | None,
    client: TrainingClient,
    folder: RunFolder,
    backend: str,
) -> tuple[Dataset, Dataset]:
    """Flatten and check the data, tell the user about it, and add the reference where the loss needs one."""
    observers.notice(f"{examples.describe()}.")
    tokenizer = client.get_tokenizer()
    dataset, held_out_set = (
        build_dataset(part, loss, tokenizer, settings.max_length, settings.special_tokens)
        if part
        else Dataset(ListedGroups(), [])
        for part in (examples, held_out)
    )
    reference = loss.reference
    if reference is not None:
        judge = client if reference == INITIAL else open_reference(settings, backend, reference, folder.path)
        kept = folder.path / REFERENCE_FOLDER
        dataset, held_out_set = (
            replace(part, groups=with_reference(part.groups, judge, reference, kept))
            for part in (dataset, held_out_set)
        )
    folder.write_skipped([bad.describe() for bad in dataset.bad_rows])
    describe_dataset(dataset, loss, settings, observers)
    if held_out_set.groups:
        held = f"{len(held_out_set.groups)} groups held out{left_out_note(held_out_set)}."
        observers.notice(held)
    return dataset, held_out_set


def left_out_note(dataset: Dataset) -> str:
    """Say how many held-out examples do not fit."""
    return f", and {len(dataset.left_out)} left out, listed in run.json" if dataset.left_out else ""


def describe_dataset(dataset: Dataset, loss: Loss, settings: Settings, observers: Observers) -> None:
    """Tell the user what of the data is trained, what is left out, and what the loss remarks."""
    steps = count_steps(settings, len(dataset.groups))
    lines = [
        f"{len(dataset.groups)} groups, {steps} steps of at most {groups_per_step(settings)}.",
        *some(f"Skipped, as they are no rows for {loss.name}", dataset.bad_rows, SKIPPED_FILE),
        *some("Left out, as --max-length leaves nothing to train", dataset.left_out, "run.json"),
        *some(
            f"Text with a special token, taken {TAKEN.get(settings.special_tokens)} (--special-tokens)",
            [f"{source}: {token}" for source, token in dataset.special],
            "run.json",
        ),
    ]
    first = order_of(settings, dataset).step(1)
    lines += loss.data_notes(Batch(dataset.groups.take(first)))
    for line in lines:
        observers.notice(line)


def order_of(settings: Settings, dataset: Dataset) -> Order:
    """Return which groups make up which step."""
    lengths = dataset.lengths if settings.group_by_length else None
    return Order(len(dataset.groups), groups_per_step(settings), settings.seed, lengths)


def some(title: str, lines: Sequence[object], listed: str) -> list[str]:
    """Say how many there are, the first few, and where the others are listed; nothing of none."""
    if not lines:
        return []
    more = len(lines) - SHOWN_LEFT_OUT
    return [
        f"{title}: {len(lines)}",
        *(f"  {line}" for line in lines[:SHOWN_LEFT_OUT]),
        *([f"  ... and {more} more, listed in {listed}"] if more > 0 else []),
    ]
