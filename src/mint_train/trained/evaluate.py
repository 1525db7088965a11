"""A trained policy on held-out rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mint_train.backends.base import TrainingClient
from mint_train.backends.start import load_start
from mint_train.batches.groups import Groups
from mint_train.errors import MintTrainError, OptionError, UserError
from mint_train.groups.build import build_dataset
from mint_train.groups.examples import Examples
from mint_train.groups.held_out import open_held_out
from mint_train.groups.located_reference import key_of, located
from mint_train.groups.overlap import overlap_note
from mint_train.groups.reference import INITIAL, KeptReference, Reference, open_reference, store_of
from mint_train.groups.vocabulary_needs import refuse_unmet_vocabulary
from mint_train.losses.loss import Loss
from mint_train.losses.recorded import refuse_other_defaults, tell_changed_plugins
from mint_train.observers.terminal import echo_problem
from mint_train.run_folder.base_model import refuse_changed_reference
from mint_train.run_folder.files import write_rows
from mint_train.run_folder.parts import EVALUATION_ROWS, REFERENCE_FOLDER
from mint_train.run_folder.records import Evaluation
from mint_train.run_folder.token_counts import Sent, TokenCounts
from mint_train.settings.recorded import with_given
from mint_train.trained.find import Trained
from mint_train.trained.overlap import count_trained_on
from mint_train.training.evaluation import Evaluator

ROW_KEYS = {"source", "metrics"}
"""What each line of a file of rows holds."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The figures of one held-out set."""

    loss: Loss
    """The loss that evaluated the policy."""
    source: str
    """The file of the rows."""
    evaluation: Evaluation
    rows: Path | None
    """The file with a line for each row; None if it was not kept."""


def evaluate_trained(
    trained: Trained, data: Any = None, output: Path | None = None, counts: TokenCounts | None = None
) -> Iterator[Evaluated]:
    """Evaluate the policy of a run or a checkpoint, one held-out set after another.

    Args:
        trained: what is evaluated.
        data: held-out rows, or named sets of them, as `eval_data` takes them; by default those of the run.
        output: JSON Lines file for the rows, which may replace one of an earlier evaluation; by default one
            in the run folder.
        counts: counts the tokens that are sent.

    Raises:
        MintTrainError: the run, the data or a setting is wrong, or the backend fails.
    """
    if output is not None:
        refuse_other_rows(output)
    counts = counts or TokenCounts()
    name, checkpoint = trained.name, trained.checkpoint
    if checkpoint.state == checkpoint.sampler:
        raise UserError(f"{name} holds weights for sampling only; evaluate a saved state (.../weights/...)")
    loss = trained.open_loss()
    compare_with_recorded(trained, loss)
    with tempfile.TemporaryDirectory() as scratch:
        folder = trained.folder.path if trained.folder else Path(scratch)
        held_out = held_out_of(trained, loss, data)
        if output is not None and len(held_out) > 1:
            raise OptionError(
                f"--rows {output}: there are {len(held_out)} held-out sets; name one with --data"
            )
        refuse_unmet_vocabulary(loss, trained.backend)
        client = trained.backend.open_client(folder, echo_problem, trains=False)
        try:
            sets = evaluators_of(trained, loss, held_out, client, folder, counts.counting("reference"))
            if loss.vocabulary:  # before the weights are loaded, the adapter is the reference
                client.give_vocabulary(loss.vocabulary)
            client.load_state_with_optimizer(checkpoint.state).result()
            for source, evaluator in sets:
                sent = counts.counting("evaluation")
                found = evaluator.evaluate(client, checkpoint.step, checkpoint.loss_state, sent)
                yield from with_rows(trained, Evaluated(loss, source, found, None), output)
        finally:
            client.close()


def compare_with_recorded(trained: Trained, loss: Loss) -> None:
    """Refuse a plugin that has other defaults than when the run began, and name one of another version.

    Raises:
        OptionError: naming the option.
    """
    recorded = trained.folder.read_description() if trained.folder else None
    if recorded is not None and loss.name == recorded.loss:
        refuse_other_defaults(recorded, loss, trained.settings.options)
        tell_changed_plugins(recorded, loss, echo_problem)


def refuse_other_rows(output: Path) -> None:
    """Refuse to replace a file that no evaluation wrote, such as the data itself.

    Raises:
        OptionError: there is one.
    """
    try:
        with output.open("rb") as file:
            first = file.readline()
        written = not first or json.loads(first).keys() == ROW_KEYS
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, AttributeError, RecursionError):
        written = False
    if not written:
        raise OptionError(
            f"--rows {output} exists, and no evaluation wrote it; name another file. "
            "--data gives held-out rows"
        )


def with_rows(trained: Trained, found: Evaluated, output: Path | None) -> Iterator[Evaluated]:
    """Yield the figures of a held-out set once their rows are written, or without them before that fails.

    Raises:
        MintTrainError: the file cannot be written.
    """
    try:
        rows = keep_rows(trained, found.source, found.evaluation, output)
    except MintTrainError:
        yield found  # a full disk costs the file, not the figures
        raise
    yield replace(found, rows=rows)


def keep_rows(trained: Trained, source: str, evaluation: Evaluation, output: Path | None) -> Path | None:
    """Write a line for each held-out row, by default into the run's folder, and return the file.

    Raises:
        MintTrainError: the file cannot be written.
    """
    if output is None and trained.folder is not None:
        stem = evaluation.held_out or Path(source).stem
        output = trained.folder.path / EVALUATION_ROWS / f"{stem}-step-{evaluation.step:06d}.jsonl"
    if output is not None:
        write_rows(output, evaluation.rows)
    return output


def held_out_of(trained: Trained, loss: Loss, data: Any) -> dict[str, Examples]:
    """Return held-out sets by name, by default those of the run.

    Raises:
        OptionError: nothing was held out.
    """
    settings = trained.settings
    if data is not None:
        settings = with_given(settings, {"eval_data": data, "eval_fraction": None})
    held_out = open_held_out(settings, loss)
    if not held_out:
        raise OptionError(f"{trained.name} was trained without held-out rows; give --data")
    return held_out


def evaluators_of(
    trained: Trained,
    loss: Loss,
    held_out: Mapping[str, Examples],
    client: TrainingClient,
    folder: Path,
    sent: Sent,
) -> list[tuple[str, Evaluator]]:
    """Return each held-out file with its evaluator, whose groups have their reference logprobs.

    Args:
        trained: what is evaluated.
        loss: the loss that evaluates it.
        held_out: the sets by name.
        client: whose adapter is fresh.
        folder: where the reference keeps its files.
        sent: is told the tokens of each request for the reference.
    """
    settings = trained.settings
    if trained.folder is not None:
        refuse_changed_reference(trained.folder.read_description(), loss.reference)
    if trained.start is not None and loss.reference == INITIAL:
        load_start(client, trained.start)
    tokenizer, sets = client.get_tokenizer(), list[tuple[str, Evaluator]]()
    name = None if loss.reference is None else located(loss.reference, trained.backend)
    with open_reference(trained.backend, name, client, folder, echo_problem) as reference_client:
        store = partial(store_of, reference_client, settings, str(name), trained.start)
        kept = KeptReference(folder / REFERENCE_FOLDER, store)
        key = key_of(str(name), trained.backend)
        reference = Reference(key, reference_client, kept, echo_problem, sent, not trained.backend.remote)
        for held_out_name, examples in held_out.items():
            dataset = build_dataset(examples, loss, tokenizer, settings)
            count = count_trained_on(trained, loss, tokenizer, examples, dataset)
            if note := overlap_note(count, len(dataset.groups), held_out_name):
                echo_problem(note)
            groups: Groups = dataset.groups
            if loss.reference is not None:  # asked for before a checkpoint replaces the untrained adapter
                groups = reference.all_of(groups)
            sets.append((str(examples.data), Evaluator(loss, groups, settings.batch_size, held_out_name)))
    return sets
