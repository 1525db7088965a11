"""A file of reference logprobs: those of a chunk of groups, with a checksum, written whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mint_train.errors import BackendError
from mint_train.groups.arrow_arrays import list_array
from mint_train.groups.token_file import ListColumn
from mint_train.run_folder.files import whole_file

CHECKSUM_BYTES = 32
"""Behind the Arrow file stands its SHA-256."""
SCHEMA = pa.schema({"logprobs": pa.list_(pa.float32())})


def write_file(path: Path, logprobs: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
    """Write the logprobs of a chunk of groups, whole or not at all.

    Args:
        path: the file.
        logprobs: per datum, float32 `[target tokens]`.
        sizes: per group, its datums.

    Raises:
        MintTrainError: the disk refuses.
    """
    path.parent.mkdir(exist_ok=True)
    values = list_array([logprob.numpy() for logprob in logprobs], pa.float32())
    schema = SCHEMA.with_metadata({"sizes": ",".join(map(str, sizes))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([values], schema=schema))
    content = sink.getvalue()
    with whole_file(path) as beside, beside.open("wb") as file:
        file.write(content)
        file.write(hashlib.sha256(content).digest())


def is_whole(path: Path, warn: Callable[[str], None]) -> bool:
    """Return whether a file of logprobs is as it was written; say so where it is broken."""
    if not path.exists():
        return False
    content = memoryview(path.read_bytes())
    if hashlib.sha256(content[:-CHECKSUM_BYTES]).digest() == content[-CHECKSUM_BYTES:]:
        return True
    warn(f"The reference logprobs in {path} were broken, and are replaced.")
    return False


def read_file(path: Path) -> tuple[ListColumn, Sequence[int]]:
    """Open the logprobs of a chunk of groups: by datum, and where in them each group begins and ends.

    Raises:
        BackendError: the file is broken.
    """
    try:
        content = pa.memory_map(str(path)).read_buffer()
        file = pa.ipc.open_file(pa.BufferReader(content.slice(0, len(content) - CHECKSUM_BYTES)))
        sizes = [int(size) for size in file.schema.metadata[b"sizes"].split(b",")]
        return ListColumn(file.get_batch(0).column(0)), np.cumsum([0, *sizes]).tolist()
    except (OSError, ValueError) as error:  # of which ArrowInvalid is one
        raise BackendError(f"{path} is broken ({error}); delete it to compute it again") from error
