"""Reference logprobs: computed once per example before the first step, kept on disk, read group by group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mint_train.backends.base import Backend, TrainingClient
from mint_train.backends.forward_logprobs import forward_logprobs
from mint_train.batches.groups import Group, Groups
from mint_train.errors import BackendError
from mint_train.groups.arrow_arrays import list_array
from mint_train.groups.token_file import ListColumn, joined
from mint_train.run_folder.files import whole_file
from mint_train.run_folder.records import ON_THE_SERVICE, STATE_FILE
from mint_train.run_folder.token_counts import Sent, uncounted

INITIAL = "initial"
"""The reference that is the policy before its first step: a fresh adapter changes nothing."""
REFERENCE_FOLDER = "reference"
"""Where a run keeps its reference logprobs, those of held-out rows too."""
CHUNK = 256
"""Groups whose logprobs are one file, which is the most that a crash loses of what has come back."""
OPEN_FILES = 128
CHECKSUM_BYTES = 32
"""Behind the Arrow file stands its SHA-256."""
SCHEMA = pa.schema({"logprobs": pa.list_(pa.float32())})


class ReferencedGroups(Groups):
    """Groups with their reference logprobs, read from the disk too."""

    def __init__(self, groups: Groups, files: Sequence[Path]) -> None:
        self._groups = groups
        self._files = files
        self._open = lru_cache(OPEN_FILES)(read_file)

    def __len__(self) -> int:
        return len(self._groups)

    def take(self, indices: Sequence[int]) -> list[Group]:
        """Read groups with their reference logprobs, in the order of their indices."""
        groups = self._groups.take(indices)
        arrays = joined([one for index in indices for one in self._logprobs(index)], np.float32)
        logprobs = map(torch.from_numpy, arrays)
        return [
            replace(group, reference_logprobs=tuple(islice(logprobs, len(group.datums)))) for group in groups
        ]

    def _logprobs(self, index: int) -> list[np.ndarray]:
        """Find the logprobs of a group's datums, as they lie in their file."""
        number, row = divmod(index, CHUNK)
        logprobs, starts = self._open(self._files[number])
        return [logprobs.view(datum) for datum in range(starts[row], starts[row + 1])]


def with_reference(
    groups: Groups,
    client: TrainingClient,
    reference: str,
    folder: Path,
    warn: Callable[[str], None] = lambda _: None,
    sent: Sent = uncounted,
) -> ReferencedGroups:
    """Give each group its reference logprobs: those kept in a folder, and forwards for the rest.

    Args:
        groups: the groups of the run.
        client: a training client whose policy is the reference: with "initial", one before its first step.
        reference: the reference's name; logprobs are found again under it and the tokens of their groups.
        folder: a file per chunk of groups is read where it exists, and written whole where it does not.
        warn: tells the user of a file that is broken and made anew.
        sent: is told the tokens of each request.

    Raises:
        BackendError: a forward failed.
        MintTrainError: the disk refuses; what was kept before stays.
    """
    starts = range(0, len(groups), CHUNK)
    files = [folder / f"{digest(reference, groups[start : start + CHUNK])}.arrow" for start in starts]
    missing = {path: start for path, start in zip(files, starts, strict=True) if not is_whole(path, warn)}

    def missing_groups() -> Iterator[Group]:
        for start in missing.values():
            yield from groups[start : start + CHUNK]

    logprobs = forward_logprobs((datum for group in missing_groups() for datum in group.datums), client, sent)
    for path, start in missing.items():
        sizes = [len(group.datums) for group in groups[start : start + CHUNK]]
        write_file(path, list(islice(logprobs, sum(sizes))), sizes)
    return ReferencedGroups(groups, files)


def open_reference(
    backend: Backend, reference: str, folder: Path, warn: Callable[[str], None]
) -> TrainingClient:
    """Open a client whose policy is a reference given by name: another base model, or a saved state.

    Raises:
        UserError: the service or this machine does not have it.
        BackendError: it cannot be loaded.
    """
    if reference.startswith(ON_THE_SERVICE) or (Path(reference) / STATE_FILE).exists():
        client = backend.open_client(folder, warn, trains=False)
        client.load_state_with_optimizer(reference).result()
        return client
    return backend.open_client(folder, warn, model=reference, trains=False)


def digest(reference: str, groups: Sequence[Group]) -> str:
    """Identify groups under a reference by their tokens."""
    found = hashlib.sha256(reference.encode())
    for group in groups:
        found.update(np.array([len(group.lengths), *group.lengths]).tobytes())
        for arrays in group.arrays:
            found.update(arrays.inputs.tobytes())
            found.update(arrays.targets.tobytes())
    return found.hexdigest()[:32]


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
    warn(f"The reference logprobs in {path} were broken; they are computed again.")
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
