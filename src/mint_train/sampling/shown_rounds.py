"""Rounds that show how they get on."""

from __future__ import annotations

from functools import partial

from mint_train.observers.progress import shown_progress, silent_progress
from mint_train.observers.terminal import say
from mint_train.run_folder.records import RunResult
from mint_train.sampling.rounds import Rounds


def train_shown(rounds: Rounds) -> RunResult:
    """Train rounds, and show how they get on, unless their setting `progress` is "quiet".

    Raises:
        MintTrainError: a round failed.
    """
    progress = rounds.given.get("progress")
    if progress == "quiet":
        return rounds.train(silent_progress, lambda _: None)
    # standard output may be lines of JSON
    return rounds.train(shown_progress, partial(say, err=progress == "json"))
