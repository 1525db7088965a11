"""`mint-train eval`: a trained policy on held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mint_train.errors import counted
from mint_train.observers.console import batch_means_note, evaluation_line
from mint_train.observers.terminal import say
from mint_train.run_folder.metric import screen_format, shown_formats
from mint_train.run_folder.token_counts import TokenCounts
from mint_train.settings.prices import describe_tokens
from mint_train.trained.evaluate import Evaluated, evaluate_trained
from mint_train.trained.find import Trained


def evaluate_and_print(trained: Trained, data: Sequence[str], output: Path | None) -> None:
    """Evaluate the policy of a run or a checkpoint, and print each held-out set's figures as they come.

    Args:
        trained: what is evaluated.
        data: held-out rows, or named sets of them; by default those of the run.
        output: JSON Lines file for the rows; by default one in the run folder.

    Raises:
        MintTrainError: the run, the data or a setting is wrong, or the backend fails.
    """
    counts = TokenCounts()
    for found in evaluate_trained(trained, list(data) or None, output, counts):
        print_evaluation(trained, found)
    say(f"Tokens: {describe_tokens(counts.by_kind)}.")


def print_evaluation(trained: Trained, found: Evaluated) -> None:
    """Print the figures of one held-out set."""
    evaluation = found.evaluation
    after = f" after step {evaluation.step}" if trained.folder else ""
    named = f"{evaluation.held_out} ({found.source})" if evaluation.held_out else found.source
    say(f"Eval of {trained.name}{after} on {named}, {counted(evaluation.groups, 'group')}:")
    formats = {metric: screen_format(form) for metric, form in shown_formats(found.loss.metrics).items()}
    say(evaluation_line(evaluation, formats))
    if evaluation.batch_means:
        say(batch_means_note(evaluation))
    say(f"Rows: {found.rows or 'not kept; --rows FILE writes them'}")
