"""A few rows that are quick to train and to evaluate on, and how tests read JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAIRS = [
    {"prompt": "Say one.", "chosen": "one", "rejected": "no"},
    {"prompt": "Say two.", "chosen": "two", "rejected": "never"},
    {"prompt": "Say three.", "chosen": "three it is", "rejected": "ask him"},
    {"prompt": "Say four.", "chosen": "four", "rejected": "why not five"},
    {"prompt": "Say five.", "chosen": "five", "rejected": "six"},
]
HELD_OUT = [
    {"prompt": "Say six.", "chosen": "six", "rejected": "no"},
    {"prompt": "Say seven.", "chosen": "no seven today", "rejected": "seven"},
    {"prompt": "Say eight.", "chosen": "eight", "rejected": "never"},
]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
