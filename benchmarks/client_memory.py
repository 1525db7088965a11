"""Growth of the client's memory over a long run: 10,000 steps with the embedded starter model.

python benchmarks/client_memory.py [--steps N]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import tempfile
from pathlib import Path

import mint_train
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import StepRecord

BAR = 50.0
PAIRS = [
    {"prompt": "Say one.", "chosen": "one", "rejected": "no"},
    {"prompt": "Say two.", "chosen": "two", "rejected": "never"},
]


def main() -> None:
    """Train, and print the resident memory at ten points of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    steps = parser.parse_args().steps
    looks = {steps // 10 * number for number in range(1, 11)}
    megabytes: dict[int, float] = {}
    append_step = RunFolder.append_step

    def look(self: RunFolder, record: StepRecord) -> None:
        append_step(self, record)
        if record.step in looks:
            gc.collect()
            megabytes[record.step] = resident_megabytes()

    RunFolder.append_step = look  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        data = Path(folder, "pairs.jsonl")
        data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        with contextlib.redirect_stdout(nowhere):
            mint_train.train(
                "dpo",
                data=data,
                backend="local",
                steps=steps,
                batch_size=1,
                save_every=steps // 10,
                keep=2,
                options={"reference": "initial"},
                output=Path(folder, "run"),
            )
    print(", ".join(f"step {step}: {size:.0f} MB" for step, size in megabytes.items()))
    growth = megabytes[steps] - megabytes[steps // 10]
    print(f"growth from step {steps // 10} to step {steps}: {growth:.1f} MB (at most {BAR:.0f} MB)")
    raise SystemExit(growth > BAR)


def resident_megabytes() -> float:
    """Read this process's resident memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
