"""From rows to groups: parsed, flattened, and what does not fit counted and named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_train.batches import Batch, Group
from mint_train.data.readers import Row, read_rows
from mint_train.errors import DataError, DoesNotFit, OptionError, RowError, Source
from mint_train.losses import Loss


@dataclass(frozen=True, slots=True)
class Example:
    """What a plugin made of a row, with where the row came from."""

    value: Any
    source: Source


@dataclass(frozen=True, slots=True)
class Dataset:
    """The groups that a run trains on."""

    groups: list[Group]
    left_out: list[str]
    """Examples that `--max-length` leaves with nothing to train: file, line and reason each."""


def find_data(data: Path | None, loss: Loss) -> Path:
    """Return the file to train on: the user's, or the loss's bundled rows.

    Raises:
        OptionError: there is neither.
    """
    path: Path | None = data or loss.hook.bundled_rows()
    if path is None:
        raise OptionError(f'the loss "{loss.name}" brings no rows of its own; give --data FILE')
    return path


def read_examples(path: Path, loss: Loss) -> list[Example]:
    """Read a file and let the loss parse each row.

    Raises:
        DataError: the file or a row of it is wrong, with file, line and field.
    """
    return [Example(parse(row, loss), row.source) for row in read_rows(path)]


def parse(row: Row, loss: Loss) -> Any:
    """Parse one row; an error gets its file and line."""
    try:
        return loss.parse_row(row.values)
    except RowError as error:
        raise DataError(f"{row.source}: {error}") from error


def build_dataset(examples: Sequence[Example], loss: Loss, tokenizer: Any, max_length: int | None) -> Dataset:
    """Flatten all examples and check every group against the loss's contract.

    Raises:
        OptionError: nothing is left to train.
        DataError: an example does not suit the tokenizer, with file, line and field.
        ContractError: a group breaks the contract, with its file and line.
    """
    groups: list[Group] = []
    left_out: list[str] = []
    values = loss.relate_examples([example.value for example in examples])
    for example, value in zip(examples, values, strict=True):
        try:
            flattened = loss.flatten(value, tokenizer, max_length)
        except DoesNotFit as reason:
            left_out.append(f"{example.source}: {reason}")
            continue
        except RowError as error:
            raise DataError(f"{example.source}: {error}") from error
        groups.append(Group.of(flattened, example.source))
    if not groups:
        raise OptionError(f"nothing is left to train: {left_out[0]}, and so for all rows; raise --max-length")
    loss.check_batch(Batch(groups))
    return Dataset(groups, left_out)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
