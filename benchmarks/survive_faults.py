"""Run on a faulty network and a restarted server: figures must equal those of an undisturbed run.

A SkyRL server is started behind a proxy that disturbs one request in ten: connections reset before or after
they reach the server, requests delayed by seconds, truncated answers, and status 500 before or after the
server's work. Finally the server is stopped in the middle of a run and restarted on its database.

    python benchmarks/survive_faults.py [--runs N] [--rate CHANCE] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

from mint_train.backends.local.starter_model import save_starter_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))
from killed_runs import Ended, figures, run
from proxy import Proxy, running_proxy
from server import running_server

TOLERANCE = 1e-4
SLOTS = 32
"""For adapters: a run that is killed, or loses its session, holds its own for five minutes."""
STEPS = 12
PAIRS = [
    {"prompt": f"Say {word}.", "chosen": f"{word} it is", "rejected": f"{word} is it not"}
    for word in ("one", "two", "six", "ten")
]


def main() -> None:
    """Run undisturbed, with faults, and with a restart of the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1, help="chance that a request is disturbed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_proxy(Proxy("")) as proxy:
        folder = Path(name)
        for part in ("model", "server"):
            (folder / part).mkdir()
        save_starter_model(folder / "model")
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        runs = Runs(folder, proxy)
        with running_server(folder / "model", folder / "server", SLOTS) as server:
            proxy.target = server.base_url
            for unbroken in ("warm", "unbroken"):  # the server compiles for each new shape
                runs.finish(unbroken)
            for number in range(arguments.runs):
                proxy.reseed(arguments.seed + number)
                proxy.rate = arguments.rate
                runs.finish(f"faults-{number}")
            proxy.rate = 0.0
            restarted = threading.Thread(target=runs.finish, args=("restarted",))
            restarted.start()
            metrics = folder / "restarted" / "metrics.jsonl"
            while not metrics.exists() or len(metrics.read_text().splitlines()) < STEPS // 2:
                time.sleep(0.1)
        with running_server(folder / "model", folder / "server", SLOTS) as server:
            proxy.target = server.base_url
            restarted.join()
    raise SystemExit(runs.worst > TOLERANCE)


class Runs:
    """Runs through the proxy, each compared with the undisturbed one."""

    def __init__(self, folder: Path, proxy: Proxy) -> None:
        self.folder, self.proxy = folder, proxy
        self.worst = 0.0

    def finish(self, name: str) -> None:
        """Run to the end, and print what happened."""
        self.proxy.requests.clear()
        self.proxy.spoilt.clear()
        began = time.monotonic()
        ended = self.run(self.folder / name)
        seconds = time.monotonic() - began
        assert ended.status == 0, ended.output
        if name == "warm":
            return
        difference = largest_difference(figures(self.folder / name), figures(self.folder / "unbroken"))
        self.worst = max(self.worst, difference)
        print(
            f"{name}: {STEPS} steps in {seconds:.0f} s, {self.proxy.requests.total()} requests, "
            f"{self.proxy.spoilt.total()} disturbed, {ended.output.count('going back')} rollbacks to a "
            f"checkpoint; figures differ by at most {difference:.1e} (bar {TOLERANCE:.0e})",
            flush=True,
        )

    def run(self, folder: Path) -> Ended:
        """Run `mint-train` on the server behind the proxy."""
        return run(
            folder,
            "--loss", "dpo", "--set", "reference=initial", "--data", str(self.folder / "pairs.jsonl"),
            "--steps", str(STEPS), "--save-every", "2", "--lr", "1e-3", "--max-retries", "8",
            "--backend", "mint", "--model", str(self.folder / "model"), "--output", str(folder),
            MINT_API_KEY="tml-x", MINT_BASE_URL=self.proxy.url,
        )  # fmt: skip


def largest_difference(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Return the largest difference of the figures of two runs, relative if above 1."""
    assert [line["step"] for line in one] == [line["step"] for line in other]
    return max(
        abs(line[name] - expected[name]) / max(1.0, abs(expected[name]))
        for line, expected in zip(one, other, strict=True)
        for name in expected
    )


if __name__ == "__main__":
    main()
