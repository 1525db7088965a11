"""Held-out data: sets of rows in files of their own, or a share of the training data."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

from mint_train.errors import OptionError, counted
from mint_train.groups.examples import Examples, read_examples, read_training_rows
from mint_train.groups.reading_cache import choice_file, keep, read_kept
from mint_train.losses.loss import Loss
from mint_train.rows.conversations import texts_of
from mint_train.rows.readers import DataSource, open_item
from mint_train.settings.model import Settings

SPLIT_SEED = "held out"


def find_held_out(settings: Settings) -> dict[str, DataSource]:
    """Open the files of held-out rows, by the name of their set; none where the settings name none.

    Raises:
        DataError: the file is missing or unreadable.
    """
    return {name: open_item(item, settings.max_row_bytes) for name, item in settings.eval_data.items()}


def split_examples(
    settings: Settings, loss: Loss, examples: Examples, eval_data: Mapping[str, DataSource]
) -> tuple[Examples, dict[str, Examples]]:
    """Return the examples to train on, and those held out, by the name of their set.

    A share is the same for every loss, seed and resume, and all rows of one prompt are on the same side.

    Raises:
        OptionError: both kinds are asked for, or evaluations without any; the share leaves nothing to train
            on or to evaluate on.
        DataError: a held-out file or a row of it is wrong.
    """
    if settings.eval_data and settings.eval_fraction is not None:
        raise OptionError("--eval-data and --eval-fraction are both given; give one of them")
    if eval_data:
        return examples, read_sets(settings, loss, eval_data)
    if settings.eval_fraction is None:
        if settings.eval_every is not None:
            raise OptionError("--eval-every needs held-out rows: give --eval-data or --eval-fraction")
        return examples, {}
    positions = held_out_positions(examples, settings.eval_fraction)
    if not 0 < len(positions) < len(examples):
        raise OptionError(
            f"--eval-fraction {settings.eval_fraction}: of {counted(len(examples), 'row')} it holds out "
            f"{len(positions)} (rows of one prompt stay together); leave some on both sides"
        )
    trained = examples.only(frozenset(range(len(examples))) - positions)
    return trained, {"": examples.only(positions)}


def read_sets(settings: Settings, loss: Loss, eval_data: Mapping[str, DataSource]) -> dict[str, Examples]:
    """Read all held-out sets.

    Raises:
        DataError: a row is wrong.
    """
    return {
        name: read_examples(source, loss, settings.columns, settings.on_bad_row)
        for name, source in eval_data.items()
    }


def held_out_positions(examples: Examples, share: float) -> frozenset[int]:
    """Return which examples are held out: what `hold_out` chose before on this data, if that is kept."""
    readings = [examples.reading_file(part) for part in examples.parts]
    if None in readings:
        return hold_out(examples, share)
    file = choice_file([path for path in readings if path is not None], share)
    kept = read_kept(file)
    if kept is not None:
        return frozenset(kept["positions"])
    positions = hold_out(examples, share)
    examples.data.check_unchanged(content=True)
    keep(file, {"positions": sorted(positions)})
    return positions


def hold_out(examples: Examples, share: float) -> frozenset[int]:
    """Choose the examples to hold out: at least a share of them, and all or none of those of one prompt.

    Where every prompt comes once, the choice hangs on the number of examples alone.
    """
    by_prompt: dict[bytes, list[int]] = {}
    for position, prompt in enumerate(examples.prompts()):
        by_prompt.setdefault(digest_of_prompt(prompt, position), []).append(position)
    drawn = list(by_prompt.values())
    random.Random(SPLIT_SEED).shuffle(drawn)  # noqa: S311 - an order, not a secret
    wanted = round(share * len(examples))
    held: list[int] = []
    for positions in drawn:
        if len(held) >= wanted:
            break
        held += positions
    return frozenset(held)


def digest_of_prompt(prompt: object, position: int) -> bytes:
    """Identify a prompt; an example without one has one of its own."""
    said = repr(position) if prompt is None else "\n".join(texts_of(as_prompt_value(prompt)))
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def as_prompt_value(prompt: object) -> object:
    """Return what identifies a prompt: its texts, or its token ids."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return repr(prompt)
    return prompt


def held_out_or_trained(settings: Settings, loss: Loss) -> Examples:
    """Return the examples of the first held-out set, or those to train on where nothing is held out.

    Raises:
        MintTrainError: the rows are wrong.
    """
    held_out = open_held_out(settings, loss)
    return next(iter(held_out.values())) if held_out else read_training_rows(settings, loss)


def open_held_out(settings: Settings, loss: Loss) -> dict[str, Examples]:
    """Return the held-out examples alone, by the name of their set; none where the settings name none.

    Raises:
        OptionError: as `split_examples` does.
        DataError: the rows are wrong.
    """
    eval_data = find_held_out(settings)
    if settings.eval_fraction is None:
        return read_sets(settings, loss, eval_data)
    return split_examples(settings, loss, read_training_rows(settings, loss), eval_data)[1]
