"""Rounds that are killed with `kill -9` before one of their file operations, and go on."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

from counted_kills import operations_of, run_counted
from few_rows import lines
from killed_runs import KILLED, assert_same_to_the_bit, run

ROUNDS = 3
WORDS = ("one", "two", "six", "ten", "red", "sun")
JUDGE = '''\
def score(completion):
    """Return the share of vowels."""
    return sum(map(completion.lower().count, "aeiou")) / len(completion)
'''
SAMPLING, JUDGING, PAIRING, TRAINING, BETWEEN = "sampling", "judging", "pairing", "training", "between rounds"


class KilledRounds:
    """Unbroken rounds, and others that are killed, in a folder."""

    def __init__(self, folder: Path, rounds: int = ROUNDS) -> None:
        self.folder = folder
        prompts, judge = folder / "prompts.jsonl", folder / "vowels.py"
        prompts.write_text("".join(json.dumps({"prompt": f"Say {word}."}) + "\n" for word in WORDS))
        judge.write_text(JUDGE)
        self.arguments = [
            "--loss", "dpo", "--set", "reference=initial", "--rounds", str(rounds), "--prompts", str(prompts),
            "--judge", "function", "--judge-set", f"file={judge}", "--samples", "4", "--max-tokens", "8",
            "--mix-previous", "0.5", "--steps", "3", "--save-every", "1", "--batch-size", "2",
            "--lr", "1e-3", "--backend", "local",
        ]  # fmt: skip
        self.operations: list[str] = []

    def unbroken(self) -> None:
        """Train rounds to their end, and note their file operations."""
        folder = self.folder / "unbroken"
        status = self.counted(folder, None)
        assert status == 0, (self.folder / "unbroken.log").read_text()
        self.operations = operations_of(folder)

    def counted(self, folder: Path, kill_at: int | None) -> int:
        """Train rounds with their file operations counted; return the exit status."""
        return run_counted(folder, [*self.arguments, "--output", str(folder)], [str(folder)], kill_at)

    def phases(self) -> dict[str, list[int]]:
        """Return by phase the operations that belong to it, counted from 1."""
        found = [phase_of(operation) for operation in self.operations]
        phases: dict[str, list[int]] = {
            phase: [] for phase in (SAMPLING, JUDGING, PAIRING, TRAINING, BETWEEN)
        }
        for number, phase in enumerate(found, start=1):
            phases[phase].append(number)
        # the first operation of a round comes after the last one of the run before it
        ends = [number + 2 for number, pair in enumerate(pairwise(found)) if pair == (TRAINING, SAMPLING)]
        phases[BETWEEN] += ends
        phases[SAMPLING] = [number for number in phases[SAMPLING] if number not in ends]
        return phases

    def moments(self, count: int, dice: random.Random) -> list[tuple[str, int]]:
        """Draw operations to kill before, as many in each phase as there are, phase by phase."""
        left = {phase: dice.sample(numbers, len(numbers)) for phase, numbers in self.phases().items()}
        drawn: list[tuple[str, int]] = []
        while len(drawn) < count and any(left.values()):
            drawn += [(phase, numbers.pop()) for phase, numbers in left.items() if numbers]
        return drawn[:count]

    def kill_at(self, number: int) -> str:
        """Kill rounds before an operation, let them go on to their end, and return how."""
        folder = self.folder / f"killed-{number}"
        status = self.counted(folder, number)
        assert status == KILLED, f"operation {number}: the rounds ended with {status}"
        end = "resumed"
        ended = run(folder, "resume", str(folder), "--trust-loss")  # its judge is outside the current folder
        if ended.status == 2:
            end = "begun anew"
            assert ended.output.count("\n") == 1, ended.output
            ended = run(folder, *self.arguments, "--output", str(folder))
        assert ended.status == 0, ended.output
        assert "Traceback" not in ended.output
        check_same(folder, self.folder / "unbroken")
        return end


def phase_of(operation: str) -> str:
    """Return the phase that a file operation belongs to."""
    path = operation.split(maxsplit=1)[1]
    if "/" in path or path.removeprefix("round-").isdigit():
        return TRAINING
    if path.endswith(".samples") or ".samples." in path:
        return SAMPLING
    if path.endswith(".scores") or ".scores." in path:
        return JUDGING
    return BETWEEN if path == "." else PAIRING


def check_same(folder: Path, unbroken: Path) -> None:
    """Compare two folders of rounds: pairs, scores, figures and weights, to the bit; nothing is left over."""
    names = sorted(path.name for path in unbroken.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "rounds.jsonl").read_bytes() == (unbroken / "rounds.jsonl").read_bytes()
    for number in range(1, ROUNDS + 1):
        name = f"round-{number:03d}"
        if not (unbroken / name).exists():
            break
        made, expected = (
            [{key: row[key] for key in row if key != "sampled_from"} for row in lines(each / f"{name}.jsonl")]
            for each in (folder, unbroken)
        )
        assert made == expected, name
        assert_same_to_the_bit(folder / name, unbroken / name)
