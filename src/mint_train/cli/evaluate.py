"""`mint-train eval`: a trained policy on held-out data."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mint_train.backends.base import TrainingClient
from mint_train.backends.start import load_start
from mint_train.batches.groups import Groups
from mint_train.cli.trained import Trained
from mint_train.errors import OptionError, UserError, counted
from mint_train.groups.build import build_dataset
from mint_train.groups.held_out import open_held_out
from mint_train.groups.reference import INITIAL, REFERENCE_FOLDER, open_reference, with_reference
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.observers.console import batch_means_note, evaluation_line
from mint_train.observers.terminal import echo_problem, say
from mint_train.rendering.options import Rendering
from mint_train.run_folder.files import write_rows
from mint_train.run_folder.folder import EVALUATION_ROWS
from mint_train.run_folder.metric import screen_format, shown_formats
from mint_train.run_folder.records import Evaluation
from mint_train.training.evaluation import Evaluator


def evaluate_and_print(trained: Trained, data: str | None, output: Path | None) -> Evaluation:
    """Evaluate the policy of a run or a checkpoint, print the result, and write a line for each row.

    Args:
        trained: what is evaluated.
        data: held-out rows; by default those of the run.
        output: JSON Lines file for the rows; by default one in the run folder.

    Raises:
        MintTrainError: the run, the data or a setting is wrong, or the backend fails.
    """
    name = trained.name
    if trained.checkpoint.state == trained.checkpoint.sampler:
        raise UserError(f"{name} holds weights for sampling only; evaluate a saved state (.../weights/...)")
    loss = open_loss(trained.settings.loss, trained.settings.options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = trained.folder.path if trained.folder else Path(scratch)
        source, groups, client = open_on(trained, loss, data, folder)
        client.load_state_with_optimizer(trained.checkpoint.state).result()
        evaluator = Evaluator(loss, groups, trained.settings.batch_size)
        evaluation = evaluator.evaluate(client, trained.checkpoint.step, trained.checkpoint.loss_state)
        client.close()
    after = f" after step {evaluation.step}" if trained.folder else ""
    formats = {metric: screen_format(form) for metric, form in shown_formats(loss.metrics).items()}
    say(f"Eval of {name}{after} on {source}, {counted(evaluation.groups, 'group')}:")
    say(evaluation_line(evaluation, formats))
    if evaluation.batch_means:
        say(batch_means_note(evaluation))
    if output is None and trained.folder is not None:
        rows = f"{Path(source).stem}-step-{evaluation.step:06d}.jsonl"
        output = trained.folder.path / EVALUATION_ROWS / rows
    if output is not None:
        write_rows(output, evaluation.rows)
    say(f"Rows: {output or 'not kept; --rows FILE writes them'}")
    return evaluation


def open_on(
    trained: Trained, loss: Loss, data: str | None, folder: Path
) -> tuple[str, Groups, TrainingClient]:
    """Return the held-out file, its groups with their reference logprobs, and an untrained client.

    Args:
        trained: what is evaluated.
        loss: the loss that evaluates it.
        data: held-out rows; by default those of the run.
        folder: where the client and the reference keep their files.

    Raises:
        OptionError: nothing was held out.
    """
    settings = trained.settings
    if data is not None:
        settings = settings.model_copy(update={"eval_data": data, "eval_fraction": None})
    held_out = open_held_out(settings, loss)
    if held_out is None:
        raise OptionError(f"{trained.name} was trained without held-out rows; give --data")
    client = trained.backend.open_client(folder, echo_problem, trains=False)
    if trained.start is not None and loss.reference == INITIAL:
        load_start(client, trained.start)
    dataset = build_dataset(
        held_out,
        loss,
        client.get_tokenizer(),
        settings.max_length,
        settings.special_tokens,
        Rendering.of(settings),
    )
    groups: Groups = dataset.groups
    reference = loss.reference
    if reference is not None:
        # the adapter has not been trained, so "initial" is the policy of the first step
        initial = reference == INITIAL
        judge = client if initial else open_reference(trained.backend, reference, folder, echo_problem)
        groups = with_reference(groups, judge, reference, folder / REFERENCE_FOLDER, echo_problem)
    return str(held_out.data), groups, client
