"""What a step on the service costs: `mint-train`'s steps against the sequential form, on a real server.

A SkyRL server is started (and installed, the first time), with a proxy before it that holds every message
back. In turn, on the same pairs:

- ours: a run of `mint-train`, which submits a step before the one before it is known to be done;
- recipe: MinT's DPO page: `forward_backward_custom`, await; `optim_step`, await;
- both with a reference: ours computes it once, the recipe asks for it in each step, as tinker-cookbook does.

    python benchmarks/service_latency.py [--delay SECONDS] [--steps N] [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
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
from mint_train.datums import build_completion_tokens, build_datum, build_prompt_tokens
from mint_train.sdk import Datum, mint, types

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "skyrl"))
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
"""By the network and whether there is a reference: how much of the recipe's step ours may take."""


def main() -> None:
    """Measure both forms in turn, over both networks, without and with a reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.25, help="seconds that a message takes each way")
    parser.add_argument("--steps", type=int, default=10, help="steps per turn; the first two do not count")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "server").mkdir()
        save_starter_model(folder / "model")
        data = folder / "pairs.jsonl"
        data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        with running_server(folder / "model", folder / "server") as server:
            missed = measure(server, data, folder, arguments)
    raise SystemExit(1 if missed else 0)


def measure(server: SkyrlServer, data: Path, folder: Path, arguments: argparse.Namespace) -> int:
    """Print a line for each network with and without a reference; return how many bars were missed."""
    missed = 0
    print(f"{len(PAIRS)} pairs a step, medians of {arguments.rounds} turns of {arguments.steps - 2} steps")
    for (network, reference), bar in BARS.items():
        delay = arguments.delay if network == "delayed" else 0.0
        with running_proxy(Proxy(server.base_url)) as proxy:
            recipe = Recipe(proxy.url, server.model)
            ours = Ours(proxy.url, server.model, data, folder / f"{network}-{reference}")
            for form in (ours, recipe):  # the server compiles for each new shape
                form.steps(3, reference=reference)
            proxy.delay = delay
            seconds: dict[str, list[float]] = {"ours": [], "recipe": []}
            for _ in range(arguments.rounds):
                seconds["recipe"] += recipe.steps(arguments.steps, reference=reference)[2:]
                seconds["ours"] += ours.steps(arguments.steps, reference=reference)[2:]
            recipe.close()
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratio = medians["ours"] / medians["recipe"]
        missed += ratio > bar
        print(
            f"{network} ({2000 * delay:.0f} ms there and back), {'with' if reference else 'no'} reference: "
            f"recipe {medians['recipe']:.3f} s, ours {medians['ours']:.3f} s a step, ratio {ratio:.2f} "
            f"(at most {bar}), {ours.waits_per_step():.1f} blocking waits a step",
            flush=True,
        )
    return missed


class Ours:
    """Runs of `mint-train`, as a user starts them."""

    def __init__(self, url: str, model: str, data: Path, folder: Path) -> None:
        self.url, self.model, self.data, self.folder = url, model, data, folder
        self.waits: dict[int, int] = {}
        """By the number of steps, how often a run blocked."""

    def steps(self, steps: int, *, reference: bool) -> list[float]:
        """Run some steps in a run of their own; return the seconds that each took."""
        with contextlib.redirect_stdout(io.StringIO()), counted_waits() as waits:
            mint_train.train(
                "dpo",
                data=self.data,
                backend="mint",
                model=self.model,
                base_url=self.url,
                api_key=KEY,
                steps=steps,
                lr=LEARNING_RATE,
                batch_size=len(PAIRS),
                output=self.folder,
                overwrite=True,
                options={"reference": "initial", "beta": BETA} if reference else {},
            )
        self.waits[steps] = len(waits)
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [line["seconds"] for line in lines]

    def waits_per_step(self) -> float:
        """Count a step's waits, without those of opening and saving: from a short and a longer run."""
        short, longer = min(self.waits), max(self.waits)
        return (self.waits[longer] - self.waits[short]) / (longer - short)


class Recipe:
    """The loop of MinT's DPO page; with a reference, that of tinker-cookbook's DPO."""

    def __init__(self, url: str, model: str) -> None:
        service = mint.ServiceClient(base_url=url, api_key=KEY)
        self.client = service.create_lora_training_client(base_model=model, rank=16, seed=0)
        self.reference = service.create_sampling_client(base_model=model)
        tokenizer = self.client.get_tokenizer()
        self.data = [
            build_datum(
                build_prompt_tokens(pair["prompt"], tokenizer),
                build_completion_tokens(pair[side], tokenizer),
                None,
            )
            for pair in PAIRS
            for side in ("chosen", "rejected")
        ]

    def close(self) -> None:
        """End the session, which the SDK would keep alive."""
        self.client.holder.close()  # type: ignore[no-untyped-call]

    def steps(self, steps: int, *, reference: bool) -> list[float]:
        """Take some steps, each awaited to its end; return the seconds that each took."""
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
        """Ask for each sequence's logprobs, all requests in flight together."""
        futures = []
        for datum in self.data:
            tokens = [*datum.model_input.to_ints(), datum.loss_fn_inputs["target_tokens"].data[-1]]
            futures.append(self.reference.compute_logprobs(types.ModelInput.from_ints(tokens)))
        targets = [len(datum.loss_fn_inputs["target_tokens"].data) for datum in self.data]
        # some servers answer without the first token's None
        return [
            torch.tensor(future.result()[-length:]) for future, length in zip(futures, targets, strict=True)
        ]


def pairwise_loss(
    data: list[Datum], logprobs: list[torch.Tensor], references: list[torch.Tensor] | None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute the page's loss, or DPO's with a reference."""
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
def counted_waits() -> Iterator[set[int]]:
    """Collect the futures that the main thread had to wait for during the steps' requests."""
    waited: dict[int, Future[Any]] = {}
    result = Future.result

    def counted(self: Future[Any], timeout: float | None = None) -> Any:
        if threading.current_thread() is threading.main_thread() and not self.done():
            waited[id(self)] = self  # kept, so that no other future gets its id
        return result(self, timeout)

    waits: set[int] = set()
    Future.result = counted  # type: ignore[method-assign]
    try:
        yield waits
    finally:
        Future.result = result  # type: ignore[method-assign]
        waits.update(waited)


if __name__ == "__main__":
    main()
