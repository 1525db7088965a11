"""Peak memory of an embedded run with a reference, by number of rows: it should stay constant.

    python benchmarks/reference_memory.py --rows 20000 200000

Each run trains five steps on short distinct pairs with `reference=initial`, which computes and stores the
logprobs of the rows that these steps need, in blocks of eight neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_pairs(path: Path, rows: int) -> None:
    """Write distinct pairs."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            row = {"prompt": f"Say {n}.", "chosen": f"{n} it is", "rejected": f"not {n}, no"}
            file.write(json.dumps(row) + "\n")


def peak_of_run(loss: str, rows: int) -> tuple[float, float]:
    """Train on `rows` pairs; return the peak memory in GiB and the seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "pairs.jsonl"
        write_pairs(data, rows)
        options = ["--set", "reference=initial", "--steps", "5", "--backend", "local", "--quiet"]
        command = [sys.executable, "-m", "mint_train", "--loss", loss, "--data", str(data), *options]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--output", f"{scratch}/run"],
            env=os.environ | {"MINT_TRAIN_CACHE": f"{scratch}/cache"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the run failed with wait status {status}")
        return usage.ru_maxrss / 1024**2, time.perf_counter() - began


def main() -> None:
    """Print a line per number of rows, and the ratio of the last peak to the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--loss", default="dpo")
    given = parser.parse_args()
    peaks = []
    for rows in given.rows:
        peak, seconds = peak_of_run(given.loss, rows)
        peaks.append(peak)
        print(f"{rows:>9,} rows: {peak:.2f} GiB peak, {seconds:.0f} s", flush=True)
    print(f"last to first: {peaks[-1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
