"""Kill runs with `kill -9` at random moments: each resumed run must end like an uninterrupted one.

Embedded runs are compared bit for bit (figures, weights, reference logprobs); runs on a SkyRL server, which
this script starts, within 1e-4. Rounds are killed before file operations of each of their phases, and
compared bit for bit, their pairs and scores too. After each kill of a run every file is read, and none may
be torn. The reference is the initial policy, so taking the resumed policy instead would change the figures.

    python benchmarks/survive_kills.py [--embedded N] [--service N] [--rounds N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load

from mint_train.backends.local.starter_model import save_starter_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))
from killed_rounds import KilledRounds
from killed_runs import assert_same_to_the_bit, figures, run, run_killed
from server import SkyrlServer, running_server

TOLERANCE = 1e-4
SLOTS = 32
"""For adapters: a run that is killed, or loses its session, holds its own for five minutes."""
EMBEDDED_STEPS = 200
"""Enough that most of a run's time is spent in steps rather than in starting."""
SERVICE_STEPS = 12
PAIRS = [
    {"prompt": f"Say {word}.", "chosen": f"{word} it is", "rejected": f"{word} is it not"}
    for word in ("one", "two", "six", "ten", "red", "sun")
]


def main() -> None:
    """Kill runs, and print how often they were killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--embedded", type=int, default=50, help="kills of embedded runs")
    parser.add_argument("--service", type=int, default=10, help="kills of runs on the server")
    parser.add_argument("--rounds", type=int, default=20, help="kills of embedded rounds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "pairs.jsonl"
        data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        options = [
            "--loss", "dpo", "--set", "reference=initial", "--data", str(data), "--batch-size", "2",
            "--save-every", "2", "--lr", "1e-3", "--schedule", "cosine",
        ]  # fmt: skip
        if arguments.embedded:
            kill_embedded(folder, options, arguments.embedded, moments)
        if arguments.rounds:
            kill_rounds(folder, arguments.rounds, moments)
        if arguments.service:
            for part in ("model", "server"):
                (folder / part).mkdir()
            save_starter_model(folder / "model")
            with running_server(folder / "model", folder / "server", SLOTS) as server:
                kill_on_service(server, folder, options, arguments.service, moments)


def kill_embedded(folder: Path, options: list[str], wanted: int, moments: random.Random) -> None:
    """Kill embedded runs until the number of kills reaches `wanted`."""
    arguments = [*options, "--steps", str(EMBEDDED_STEPS), "--backend", "local"]
    unbroken = folder / "unbroken"
    run(folder / "warm", *arguments, "--output", str(folder / "warm"))
    ended = run(unbroken, *arguments, "--output", str(unbroken))
    assert ended.status == 0, ended.output
    kills = anew = runs = 0
    while kills < wanted:  # a run may end before its kill comes
        runs += 1
        killed = folder / f"killed-{runs}"
        counts = run_killed(killed, arguments, EMBEDDED_STEPS, moments)
        assert_same_to_the_bit(killed, unbroken)
        kills, anew = kills + counts[0], anew + counts[1]
    print(
        f"embedded: {runs} runs of {EMBEDDED_STEPS} steps, {kills} kills, "
        f"{anew} restarted for lack of a checkpoint; all are equal to the uninterrupted run bit for bit",
        flush=True,
    )


def kill_rounds(folder: Path, wanted: int, moments: random.Random) -> None:
    """Kill rounds before operations of each of their phases."""
    (folder / "rounds").mkdir()
    trial = KilledRounds(folder / "rounds")
    trial.unbroken()
    found = {phase: len(numbers) for phase, numbers in trial.phases().items()}
    print(f"unbroken rounds make {len(trial.operations)} file operations: {found}", flush=True)
    ends: Counter[tuple[str, str]] = Counter()
    for phase, number in sorted(trial.moments(wanted, moments), key=lambda moment: moment[1]):
        end = trial.kill_at(number)
        ends[phase, end] += 1
        print(
            f"killed before operation {number}, {trial.operations[number - 1]} ({phase}): {end}", flush=True
        )
    counts = ", ".join(f"{phase} {count} {end}" for (phase, end), count in sorted(ends.items()))
    print(
        f"rounds: {ends.total()} kills ({counts}); pairs, scores, figures and weights are those of unbroken "
        "rounds bit for bit",
        flush=True,
    )


def kill_on_service(
    server: SkyrlServer, folder: Path, options: list[str], wanted: int, moments: random.Random
) -> None:
    """Kill runs on the server until the number of kills reaches `wanted`."""
    arguments = [*options, "--steps", str(SERVICE_STEPS), "--backend", "mint", "--model", server.model]
    variables = {"MINT_API_KEY": "tml-x", "MINT_BASE_URL": server.base_url}
    unbroken = folder / "service-unbroken"
    for path in (folder / "service-warm", unbroken):  # the server compiles for each new shape
        ended = run(path, *arguments, "--output", str(path), **variables)
        assert ended.status == 0, ended.output
    kills = anew = runs = 0
    worst = 0.0
    while kills < wanted:
        runs += 1
        killed = folder / f"service-killed-{runs}"
        counts = run_killed(killed, arguments, SERVICE_STEPS, moments, **variables)
        worst = max(worst, largest_difference(killed, unbroken, folder / "server"))
        kills, anew = kills + counts[0], anew + counts[1]
    print(
        f"service: {runs} runs of {SERVICE_STEPS} steps, {kills} kills, "
        f"{anew} restarted; figures and weights differ by at most {worst:.1e} (bar {TOLERANCE:.0e})"
    )
    assert worst <= TOLERANCE


def largest_difference(folder: Path, unbroken: Path, server_folder: Path) -> float:
    """Return the largest difference of figures (relative if above 1) and final weights of two runs."""
    one, other = figures(folder), figures(unbroken)
    assert [line["step"] for line in one] == [line["step"] for line in other]
    differences = [
        abs(line[name] - expected[name]) / max(1.0, abs(expected[name]))
        for line, expected in zip(one, other, strict=True)
        for name in expected
    ]
    weights, expected_weights = (final_weights(path, server_folder) for path in (folder, unbroken))
    assert weights.keys() == expected_weights.keys()
    differences += [float((weights[name] - expected_weights[name]).abs().max()) for name in weights]
    return max(differences)


def final_weights(folder: Path, server_folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights that a run saved for sampling from the server's folder."""
    last = json.loads((folder / "checkpoints.jsonl").read_text().splitlines()[-1])
    model, *_, name = last["sampler"].removeprefix("tinker://").split("/")
    with tarfile.open(
        server_folder / "checkpoints" / model / "sampler_weights" / f"{name}.tar.gz"
    ) as archive:
        member = next(entry for entry in archive.getmembers() if entry.name.endswith(".safetensors"))
        file = archive.extractfile(member)
        assert file is not None
        return load(file.read())


if __name__ == "__main__":
    main()
