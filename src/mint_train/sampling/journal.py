"""What has been sampled and judged so far, on disk: a command that was killed goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError, UserError
from mint_train.groups.prompts import Prompts
from mint_train.run_folder.files import append_line, make_parent, write_whole


class Journal:
    """A JSON Lines file: what decides its content in the first line, then an entry per prompt."""

    def __init__(self, path: Path, decided_by: Mapping[str, Any]) -> None:
        """Open the file, or begin it.

        Args:
            path: the file.
            decided_by: what decides the entries, as JSON has it; a file of other entries is refused.

        Raises:
            OptionError: the file was begun with something else.
            UserError: it is broken.
            MintTrainError: it cannot be written.
        """
        self.path = path
        self.entries: dict[int, Any] = {}
        decided = as_json(decided_by)
        lines = whole_lines(path)
        if not lines:
            make_parent(path)
            write_whole(path, json.dumps(decided, ensure_ascii=False) + "\n")
            return
        if lines[0] != decided:
            raise OptionError(
                f"{path} was begun with {difference(lines[0], decided)}: go on with that, or {AGAIN}"
            )
        for line in lines[1:]:
            if not isinstance(line, dict) or not isinstance(line.get("prompt"), int) or "entry" not in line:
                raise UserError(f"{path} is broken: one of its lines is not an entry; {AGAIN}")
            self.entries[line["prompt"]] = line["entry"]

    def add(self, prompt: int, entry: Any) -> None:
        """Record the entry of a prompt.

        Raises:
            MintTrainError: the disk refuses.
        """
        append_line(self.path, {"prompt": prompt, "entry": entry})
        self.entries[prompt] = entry


def as_json(decided_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a journal's entries as it is read back."""
    return dict(json.loads(json.dumps(dict(decided_by))))


AGAIN = "begin again with --overwrite"


def journals_of(output: Path, parts: Sequence[str]) -> list[Path]:
    """Return the paths of an output's journals."""
    return [Path(f"{output}.{part}") for part in parts]


def require_unused(output: Path, journals: Sequence[Path], prompts: Prompts, *, overwrite: bool) -> None:
    """Refuse an output that is not to be replaced, and delete the journals where it is to begin again.

    Raises:
        OptionError: the output exists, and is not to be replaced or holds the prompts.
    """
    if output.exists() and not overwrite:
        raise OptionError(f"--output {output} exists; name another file, or add --overwrite")
    read = {Path(row.source.path) for row in prompts.rows}
    if output.exists() and any(path.exists() and path.samefile(output) for path in read):
        raise OptionError(f"--output {output} holds the prompts; name another file")
    if overwrite:
        for path in journals:
            path.unlink(missing_ok=True)


def whole_lines(path: Path) -> list[Any]:
    """Read the whole lines of a file, and cut off a last one that a kill has torn.

    Raises:
        UserError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        return [json.loads(line) for line in whole.splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken: {error}; {AGAIN}") from error


def difference(before: Any, now: Mapping[str, Any]) -> str:
    """Name the first thing in which two descriptions differ."""
    if not isinstance(before, dict):
        return "something else"
    for name in [*now, *before]:
        old, new = before.get(name), now.get(name)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                return f"{name}: {difference(old, new)}"
            return f"{name} {old}, not {new}"
    return "something else"
