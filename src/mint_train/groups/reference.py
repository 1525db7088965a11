"""Reference logprobs: computed once per example when a step needs them, kept on disk, read group by group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from mint_train.backends.base import Backend, Forwards, TrainingClient
from mint_train.backends.forward_logprobs import LOGPROBS, forward_parts, requests_of
from mint_train.backends.start import adapter_sha256
from mint_train.batches.groups import Group, Groups
from mint_train.errors import OptionError, UserError
from mint_train.groups.reference_blocks import BLOCK, blocks_of, groups_of
from mint_train.groups.reference_file import is_whole, read_file, write_file
from mint_train.groups.reference_store import ReferenceStore
from mint_train.groups.token_file import joined
from mint_train.run_folder.description import StartDescription
from mint_train.run_folder.records import ON_THE_SERVICE, STATE_FILE
from mint_train.run_folder.token_counts import Sent, uncounted
from mint_train.settings.model import Settings

INITIAL = "initial"
"""The reference that is the policy before its first step: a fresh adapter changes nothing."""
OPEN_FILES = 128


@dataclass(frozen=True)
class KeptReference:
    """Where the logprobs of a run's reference are kept."""

    folder: Path
    """The run's own."""
    open_store: Callable[[], ReferenceStore] = ReferenceStore
    """Opens the one that runs share, if logprobs are missing in the folder."""


@dataclass(frozen=True)
class Reference:
    """The policy of a reference, and where its logprobs are kept under which key."""

    key: str
    """Logprobs are found again under it and the tokens of their groups."""
    policy: Forwards
    kept: KeptReference
    warn: Callable[[str], None] = lambda _: None
    """Tells the user of a file that is broken and made anew."""
    sent: Sent = uncounted
    """Is told the tokens of each request."""
    by_block: bool = True
    """Whether a block is a request of its own: what shares one may change the last bits of a logprob."""

    @cached_property
    def store(self) -> ReferenceStore:
        """The store that runs share, opened once."""
        return self.kept.open_store()

    def of(self, groups: Groups) -> ReferencedGroups:
        """Give groups their logprobs of the reference, each when it is needed."""
        return ReferencedGroups(groups, ReferenceLogprobs(self, groups))

    def all_of(self, groups: Groups) -> ReferencedGroups:
        """Give groups their logprobs of the reference, all of them now."""
        referenced = self.of(groups)
        referenced.require_all()
        return referenced


class ReferenceLogprobs:
    """The files of some groups' logprobs, a file for each block."""

    def __init__(self, reference: Reference, groups: Groups) -> None:
        self._reference, self._groups = reference, groups
        self._there: set[int] = set()
        self._paths: dict[int, Path] = {}

    def path(self, block: int) -> Path:
        """Return the file of a block."""
        if block not in self._paths:
            name = digest(self._reference.key, self._groups_of(block))
            self._paths[block] = self._reference.kept.folder / f"{name}.arrow"
        return self._paths[block]

    def missing(self, blocks: Iterable[int]) -> list[int]:
        """Take the files of blocks from where they are kept, and return the blocks that are kept nowhere."""
        warn = self._reference.warn
        wanted = [block for block in blocks if block not in self._there]
        missing = [block for block in wanted if not is_whole(self.path(block), warn)]
        if missing:
            store = self._reference.store
            missing = [block for block in missing if not store.fetch(self.path(block), warn)]
        self._there.update(set(wanted).difference(missing))
        return missing

    def require(self, blocks: Iterable[int]) -> None:
        """Take the files of blocks from where they are kept, and make those that are kept nowhere."""
        missing = self.missing(blocks)
        if missing:
            warn, store = self._reference.warn, self._reference.store
            with store.asked_once(self.path(0), warn):
                # another run may have asked meanwhile
                for path in self._compute([b for b in missing if not store.fetch(self.path(b), warn)]):
                    store.keep(path, warn)
            self._there.update(missing)

    def _compute(self, blocks: Sequence[int]) -> Iterator[Path]:
        """Ask for the logprobs of blocks, several at a time, and yield each file once it is written."""
        read = map(self._groups_of, blocks)
        datums = ([datum for group in groups for datum in group.datums] for groups in read)
        units = datums if self._reference.by_block else [chain.from_iterable(datums)]
        parts = (part for unit in units for part in requests_of(unit))
        found = forward_parts(parts, self._reference.policy, sent=self._reference.sent)
        for block in blocks:
            sizes = [len(group.datums) for group in self._groups_of(block)]
            logprobs = [values[LOGPROBS] for values in islice(found, sum(sizes))]
            write_file(self.path(block), logprobs, sizes)
            yield self.path(block)

    def _groups_of(self, block: int) -> list[Group]:
        indices = groups_of(block, len(self._groups))
        return self._groups[indices.start : indices.stop]


class ReferencedGroups(Groups):
    """Groups with their reference logprobs, which are computed at the latest when a group is read."""

    def __init__(self, groups: Groups, logprobs: ReferenceLogprobs) -> None:
        self._groups = groups
        self._logprobs = logprobs
        self._open = lru_cache(OPEN_FILES)(read_file)

    def __len__(self) -> int:
        return len(self._groups)

    def take(self, indices: Sequence[int]) -> list[Group]:
        """Read groups with their reference logprobs, in the order of their indices."""
        self.require(blocks_of(indices))
        groups = self._groups.take(indices)
        arrays = joined([one for index in indices for one in self._stored(index)], np.float32)
        logprobs = map(torch.from_numpy, arrays)
        return [
            replace(group, reference_logprobs=tuple(islice(logprobs, len(group.datums)))) for group in groups
        ]

    def missing(self, blocks: Iterable[int]) -> list[int]:
        """Take what is kept of the logprobs of some blocks, and return the blocks that are kept nowhere."""
        return self._logprobs.missing(blocks)

    def require(self, blocks: Iterable[int]) -> None:
        """Return once the logprobs of some blocks are there: those that are kept, forwards for the rest.

        Raises:
            BackendError: a forward failed.
            MintTrainError: the disk refuses; what was kept before stays.
        """
        self._logprobs.require(blocks)

    def require_all(self) -> None:
        """Return once the logprobs of all groups are there, as `require` does."""
        self.require(blocks_of(range(len(self))))

    def _stored(self, index: int) -> list[np.ndarray]:
        """Find the logprobs of a group's datums, as they lie in their file."""
        block, row = divmod(index, BLOCK)
        logprobs, starts = self._open(self._logprobs.path(block))
        return [logprobs.view(datum) for datum in range(starts[row], starts[row + 1])]


@contextmanager
def open_reference(
    backend: Backend,
    reference: str | None,
    initial: TrainingClient,
    folder: Path,
    warn: Callable[[str], None],
) -> Iterator[TrainingClient]:
    """Open a client whose policy is the reference, and close it at the end.

    Args:
        backend: the run's.
        reference: another base model or a saved state; `initial`'s own policy is "initial", and stands for
            None too.
        initial: a client whose policy is that of the first step.
        folder: where the client keeps its files.
        warn: tells the user one line.

    Raises:
        UserError: the service or this machine does not have it.
        BackendError: it cannot be loaded.
    """
    if reference in (None, INITIAL):
        yield initial
        return
    saved = is_state(str(reference))
    try:
        client = backend.open_client(folder, warn, model=None if saved else reference, trains=False)
    except UserError as error:
        problem = str(error).removeprefix(f"--model {reference}: ")
        raise OptionError(f"--set reference={reference}: {problem}") from None
    try:
        if saved:
            client.load_state_with_optimizer(str(reference)).result()
        yield client
    finally:
        client.close()


def is_state(reference: str) -> bool:
    """Return whether a reference is a saved state, on the service or on this machine, not a base model."""
    if reference == INITIAL:
        return False
    return reference.startswith(ON_THE_SERVICE) or (Path(reference) / STATE_FILE).exists()


def store_of(
    client: TrainingClient, settings: Settings, reference: str, start: StartDescription | None
) -> ReferenceStore:
    """Return the store of a reference, which keeps nothing where another reference might have its key.

    Args:
        client: whose policy is the reference.
        settings: those of the run, whose adapter has their shape.
        reference: the reference's name.
        start: the adapter that the run begins with; None for a fresh one, which changes nothing.
    """
    base = client.base_identity()
    if base is None:
        return ReferenceStore()
    if is_state(reference):
        sha256 = None if reference.startswith(ON_THE_SERVICE) else adapter_sha256(reference)
    elif reference == INITIAL and start is not None:
        sha256 = start.sha256
    else:
        return ReferenceStore.of(base)
    if sha256 is None:  # a state on the service, where another one may get its name
        return ReferenceStore()
    shape = [settings.rank, settings.lora_alpha, sorted(settings.lora_targets)]
    return ReferenceStore.of({**base, "adapter": sha256, "shape": shape})


def digest(reference: str, groups: Sequence[Group]) -> str:
    """Identify groups under a reference by their tokens."""
    found = hashlib.sha256(reference.encode())
    for group in groups:
        found.update(np.array([len(group.lengths), *group.lengths]).tobytes())
        for arrays in group.arrays:
            found.update(arrays.inputs.tobytes())
            found.update(arrays.targets.tobytes())
    return found.hexdigest()[:32]
