"""The hook contract of judges and row writers, as `hookspecs.py` is that of losses and observers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mint_train.plugins.hookspecs import hookspec

if TYPE_CHECKING:
    from mint_train.rows.candidates import Candidates, Judged


class JudgeSpec:
    """What a judge implements: it scores completions, for `mint-train pairs` and `mint-train winrate`.

    A judge is a class, named by an entry point of the group `mint_train.judges`; `--judge` takes the entry
    point's name, and each command creates one instance. A class attribute `Options`, a pydantic model, gives
    `--set` its names; the class is then called with an instance of it, otherwise without arguments.
    """

    @hookspec(firstresult=True)
    def score(self, batch: Sequence[Candidates]) -> Sequence[Sequence[float | None]]:  # type: ignore[empty-body]
        """Score the completions of several prompts.

        `mint-train check-judge` holds that a score depends neither on the order of the completions nor on
        which other prompts are in the batch.

        Args:
            batch: per prompt its completions, one or more, and the row that the prompt came from.

        Returns:
            Per prompt a score for each completion, in their order: a finite number, higher is better, or
            None for a completion that cannot be judged, which is then counted and left out.

        Raises:
            JudgeError: the judge cannot do its work: an endpoint refuses, say.
            RowError: the row lacks what the judge needs; core adds its file and line.
        """

    @hookspec(firstresult=True)
    def judge_versions(self) -> Mapping[str, str] | None:
        """Say what the scores depend on, besides the judge's code, the options and the files that they name.

        Scores of two versions are not mixed: `mint-train pairs` and `winrate` judge all completions again,
        and rounds, and runs whose samples are judged, refuse another version than the one that they began
        with. It is called once, when the judge has been created.

        Returns:
            By name its version, such as a model's commit on the hub (`ModelVersion`); None for nothing.
        """

    @hookspec
    def judge_note(self) -> str | None:
        """Return one line for the user once all is judged, such as what it cost, or None."""


class RowWriterSpec:
    """What makes rows of judged completions, for `mint-train pairs`.

    A row writer is a class, named by an entry point of the group `mint_train.row_writers`. It has options and
    is created like a judge.
    """

    @hookspec(firstresult=True)
    def rows(self, judged: Judged) -> Sequence[Mapping[str, Any]]:  # type: ignore[empty-body]
        """Make the rows of one prompt: one, several, or none where its scores say nothing.

        Each holds the columns of `judged.prompt`, and the losses that it is for read it without flags.
        """

    @hookspec
    def rows_note(self) -> str | None:
        """Return one line for the user about all rows that were made, such as their lengths, or None."""
