"""Train each preference loss on the bundled pairs: 100 steps at 1e-3 on the embedded backend.

Losses run with their defaults, with two exceptions: DPO gets `reference=initial` and `beta=0.1`, because its
default is MinT's recipe without a reference, and a regulariser, which is initially 0, is added to `sft`.
Prints a Markdown table; `--write PAGE` puts it between the page's markers.

    python benchmarks/bundled_pairs.py [--write docs/losses.md] [LOSS ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

os.environ.pop("MINT_API_KEY", None)  # measure the embedded backend

from mint_train import train

STEPS, LEARNING_RATE = 100, 1e-3
FAMILY = ("mint-train-dpo", "mint-train-preferences")
OPTIONS: dict[str, dict[str, object]] = {"dpo": {"reference": "initial", "beta": 0.1}}
EXPRESSIONS = {"kl": "sft+kl", "squared-log-ratio": "sft+squared-log-ratio"}
BEGIN, END = "<!-- results: benchmarks/bundled_pairs.py -->", "<!-- /results -->"
COLUMNS = ("loss", "first value", "last value", "rewards/accuracy", "rewards/margin", "drift", "nll")


def main() -> None:
    """Train with the losses and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("losses", nargs="*", help="names of losses (default: the whole family)")
    parser.add_argument("--write", type=Path, help="page in which to replace the table")
    arguments = parser.parse_args()
    rows = [("| " + " | ".join(row) + " |") for row in (COLUMNS, ["---"] * len(COLUMNS))]
    print(*rows, sep="\n", flush=True)
    for name in arguments.losses or family():
        rows.append("| " + " | ".join(measure(name)) + " |")
        print(rows[-1], flush=True)
    if arguments.write:
        replace_between(arguments.write, BEGIN, END, rows)


def family() -> list[str]:
    """Return the names of the family's installed losses."""
    entries = entry_points(group="mint_train.losses")
    return sorted(entry.name for entry in entries if entry.dist is not None and entry.dist.name in FAMILY)


def measure(name: str) -> list[str]:
    """Train with one loss and describe the first and the last step."""
    expression = EXPRESSIONS.get(name, name)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        output = Path(folder, "run")
        train(
            expression,
            options=OPTIONS.get(name),
            backend="local",
            steps=STEPS,
            lr=LEARNING_RATE,
            output=output,
        )
        lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = (json.loads(line)["metrics"] for line in (lines[0], lines[-1]))
    return [
        f"`{expression}`",
        f"{first['loss']:.4g}",
        f"{last['loss'] + 0.0:.4g}",  # + 0.0 turns -0 into 0
        *(f"{last[metric]:.3g}" if metric in last else "" for metric in COLUMNS[3:]),
    ]


def replace_between(page: Path, begin: str, end: str, lines: Iterable[str]) -> None:
    """Replace the text between two markers of a page."""
    text = page.read_text(encoding="utf-8")
    section = "\n".join([begin, "", *lines, "", end])
    page.write_text(
        re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: section, text, flags=re.DOTALL),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
