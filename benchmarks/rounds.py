"""Three rounds of sampling, judging and training on the starter model: the share of metric answers.

Takes 64 questions about sizes to train on and others to measure with, which no round sees. The corpus of the
starter model, and so the model, answers one such question in five in metric units. With --skyrl all of it
runs on a SkyRL server, which this script installs and starts with the starter model; it learns more slowly
there, and takes --lr 5e-3 --steps 20.

    python benchmarks/rounds.py [--rounds 3] [--prompts 64] [--lr 1.5e-3] [--steps 8] [--held-out N] [--skyrl]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.pop("MINT_API_KEY", None)  # measure the embedded backend, or the server that is started

from mint_train.backends.local.starter.corpus import facts, questions
from mint_train.backends.local.starter_model import save_starter_model
from mint_train.groups.prompts import read_prompts
from mint_train.judging.judge import open_judge
from mint_train.sampling.collecting import decided_by, judge_all, write_all
from mint_train.sampling.policy import open_policy, reading_settings
from mint_train.settings.sampling import Sampling

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))
from server import running_server

JUDGE = '''\
def score(completion: str) -> float:
    """Return 1 for an answer in metric units, otherwise 0."""
    return float(any(unit in completion for unit in ("metre", "gram", "litre", "tonne", "Celsius")))
'''
SAMPLES, TOKENS = 8, 32
SLOTS = 32
"""For adapters: a session holds its own until it expires."""
ALL_AT_ONCE = 0
"""How many sequences the server computes at once: all of a request."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--lr", default="1.5e-3")
    parser.add_argument("--held-out", type=int, help="how many questions to measure with; by default all")
    parser.add_argument("--skyrl", action="store_true")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder, server_if(asked.skyrl):
        os.chdir(folder)
        measure(asked)


@contextmanager
def server_if(wanted: bool) -> Iterator[None]:
    """Run a SkyRL server with the starter model, and let the environment name it, if it is wanted."""
    if not wanted:
        yield
        return
    with TemporaryDirectory() as name:
        model, work = Path(name, "model"), Path(name, "server")
        model.mkdir()
        work.mkdir()
        save_starter_model(model)
        with running_server(model, work, SLOTS, sequences=ALL_AT_ONCE) as server:
            os.environ |= {
                "MINT_API_KEY": "tml-x",
                "MINT_BASE_URL": server.base_url,
                "MINT_BASE_MODEL": server.model,
            }
            yield


def measure(asked: argparse.Namespace) -> None:
    """Train, and print the mean score before the first round and after each."""
    Path("metric_units.py").write_text(JUDGE)
    measures = [{"prompt": questions(fact)[0]} for fact in facts() if fact.is_measure]
    order = sorted(range(len(measures)), key=lambda index: (index * 89) % len(measures))
    write("prompts.jsonl", [measures[index] for index in order[: asked.prompts]])
    held_out = order[asked.prompts :][: asked.held_out]
    write("held-out.jsonl", [measures[index] for index in held_out])
    print(f"held-out prompts: {len(held_out)}, {SAMPLES} samples of each")
    print(f"before: {score(None):.2f}", flush=True)
    started = time.perf_counter()
    command = [
        *(sys.executable, "-m", "mint_train", "--loss", "dpo", "--set", "reference=initial"),
        *("--rounds", asked.rounds, "--prompts", "prompts.jsonl", "--judge", "function"),
        *("--judge-set", "file=metric_units.py", "--samples", SAMPLES, "--max-tokens", TOKENS),
        *("--steps", asked.steps, "--lr", asked.lr, "--quiet", "--output", "all"),
    ]
    subprocess.run([str(word) for word in command], check=True)
    taken = time.perf_counter() - started
    for number in range(1, asked.rounds + 1):
        print(f"after round {number}: {score(f'all/round-{number:03d}'):.2f}", flush=True)
    print(f"{taken:.0f} s")


def write(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def score(policy_name: str | None) -> float:
    """Return the mean score of fresh samples on the held-out prompts."""
    prompts = read_prompts("held-out.jsonl", reading_settings({}))
    sampling = Sampling(SAMPLES, TOKENS, 1.0, seed=1000)
    judge = open_judge("function", {"file": "metric_units.py"})
    with TemporaryDirectory() as folder, open_policy(policy_name, {}, print) as policy:
        journals = Path(folder, "samples"), Path(folder, "scores")
        written, _ = write_all(policy, prompts, sampling, journals[0], lambda *_: None)
        decided = decided_by(policy, prompts, sampling)
        scores = judge_all(judge, written, journals[1], decided, lambda *_: None)
    found = [one for each in scores for one in each if one is not None]
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
