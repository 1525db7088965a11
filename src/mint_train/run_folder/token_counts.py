"""The tokens that a run has sent to its backend, by kind; its folder keeps them, and repeats count again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

from mint_train.run_folder.files import append_line, read_lines, write_lines
from mint_train.run_folder.parts import TOKENS_FILE
from mint_train.settings.prices import TOKEN_KINDS, TokenKind

Sent = Callable[[int], None]
"""Is told the tokens of a request once it has been sent."""


def uncounted(_: int) -> None:
    """Count nothing."""


class TokenCounts:
    """Counts tokens as they are sent. Those of a step that is rolled back stay: they were paid."""

    def __init__(self, folder: Path | None = None) -> None:
        """Go on with the counts of a run folder, or begin with none and keep them in memory alone.

        Raises:
            UserError: the file that keeps them is broken.
        """
        self._path = (folder / TOKENS_FILE).absolute() if folder else None
        self._counts: Counter[str] = Counter()
        self._lock = Lock()  # a reference may be asked for in a thread
        if self._path is not None and self._path.exists():
            lines = read_lines(self._path)
            if not self._path.read_bytes().endswith(b"\n"):  # a kill has torn the last line
                write_lines(self._path, lines)
            for line in lines:
                self._counts[line["kind"]] += line["tokens"]

    def add(self, kind: TokenKind, tokens: int, step: int = 0) -> None:
        """Count tokens that have been sent.

        Args:
            kind: what for.
            tokens: how many; those of a datum are those of its model input.
            step: the optimiser step that they belong to, or that they follow; 0 before the first.

        Raises:
            MintTrainError: the disk refuses.
        """
        with self._lock:
            if self._path is not None and tokens:
                append_line(self._path, {"step": step, "kind": kind, "tokens": tokens})
            self._counts[kind] += tokens

    def counting(self, kind: TokenKind, step: int = 0) -> Sent:
        """Return what counts the tokens of requests for one purpose."""
        return lambda tokens: self.add(kind, tokens, step)

    @property
    def by_kind(self) -> Mapping[str, int]:
        """The tokens of each kind that there are tokens of."""
        return {kind: self._counts[kind] for kind in TOKEN_KINDS if self._counts[kind]}

    @property
    def total(self) -> int:
        """The tokens of all kinds."""
        return self._counts.total()
