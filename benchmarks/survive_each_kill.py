"""Kill a run with `kill -9` at each of its file operations in turn: each must end like an unbroken run.

The run has a reference, evaluations and `--keep`. After each kill it is resumed, or begun anew where it says
that there is nothing to resume. Figures, weights, reference logprobs and evaluations must be equal to the
bit, no line may be there twice, and no state, temp file or folder of an overwrite may be left over.

    python benchmarks/survive_each_kill.py [--every N] [--first N]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from counted_kills import operations_of, run_counted, summary
from killed_runs import KILLED, assert_same_to_the_bit, check_files, run

STEPS = 6
KEEP = 2
PAIRS = [
    {"prompt": f"Say {word}.", "chosen": f"{word} it is", "rejected": f"{word} is it not"}
    for word in ("one", "two", "six", "ten")
]


def main() -> None:
    """Kill at each operation, and print how each run went on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th operation only")
    parser.add_argument("--first", type=int, default=1, help="the first operation to kill at")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(Path(name))
        operations = trial.unbroken()
        print(f"an unbroken run makes {len(operations)} file operations: {summary(operations)}", flush=True)
        ends: Counter[str] = Counter()
        for number in range(arguments.first, len(operations) + 1, arguments.every):
            end = trial.kill_at(number)
            ends[end] += 1
            print(f"killed before operation {number}, {operations[number - 1]}: {end}", flush=True)
        print(f"{ends.total()} kills: {dict(ends)}; all ended like the unbroken run, to the bit")


class Trial:
    """An unbroken run, and runs that are killed, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        self.arguments = [
            "--loss", "dpo", "--set", "reference=initial", "--data", str(folder / "pairs.jsonl"),
            "--eval-data", str(folder / "pairs.jsonl"), "--eval-every", "2", "--batch-size", "2",
            "--steps", str(STEPS), "--save-every", "2", "--keep", str(KEEP), "--lr", "1e-3",
            "--backend", "local", "--schedule", "cosine",
        ]  # fmt: skip

    def start(self, run_folder: Path) -> list[str]:
        """Return what a run is started with."""
        return [*self.arguments, "--output", str(run_folder), "--overwrite"]

    def variables(self, run_folder: Path) -> dict[str, str]:
        """Give each run a cache of its own, so that it is killed while it writes that too."""
        return {"MINT_TRAIN_CACHE": str(run_folder.with_name(run_folder.name + "-cache"))}

    def unbroken(self) -> list[str]:
        """Run to the end, and return the file operations that it made."""
        folder = self.folder / "unbroken"
        status = self.counted(folder, None)
        assert status == 0, (self.folder / "unbroken.log").read_text()
        check_whole(folder)
        return operations_of(folder)

    def counted(self, folder: Path, kill_at: int | None) -> int:
        """Run with its file operations counted; return the exit status."""
        variables = self.variables(folder)
        watched = [str(folder), variables["MINT_TRAIN_CACHE"]]
        return run_counted(folder, self.start(folder), watched, kill_at, **variables)

    def kill_at(self, number: int) -> str:
        """Kill a run before an operation and bring it to its end; return how it went on."""
        folder = self.folder / f"killed-{number}"
        status = self.counted(folder, number)
        assert status == KILLED, f"operation {number}: the run ended with {status}"
        if folder.exists():
            check_files(folder)
        end = "resumed"
        ended = run(folder, "resume", str(folder), **self.variables(folder))
        if ended.status == 2:
            end = "begun anew"
            assert ended.output.count("\n") == 1, ended.output
            ended = run(folder, *self.start(folder), **self.variables(folder))
        assert ended.status == 0, ended.output
        assert "Traceback" not in ended.output
        check_files(folder)
        check_whole(folder)
        assert_same_to_the_bit(folder, self.folder / "unbroken")
        for path in sorted((self.folder / "unbroken" / "evaluations").iterdir()):
            assert (folder / "evaluations" / path.name).read_bytes() == path.read_bytes(), path.name
        for path in (folder, Path(self.variables(folder)["MINT_TRAIN_CACHE"])):
            shutil.rmtree(path)
        return end


def check_whole(folder: Path) -> None:
    """Check that a finished run says that it is done, names all of its states, and left nothing over."""
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    named = [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
    states = {path.parent.name for path in (folder / "checkpoints").glob("*/state.safetensors")}
    assert {Path(line["state"]).name for line in named} == states
    assert len(named) == KEEP
    hidden = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
    assert not hidden, hidden
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    evaluated = [json.loads(line)["step"] for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert evaluated == [0, 2, 4, 6]


if __name__ == "__main__":
    main()
