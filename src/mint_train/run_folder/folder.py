"""What a run leaves on disk: `run.json`, `metrics.jsonl`, `checkpoints.jsonl`, each written atomically."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mint_train.errors import OptionError, UserError, command_line
from mint_train.run_folder.description import RunDescription, parse_description
from mint_train.run_folder.files import (
    Place,
    append_line,
    cannot_write,
    read_lines,
    sync_file,
    write_lines,
    write_rows,
    write_whole,
)
from mint_train.run_folder.parts import (
    CHECKPOINTS,
    CHECKPOINTS_FILE,
    CONFIG_FILE,
    EVALUATION_ROWS,
    EVALUATIONS_FILE,
    METRICS_FILE,
    RUN_FILE,
    SKIPPED_FILE,
    STARTING,
)
from mint_train.run_folder.records import Checkpoint, Evaluation, StepRecord
from mint_train.run_folder.replacing import (
    LOCK_FILE,
    STARTING_TEXT,
    forget_replaced,
    is_empty,
    is_replaced,
    may_be_ours,
    put_back,
    recover,
    set_aside,
)
from mint_train.run_folder.selection import Selection
from mint_train.run_folder.several_runs import name_one
from mint_train.run_folder.written import our_files
from mint_train.settings.config_files import config_text

BEST, LAST = "best", "last"
"""What names a checkpoint beside its step."""
LOCATION = frozenset({"output", "overwrite"})
"""Settings that say where a run is written, and nothing about the run."""
CHECKPOINT_PATHS = ("state", "sampler")


class RunFolder:
    """The folder of one run; while it is entered, no other process may write to it."""

    def __init__(self, path: Path, *, made: bool = False) -> None:
        """Take a folder, and whether this process made it."""
        self._place = Place(path)
        self.made = made
        self._lock = FileLock(path / LOCK_FILE)

    @property
    def path(self) -> Path:
        """The folder, as it is named from the current one."""
        return self._place.path

    def __enter__(self) -> RunFolder:
        """Take the lock, which the operating system releases however this process ends.

        What a killed process left half done is finished or undone.

        Raises:
            UserError: another process has it.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.path} is in use by another process; wait until its run ends") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be written to: {error.strerror or error}") from error
        try:
            recover(self.path)
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise cannot_write(self.path, error) from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self._lock.release()

    @classmethod
    @contextmanager
    def create(cls, path: Path, *, overwrite: bool, made: bool = False) -> Iterator[RunFolder]:
        """Create the folder of a new run, and yield it locked.

        Args:
            path: the folder.
            overwrite: replace the run that it holds.
            made: whether this process made the folder, which is then empty.

        Raises:
            OptionError: it already holds a run and `overwrite` is not set, or it is not a run folder.
        """
        try:
            if path.exists() and not may_be_ours(path):
                raise not_a_run_folder(path)
            made = made or not path.exists()
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise OptionError(f"--output {path}: {getattr(error, 'strerror', None) or error}") from error
        with cls(path, made=made) as folder:
            folder.claim(overwrite=overwrite)
            yield folder

    def claim(self, *, overwrite: bool) -> None:
        """Make the folder that of a new run; what another run wrote is set aside."""
        if not (self.path / RUN_FILE).exists():
            if not is_empty(self.path):
                raise not_a_run_folder(self.path)
            write_whole(self.path / STARTING, STARTING_TEXT)
            return
        try:
            self.read_description()
        except UserError as error:
            raise OptionError(f"--output {self.path} is not replaced: {error}") from error
        if not overwrite:
            raise OptionError(
                f"--output {self.path} already holds a run: continue it with "
                f"`{command_line('resume', self.path)}`, replace it with --overwrite, or name another folder"
            )
        set_aside(self.path)

    def discard(self) -> None:
        """Remove a run that never began, and restore the one that it was to replace."""
        if is_replaced(self.path):
            put_back(self.path)
            return
        recover(self.path)
        if self.made and is_empty(self.path):
            shutil.rmtree(self.path)

    def begin(self, description: RunDescription) -> None:
        """Write `run.json` of a run whose first step is next, and delete the run that it replaces."""
        repeatable = {name: value for name, value in description.settings.items() if name not in LOCATION}
        write_whole(self.path / CONFIG_FILE, config_text(repeatable))
        self.write_description(description)
        (self.path / STARTING).unlink(missing_ok=True)
        forget_replaced(self.path)

    def write_description(self, description: RunDescription) -> None:
        """Write `run.json`, sealed against edits of what decides the run."""
        write_whole(self.path / RUN_FILE, description.to_json())

    def read_description(self) -> RunDescription:
        """Read `run.json`.

        Raises:
            UserError: the folder does not hold a run, or the file is broken, edited or of another version.
        """
        path = self.path / RUN_FILE
        if is_replaced(self.path):
            with self:  # which moves it back
                pass
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            more = name_one(self.path)
            raise UserError(f"{self.path} holds no run: there is no {RUN_FILE} in it{more}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        return parse_description(text, path)

    def update_description(self, **changed: Any) -> None:
        """Change fields of `run.json`, such as the status."""
        self.write_description(self.read_description().model_copy(update=changed))

    def write_skipped(self, lines: list[dict[str, Any]]) -> None:
        """Write a line for each row that is skipped, where there are any."""
        if lines:
            write_lines(self.path / SKIPPED_FILE, lines)

    def append_step(self, record: StepRecord) -> None:
        """Add a step's line to `metrics.jsonl`."""
        append_line(self.path / METRICS_FILE, record.to_line())

    def append_evaluation(self, evaluation: Evaluation) -> None:
        """Write an evaluation's rows to a file of their own, then add its line to `evaluations.jsonl`."""
        write_rows(self.evaluation_rows(evaluation.step, evaluation.held_out), evaluation.rows)
        append_line(self.path / EVALUATIONS_FILE, evaluation.to_line(), durable=True)

    def evaluation_rows(self, step: int, held_out: str = "") -> Path:
        """Return the file with the rows of the evaluation after a step on a held-out set."""
        named = f"set-{held_out}-" if held_out else ""
        return self.path / EVALUATION_ROWS / f"{named}step-{step:06d}.jsonl"

    def has_steps(self) -> bool:
        """Return whether a step has been recorded."""
        return bool(read_lines(self.path / METRICS_FILE))

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the lines of `evaluations.jsonl`."""
        return read_lines(self.path / EVALUATIONS_FILE)

    def append_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint's line to `checkpoints.jsonl`; its paths are relative, as the folder may move."""
        paths = {name: self.relative(getattr(checkpoint, name)) for name in CHECKPOINT_PATHS}
        sync_file(self.path / METRICS_FILE)  # steps reach the disk before their checkpoint does
        line = asdict(checkpoint) | paths
        lines = read_lines(self.path / CHECKPOINTS_FILE)
        others = [each for each in lines if each["step"] != line["step"]]
        if len(others) < len(lines):
            # it was resumed after its last step, or the weights of its best one were saved
            ordered = sorted([*others, line], key=lambda each: int(each["step"]))
            write_lines(self.path / CHECKPOINTS_FILE, ordered)
        else:
            append_line(self.path / CHECKPOINTS_FILE, line, durable=True)

    def forget_checkpoints(self, keep: int, best: int | None = None) -> list[str]:
        """Drop the lines of all but the newest checkpoints, and return the states that no kept line names.

        Args:
            keep: how many of the newest stay.
            best: a step whose checkpoint stays too.
        """
        lines = read_lines(self.path / CHECKPOINTS_FILE)
        steps = {best, *sorted({line["step"] for line in lines})[-keep:]}
        kept = [line for line in lines if line["step"] in steps]
        if len(kept) < len(lines):
            write_lines(self.path / CHECKPOINTS_FILE, kept)
        dropped = [str(self.located(line["state"])) for line in lines if line not in kept]
        return dropped + [path for path in self.orphan_states(lines) if path not in dropped]

    def orphan_states(self, lines: list[dict[str, Any]]) -> list[str]:
        """Return the saved states in this folder that no line names: a kill came before they were deleted."""
        named = {str(self.located(line["state"])) for line in lines}
        states = [name for name in our_files(self.path) if name.startswith(f"{CHECKPOINTS}/step-")]
        return sorted({str((self.path / name).parent) for name in states} - named)

    def relative(self, path: str | None) -> str | None:
        """Return a path inside this folder relative to it, any other path unchanged."""
        if path is None or not Path(path).is_relative_to(self.path):
            return path
        return str(Path(path).relative_to(self.path))

    def last_checkpoint(self) -> Checkpoint:
        """Return the newest checkpoint.

        Raises:
            UserError: there is none.
        """
        return self.checkpoints()[-1]

    def checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints, the oldest first.

        Raises:
            UserError: there is none, or a line is not a checkpoint.
        """
        path = self.path / CHECKPOINTS_FILE
        lines = read_lines(path)
        if not lines:
            raise UserError(
                f"{self.path} has no checkpoint to resume from; start the run again with --overwrite"
            )
        try:
            return [
                Checkpoint(**line | {name: self.located(line[name]) for name in CHECKPOINT_PATHS})
                for line in lines
            ]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is broken: a line of it is not a checkpoint") from error

    def best_step(self) -> int | None:
        """Return the step of the best state, by the run's `--select-by`; None without it.

        Raises:
            UserError: the folder is broken.
        """
        recorded = self.read_description()
        said = recorded.settings.get("select_by")
        if said is None:
            return None
        sets = [held_out.name for held_out in recorded.data.held_out]
        saved = {line["step"] for line in read_lines(self.path / CHECKPOINTS_FILE)}
        evaluated = [line for line in self.evaluations() if line["step"] in saved]
        return Selection.parse(said, recorded.metrics, sets).best_step(evaluated)

    def checkpoint_after(self, step: int | str | None = None) -> Checkpoint:
        """Return the checkpoint after a step, "best" or "last"; by default the best, else the last one.

        Raises:
            UserError: there is none.
        """
        checkpoints = self.checkpoints()
        if step in (None, BEST):
            best = self.best_step()
            if best is None and step == BEST:
                raise self.no_checkpoint("best checkpoint: its run had no --select-by METRIC")
            step = best
        if step == LAST:
            step = None
        wanted = [saved for saved in checkpoints if step in (None, saved.step)]
        if not wanted:
            raise self.no_checkpoint(f"checkpoint after step {step}")
        return wanted[-1]

    def no_checkpoint(self, what: str) -> UserError:
        """Return the error that says which checkpoint is missing, and which steps have one."""
        steps = ", ".join(str(number) for number in sorted({saved.step for saved in self.checkpoints()}))
        return UserError(f"{self.path} has no {what}; it has those after the steps {steps}")

    def located(self, path: str | None) -> str | None:
        """Return a path that `relative` has shortened as one into this folder, any other path unchanged."""
        inside = path is not None and "://" not in path and (self.path / path).exists()
        return str(self.path / str(path)) if inside else path

    def keep_steps_until(self, step: int) -> None:
        """Drop the lines of steps after a checkpoint, which will be repeated, and torn last lines."""
        for name in (METRICS_FILE, CHECKPOINTS_FILE):
            kept = [line for line in read_lines(self.path / name) if line["step"] <= step]
            write_lines(self.path / name, kept)
        if (self.path / EVALUATIONS_FILE).exists():
            lines = self.evaluations()
            write_lines(self.path / EVALUATIONS_FILE, [line for line in lines if line["step"] <= step])
            for line in lines:
                if line["step"] > step:
                    self.evaluation_rows(line["step"], line.get("held_out", "")).unlink(missing_ok=True)


def not_a_run_folder(path: Path) -> OptionError:
    """Return the error that refuses to write a run beside other files."""
    return OptionError(f"--output {path} exists and is not a run folder; name a new or empty folder")
