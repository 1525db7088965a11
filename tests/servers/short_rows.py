"""Short rows for a loss of each contract: all of one shape, for which a server compiles once."""

from __future__ import annotations

from pathlib import Path

from few_rows import PAIRS, write_lines

LOSSES = {
    "dpo": ("--data", "pairs.jsonl", "--set", "reference=initial"),
    "kto": ("--data", "pairs.jsonl"),
    "plackett-luce": ("--data", "rankings.jsonl"),
    "policy-gradient": ("--data", "rewards.jsonl", "--set", "reference=initial"),
}
"""A loss of each contract, and its options."""


def write_short_rows(folder: Path) -> None:
    """Write pairs to train on and others to evaluate on, and the same texts as rankings and with rewards."""
    rows = [row | {"prompt": f"{row['prompt']} {turn}"} for turn in "ab" for row in PAIRS]
    write_lines(folder / "pairs.jsonl", rows[:8])
    several = [{"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]]} for row in rows]
    write_lines(folder / "rankings.jsonl", several)
    write_lines(folder / "rewards.jsonl", [row | {"rewards": [1.0, 0.0]} for row in several])
    write_lines(folder / "others.jsonl", [{**row, "prompt": f"Now: {row['prompt']}"} for row in PAIRS])
