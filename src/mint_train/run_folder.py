"""What a run leaves on disk: `run.json`, `metrics.jsonl`, `checkpoints.jsonl`, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError, UserError
from mint_train.records import Checkpoint, StepRecord

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS_FILE = "checkpoints.jsonl"
PARTS = (
    RUN_FILE,
    METRICS_FILE,
    CHECKPOINTS_FILE,
    "adapter",
    "base_model",
    "checkpoints",
    "reference.safetensors",
)
"""What a run writes: nothing else in its folder is ever removed."""
REPLACED = ".replaced"
CHECKPOINT_PATHS = ("state", "sampler")


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, *, overwrite: bool) -> RunFolder:
        """Make the folder of a new run.

        Raises:
            OptionError: it holds a run already and `overwrite` is not set, or is no folder of a run's.
        """
        if (path / RUN_FILE).exists():
            if not overwrite:
                raise OptionError(
                    f"--output {path} already holds a run: continue it with `mint-train resume {path}`, "
                    "replace it with --overwrite, or name another folder"
                )
            move_parts(path, path / REPLACED)
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OptionError(f"--output {path} exists and is no run folder; name a new or empty folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"--output {path}: {error.strerror or error}") from error
        return cls(path)

    def discard(self) -> None:
        """Remove a run that never began; one that it was to replace comes back."""
        remove_parts(self.path)
        if (self.path / REPLACED).exists():
            move_parts(self.path / REPLACED, self.path)
        elif not any(self.path.iterdir()):
            self.path.rmdir()

    def begin(self, description: dict[str, Any]) -> None:
        """Write `run.json` of a run whose first step is next, and let go of the run that it replaces."""
        self.write_description(description)
        shutil.rmtree(self.path / REPLACED, ignore_errors=True)

    def write_description(self, description: dict[str, Any]) -> None:
        """Write `run.json`."""
        write_whole(self.path / RUN_FILE, json.dumps(description, indent=2, ensure_ascii=False) + "\n")

    def read_description(self) -> dict[str, Any]:
        """Read `run.json`.

        Raises:
            UserError: the folder holds no run, or the file is broken.
        """
        path = self.path / RUN_FILE
        try:
            description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.path} holds no run: there is no {RUN_FILE} in it") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if not isinstance(description, dict) or not {"settings", "backend", "data"} <= description.keys():
            raise UserError(f"{path} is no description of a run; start the run again with --overwrite")
        return description

    def set_status(self, status: str, **more: Any) -> None:
        """Note in `run.json` how the run stands."""
        self.write_description(self.read_description() | {"status": status} | more)

    def append_step(self, record: StepRecord) -> None:
        """Add a step's line to `metrics.jsonl`."""
        line = {
            "step": record.step,
            **record.metrics,
            "learning_rate": record.learning_rate,
            "tokens": record.tokens,
            "seconds": round(record.seconds, 6),
        }
        append_line(self.path / METRICS_FILE, line)

    def append_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint's line to `checkpoints.jsonl`; its paths are relative, as the folder may move."""
        paths = {name: self.relative(getattr(checkpoint, name)) for name in CHECKPOINT_PATHS}
        append_line(self.path / CHECKPOINTS_FILE, asdict(checkpoint) | paths)

    def relative(self, path: str | None) -> str | None:
        """Return a path below this folder relative to it, and any other as it is."""
        if path is None or not Path(path).is_relative_to(self.path):
            return path
        return str(Path(path).relative_to(self.path))

    def last_checkpoint(self) -> Checkpoint:
        """Return the newest checkpoint.

        Raises:
            UserError: there is none.
        """
        lines = read_lines(self.path / CHECKPOINTS_FILE)
        if not lines:
            raise UserError(
                f"{self.path} has no checkpoint to resume from; start the run again with --overwrite"
            )
        try:
            line = lines[-1] | {name: self.found(lines[-1][name]) for name in CHECKPOINT_PATHS}
            return Checkpoint(**line)
        except (KeyError, TypeError) as error:
            path = self.path / CHECKPOINTS_FILE
            raise UserError(f"{path} is broken: its last line is no checkpoint") from error

    def found(self, path: str | None) -> str | None:
        """Undo `relative`."""
        return str(self.path / path) if path is not None and (self.path / path).exists() else path

    def keep_steps_until(self, step: int) -> None:
        """Drop the lines of steps after a checkpoint, and torn last lines, before a resume repeats them."""
        for name in (METRICS_FILE, CHECKPOINTS_FILE):
            kept = [line for line in read_lines(self.path / name) if line["step"] <= step]
            write_whole(
                self.path / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
            )


def move_parts(source: Path, target: Path) -> None:
    """Move what a run wrote into another folder of the same disk, over what stands there."""
    remove_parts(target)
    target.mkdir(exist_ok=True)
    for part in PARTS:
        if (source / part).exists():
            (source / part).replace(target / part)
    if source.name == REPLACED:
        source.rmdir()


def remove_parts(folder: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for path in (folder / part for part in PARTS):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old or the new one, never a part."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a JSON Lines file; a torn last line is left out."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        lines = [json.loads(line) for line in whole]
    except ValueError as error:
        raise UserError(f"{path} is broken: {error}") from error
    if not all(isinstance(line, dict) and "step" in line for line in lines):
        raise UserError(f"{path} is broken: a line of it has no step")
    return lines
