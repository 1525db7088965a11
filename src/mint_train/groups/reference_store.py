"""Reference logprobs that runs share in the user's cache: all losses and seeds on equal rows ask once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mint_train.errors import MintTrainError
from mint_train.groups.cache_bound import note_use
from mint_train.groups.reference_file import is_whole
from mint_train.groups.token_cache import library_versions
from mint_train.plugins.sources import sources_digest
from mint_train.run_folder.files import copy_whole
from mint_train.settings.cache import cache_folder

STORE = "references"
"""The folder in the cache, which has a folder for each reference."""
SOURCES = ("backends", "groups", "batches")
"""The packages of this program that decide a logprob and how it is kept."""


class ReferenceStore:
    """The files of one reference, which runs copy: a run folder never depends on the cache."""

    def __init__(self, folder: Path | None = None) -> None:
        """Take the folder of the reference; None keeps nothing, and has nothing."""
        self.folder = folder
        self._told = False

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> ReferenceStore:
        """Return the store of a reference, given all that decides its logprobs, as JSON has it."""
        here = Path(__file__).parents[1]
        parts = {
            "reference": dict(identity),
            "libraries": library_versions(),
            "core": sources_digest(here / name for name in SOURCES),
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        return cls(cache_folder() / STORE / key)

    @contextmanager
    def asked_once(self, path: Path, warn: Callable[[str], None]) -> Iterator[None]:
        """Wait until no other process asks for a file; while this is entered, no other one does.

        Args:
            path: the first file of the groups; runs on the same rows have the same one.
            warn: tells the user of the first wait.
        """
        with ExitStack() as held:
            if self.folder is not None:
                with suppress(OSError):  # without a lock it is asked for twice, which costs time alone
                    self.folder.mkdir(parents=True, exist_ok=True)
                    note_use(self.folder)
                    lock = FileLock(self.folder / f"{path.stem}.lock")
                    try:
                        held.enter_context(lock.acquire(timeout=0))
                    except Timeout:
                        if not self._told:
                            warn("Another run computes these reference logprobs; waiting for them.")
                        self._told = True
                        held.enter_context(lock.acquire())
            yield

    def fetch(self, path: Path, warn: Callable[[str], None]) -> bool:
        """Copy a file into a run folder; return whether there is one that is whole.

        Args:
            path: where it goes, under the name that it has here.
            warn: tells the user of a file that is broken.
        """
        if self.folder is None or not is_whole(self.folder / path.name, warn):
            return False
        try:
            copy_whole(self.folder / path.name, path)
        except MintTrainError:  # the cache may be cleared at any time
            return False
        return True

    def keep(self, path: Path, warn: Callable[[str], None]) -> None:
        """Copy a file from a run folder; if the disk of the cache refuses, the run has it nevertheless."""
        if self.folder is None:
            return
        try:
            copy_whole(path, self.folder / path.name)
        except MintTrainError as error:
            warn(f"Other runs cannot share these reference logprobs: {error}")
