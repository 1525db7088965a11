"""Held-out data: the rows of a file of their own, or a share of the training data."""

from __future__ import annotations

import random

from mint_train.errors import OptionError
from mint_train.groups.examples import Examples, find_data, read_examples
from mint_train.losses.loss import Loss
from mint_train.rows.readers import DataSource, open_data
from mint_train.settings.model import Settings

SPLIT_SEED = "held out"


def find_held_out(settings: Settings) -> DataSource | None:
    """Open the file of held-out rows; None where the settings do not name one.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    return None if settings.eval_data is None else open_data(settings.eval_data)


def split_examples(
    settings: Settings, loss: Loss, examples: Examples, eval_data: DataSource | None
) -> tuple[Examples, Examples | None]:
    """Return the examples to train on, and those held out; none where no evaluation is asked for.

    A share is taken by the rows' places alone, so that every loss, seed and resume holds out the same rows.

    Raises:
        OptionError: both kinds are asked for, or evaluations without any; the share leaves nothing to train
            on or to evaluate on.
        DataError: the held-out file or a row of it is wrong.
    """
    if settings.eval_data is not None and settings.eval_fraction is not None:
        raise OptionError("--eval-data and --eval-fraction are both given; give one of them")
    if eval_data is not None:
        return examples, read_examples(eval_data, loss, settings.columns, settings.on_bad_row)
    if settings.eval_fraction is None:
        if settings.eval_every is not None:
            raise OptionError("--eval-every needs held-out rows: give --eval-data or --eval-fraction")
        return examples, None
    count = round(settings.eval_fraction * len(examples))
    if not 0 < count < len(examples):
        raise OptionError(
            f"--eval-fraction {settings.eval_fraction}: of {len(examples)} rows it holds out {count}; "
            "choose a share that leaves some on both sides"
        )
    places = list(range(len(examples)))
    random.Random(SPLIT_SEED).shuffle(places)  # noqa: S311 - an order, not a secret
    return examples.only(frozenset(places[count:])), examples.only(frozenset(places[:count]))


def open_held_out(settings: Settings, loss: Loss) -> Examples | None:
    """Return the held-out examples alone, or None where the settings name none.

    Raises:
        OptionError: as `split_examples` does.
        DataError: the rows are wrong.
    """
    eval_data = find_held_out(settings)
    if eval_data is not None and settings.eval_fraction is None:
        return read_examples(eval_data, loss, settings.columns, settings.on_bad_row)
    if settings.eval_fraction is None:
        return None
    rows = read_examples(find_data(settings.data, loss), loss, settings.columns, settings.on_bad_row)
    return split_examples(settings, loss, rows, eval_data)[1]
