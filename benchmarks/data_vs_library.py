"""Time to prepare pairs (read, check, tokenise, write) beside one call of the tokenizer's own library.

    python benchmarks/data_vs_library.py --texts dpo_en_demo.json [--characters 120] [--render template]

Both sides take turns in one process, each with a tokenizer that is loaded anew: a tokenizer keeps the words
that it has met. Rows and tokenizer are those of `data_vs_trl.py`; the library gets the texts that our side
asked its tokenizer for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from data_vs_trl import train_tokenizer, write_rows

BAR = 1.3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True, help="JSON file of ShareGPT pairs")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--characters", type=int, help="cut each text to this length")
    parser.add_argument("--render", choices=["recipe", "template"], default="recipe")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["MINT_TRAIN_CACHE"] = str(work / "cache")
        tokenizer = train_tokenizer(given.texts, work / "tokenizer")
        rows = write_rows(given.texts, given.rows, given.characters, work / "rows.jsonl")
        ratios = [measure(rows, tokenizer, given.render, work / "cache") for _ in range(given.rounds)]
    wall, cpu = (statistics.median(part) for part in zip(*ratios, strict=True))
    print(f"{wall:.2f} of the library's time, {cpu:.2f} of its CPU seconds (bar {BAR})")
    return 0


def measure(rows: Path, folder: Path, render: Any, cache: Path) -> tuple[float, float]:
    """Return by how much our side takes longer, in wall time and in CPU seconds."""
    from transformers import AutoTokenizer

    from mint_train.groups.build import build_dataset
    from mint_train.groups.examples import read_examples
    from mint_train.losses.weighted_sum import open_loss
    from mint_train.rendering.encoding import BatchTokenizer
    from mint_train.rows.readers import open_data
    from mint_train.settings.model import Settings

    shutil.rmtree(cache, ignore_errors=True)
    tokenizer, loss = AutoTokenizer.from_pretrained(folder), open_loss("dpo", {})
    asked: list[str] = []
    encode_all = BatchTokenizer._encode_all

    def noted(self: BatchTokenizer, texts: list[Any]) -> Any:
        asked.extend(text for text, _ in texts)
        return encode_all(self, texts)

    with patch.object(BatchTokenizer, "_encode_all", noted):
        began, cpu = time.perf_counter(), time.process_time()
        examples = read_examples(open_data(rows), loss)
        build_dataset(examples, loss, tokenizer, Settings(loss="dpo", max_length=1024, render=render))
        ours = time.perf_counter() - began, time.process_time() - cpu
    tokenizer = AutoTokenizer.from_pretrained(folder)
    began, cpu = time.perf_counter(), time.process_time()
    tokenizer.backend_tokenizer.encode_batch_fast(asked, add_special_tokens=False)
    library = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"ours {ours[0]:.1f} s, {ours[1]:.1f} CPU s; library {library[0]:.1f} s, {library[1]:.1f} CPU s",
        flush=True,
    )
    return ours[0] / library[0], ours[1] / library[1]


if __name__ == "__main__":
    raise SystemExit(main())
