"""Time of a step on the service: `mint-train` beside the sequential recipe, on a real server.

A SkyRL server is started for each line (and installed the first time), behind a proxy that delays every
message. The server has few adapter slots, because each slot costs server time in every step. The two sides
take turns on the same pairs:

- ours: a run of `mint-train`, which submits a step before the previous one is confirmed if that is faster;
  the steps that count are those from the third one on;
- recipe: MinT's DPO page: `forward_backward_custom`, await; `optim_step`, await;
- with a reference, ours computes it once, and the recipe asks for it in each step, as tinker-cookbook does.

    python benchmarks/service_latency.py [--delay SECONDS] [--steps N] [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

import mint_train
from mint_train.backends.local.starter_model import save_starter_model
from mint_train.batches.datums import build_datum
from mint_train.rendering.recipe import build_completion_tokens
from mint_train.rendering.renderer import Renderer
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import StepRecord
from mint_train.sdk import Datum, mint, types

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))
from proxy import Proxy, running_proxy
from server import SkyrlServer, running_server

KEY = "tml-x"
LEARNING_RATE = 1e-4
BETA = 0.1
PAIRS = [
    {"prompt": f"Say {word}.", "chosen": f"{word} it is", "rejected": f"{word} is it not"}
    for word in ("one", "two", "six", "ten")
]
BARS = {("direct", False): 0.85, ("delayed", False): 0.7, ("direct", True): 0.5, ("delayed", True): 0.5}
"""Largest allowed ratio of our step to the recipe's, by network and use of a reference."""
WARM_STEPS = 2
"""First steps of each of our runs, which do not count."""


def main() -> None:
    """Measure both sides in turn, on both networks, without and with a reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.25, help="delay of a message in seconds, each way")
    parser.add_argument("--steps", type=int, default=12, help="steps per turn")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["MINT_API_KEY"] = KEY
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        save_starter_model(folder / "model")
        data = folder / "pairs.jsonl"
        data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        print(f"{len(PAIRS)} pairs per step, medians of {arguments.rounds} turns of {arguments.steps} steps")
        missed = 0
        for network, reference in BARS:
            work = folder / f"{network}-{reference}"
            work.mkdir()
            # a slot for each of our runs and the warm-up, for the recipe and for the base
            with running_server(folder / "model", work, adapters=arguments.rounds + 3, sequences=0) as server:
                missed += measure(server, network, reference, data, work, arguments)
    raise SystemExit(1 if missed else 0)


def measure(
    server: SkyrlServer, network: str, reference: bool, data: Path, work: Path, arguments: argparse.Namespace
) -> bool:
    """Print a line for a network, with or without a reference; return whether the bar was missed."""
    delay = arguments.delay if network == "delayed" else 0.0
    with running_proxy(Proxy(server.base_url)) as proxy:
        recipe = Recipe(proxy.url, server.model)
        ours = Ours(proxy.url, server.model, data, work / "run")
        proxy.delay = delay
        ours.steps(WARM_STEPS, reference=reference)  # the server compiles for each new shape
        recipe.steps(2, reference=reference)
        seconds: dict[str, list[float]] = {"ours": [], "recipe": []}
        for _ in range(arguments.rounds):
            seconds["recipe"] += recipe.steps(arguments.steps, reference=reference)
            of_run = ours.steps(WARM_STEPS + arguments.steps, reference=reference)
            seconds["ours"] += of_run[WARM_STEPS:]
        recipe.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio, bar = medians["ours"] / medians["recipe"], BARS[network, reference]
    print(
        f"{network} ({2000 * delay:.0f} ms there and back), {'with' if reference else 'no'} reference: "
        f"recipe {medians['recipe']:.3f} s, ours {medians['ours']:.3f} s per step, ratio {ratio:.2f} "
        f"(at most {bar}), {ours.waits_per_step():.1f} blocking waits per step",
        flush=True,
    )
    return ratio > bar


class Ours:
    """Runs of `mint-train`, as a user starts them."""

    def __init__(self, url: str, model: str, data: Path, folder: Path) -> None:
        self.url, self.model, self.data, self.folder = url, model, data, folder
        self.waits: list[int] = []
        """Number of blocking waits before each step of the last run was recorded."""

    def steps(self, steps: int, *, reference: bool) -> list[float]:
        """Take steps in a new run; return the seconds of each."""
        with contextlib.redirect_stdout(io.StringIO()), counted_waits() as self.waits:
            mint_train.train(
                "dpo",
                data=self.data,
                backend="mint",
                model=self.model,
                base_url=self.url,
                steps=steps,
                lr=LEARNING_RATE,
                batch_size=len(PAIRS),
                output=self.folder,
                overwrite=True,
                options={"reference": "initial", "beta": BETA} if reference else {},
            )
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [line["seconds"] for line in lines]

    def waits_per_step(self) -> float:
        """Return the last run's waits per step, without the warm-up and the final save."""
        counted = self.waits[WARM_STEPS - 1 : -1]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


class Recipe:
    """The loop of MinT's DPO page; with a reference, the loop of tinker-cookbook's DPO."""

    def __init__(self, url: str, model: str) -> None:
        service = mint.ServiceClient(base_url=url, api_key=KEY)
        self.client = service.create_lora_training_client(base_model=model, rank=16, seed=0)
        self.reference = service.create_sampling_client(base_model=model)
        tokenizer = self.client.get_tokenizer()
        self.data = [
            build_datum(
                Renderer(tokenizer).prompt_tokens(pair["prompt"]),
                build_completion_tokens(pair[side], tokenizer),
                None,
            )
            for pair in PAIRS
            for side in ("chosen", "rejected")
        ]

    def close(self) -> None:
        """End the session; otherwise the SDK keeps it alive."""
        self.client.holder.close()  # type: ignore[no-untyped-call]

    def steps(self, steps: int, *, reference: bool) -> list[float]:
        """Take steps, awaiting each request; return the seconds of each."""
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            references = self.reference_logprobs() if reference else None

            def loss(
                data: list[Datum], logprobs: list[torch.Tensor], references: Any = references
            ) -> tuple[torch.Tensor, dict[str, float]]:
                return pairwise_loss(data, logprobs, references)

            self.client.forward_backward_custom(self.data, loss).result()
            self.client.optim_step(types.AdamParams(learning_rate=LEARNING_RATE)).result()
            seconds.append(time.perf_counter() - began)
        return seconds

    def reference_logprobs(self) -> list[torch.Tensor]:
        """Request every sequence's logprobs, with all requests in flight at once."""
        futures = []
        for datum in self.data:
            tokens = [*datum.model_input.to_ints(), datum.loss_fn_inputs["target_tokens"].data[-1]]
            futures.append(self.reference.compute_logprobs(types.ModelInput.from_ints(tokens)))
        targets = [len(datum.loss_fn_inputs["target_tokens"].data) for datum in self.data]
        # some servers leave out the None of the first token
        return [
            torch.tensor(future.result()[-length:]) for future, length in zip(futures, targets, strict=True)
        ]


def pairwise_loss(
    data: list[Datum], logprobs: list[torch.Tensor], references: list[torch.Tensor] | None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute the page's loss, or DPO with a reference."""
    scores = []
    for position, (datum, logprob) in enumerate(zip(data, logprobs, strict=True)):
        weights = datum.loss_fn_inputs["weights"].to_torch()
        score = torch.dot(logprob.flatten().float(), weights)
        if references is not None:
            score = BETA * (score - torch.dot(references[position].float(), weights))
        scores.append(score)
    margins = torch.stack(scores[::2]) - torch.stack(scores[1::2])
    loss = -logsigmoid(margins).mean()
    return loss, {"loss": float(loss.detach())}


@contextmanager
def counted_waits() -> Iterator[list[int]]:
    """Record, at each step, how many futures the main thread has had to wait for."""
    waited: dict[int, Future[Any]] = {}
    counts: list[int] = []
    result, append_step = Future.result, RunFolder.append_step

    def counted(self: Future[Any], timeout: float | None = None) -> Any:
        if threading.current_thread() is threading.main_thread() and not self.done():
            waited[id(self)] = self  # keep it alive, so that no other future gets its id
        return result(self, timeout)

    def marked(folder: RunFolder, record: StepRecord) -> None:
        append_step(folder, record)
        counts.append(len(waited))

    Future.result = counted  # type: ignore[method-assign]
    RunFolder.append_step = marked  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Future.result = result  # type: ignore[method-assign]
        RunFolder.append_step = append_step  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
