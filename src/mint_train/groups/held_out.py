"""Held-out data: the rows of a file of their own, or a share of the training data."""

from __future__ import annotations

import hashlib
import random

from mint_train.errors import OptionError, counted
from mint_train.groups.examples import Examples, find_data, read_examples
from mint_train.losses.loss import Loss
from mint_train.rows.conversations import texts_of
from mint_train.rows.readers import DataSource, open_data
from mint_train.settings.model import Settings

SPLIT_SEED = "held out"


def find_held_out(settings: Settings) -> DataSource | None:
    """Open the file of held-out rows; None where the settings do not name one.

    Raises:
        DataError: the file is missing or unreadable.
    """
    return None if settings.eval_data is None else open_data(settings.eval_data, settings.max_row_bytes)


def split_examples(
    settings: Settings, loss: Loss, examples: Examples, eval_data: DataSource | None
) -> tuple[Examples, Examples | None]:
    """Return the examples to train on, and those held out; none where no evaluation is asked for.

    A share is the same for every loss, seed and resume, and all rows of one prompt are on the same side.

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
    positions = hold_out(examples, settings.eval_fraction)
    if not 0 < len(positions) < len(examples):
        raise OptionError(
            f"--eval-fraction {settings.eval_fraction}: of {counted(len(examples), 'row')} it holds out "
            f"{len(positions)} (rows of one prompt stay together); leave some on both sides"
        )
    return examples.only(frozenset(range(len(examples))) - positions), examples.only(positions)


def hold_out(examples: Examples, share: float) -> frozenset[int]:
    """Choose the examples to hold out: at least a share of them, and all or none of those of one prompt.

    Where every prompt comes once, the choice hangs on the number of examples alone.
    """
    by_prompt: dict[bytes, list[int]] = {}
    for position, prompt in enumerate(examples.prompts()):
        by_prompt.setdefault(digest_of(prompt, position), []).append(position)
    drawn = list(by_prompt.values())
    random.Random(SPLIT_SEED).shuffle(drawn)  # noqa: S311 - an order, not a secret
    wanted = round(share * len(examples))
    held: list[int] = []
    for positions in drawn:
        if len(held) >= wanted:
            break
        held += positions
    return frozenset(held)


def digest_of(prompt: object, position: int) -> bytes:
    """Identify a prompt; an example without one has one of its own."""
    said = repr(position) if prompt is None else "\n".join(texts_of(as_prompt_value(prompt)))
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def as_prompt_value(prompt: object) -> object:
    """Return what identifies a prompt: its texts, or its token ids."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return repr(prompt)
    return prompt


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
    rows = read_examples(
        find_data(settings.data, loss, settings.max_row_bytes), loss, settings.columns, settings.on_bad_row
    )
    return split_examples(settings, loss, rows, eval_data)[1]
