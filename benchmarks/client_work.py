"""The client's CPU time per step on the service: this project's share beside the SDK's.

`mint-train` trains on 1,024 pairs of 512 tokens per side against a small service in another process, which
computes nothing and answers at once. Only the client's CPU time counts. Ours is the time of the runner's
thread (batches, checks, records), of the loss, and of the token lists that datums make when the SDK asks for
them; the rest is the SDK's (JSON, tensors, HTTP).

    python benchmarks/client_work.py [--pairs N] [--tokens N] [--steps N]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import mint_train
from mint_train.backends.local.starter_model import save_starter_model
from mint_train.batches.datums import ArrayDatum
from mint_train.losses.custom_loss import CustomLoss
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import StepRecord

BAR = 0.05
WARM_STEPS = 2


def main() -> None:
    """Run, and print both parts of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    meter = Meter()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "model").mkdir()
        save_starter_model(folder / "model")
        data = folder / "pairs.jsonl"
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(arguments.pairs, arguments.tokens)))
        url = stack.enter_context(idle_service(str(folder / "model")))
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        meter.install()
        os.environ["MINT_API_KEY"] = "tml-x"
        mint_train.train(
            "dpo",
            data=data,
            backend="mint",
            model=str(folder / "model"),
            base_url=url,
            trust_gradients=True,  # this service has none
            max_length=arguments.tokens,
            batch_size=arguments.pairs,
            steps=arguments.steps + WARM_STEPS,
            output=folder / "run",
        )
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    meter.report(arguments.pairs, lines[-1]["tokens"])


class Meter:
    """Measures the CPU time per step of the process, the runner's thread, the loss and token lists."""

    def __init__(self) -> None:
        self.loss = self.lists = 0.0
        self.marks: list[tuple[float, float, float, float]] = []

    def install(self) -> None:
        """Read the clocks whenever the loss is called, a list is made or a step is recorded."""
        call, append_step = CustomLoss.__call__, RunFolder.append_step
        model_input = vars(ArrayDatum)["model_input"]
        make_list = model_input.func

        def timed_call(custom_loss: CustomLoss, data: Any, logprobs: Any) -> Any:
            began = time.thread_time()
            try:
                return call(custom_loss, data, logprobs)
            finally:
                self.loss += time.thread_time() - began

        def timed_list(datum: ArrayDatum) -> Any:
            began = time.thread_time()
            made = make_list(datum)
            if (
                threading.current_thread() is not threading.main_thread()
            ):  # else it is part of the runner's time
                self.lists += time.thread_time() - began
            return made

        def marked(folder: RunFolder, record: StepRecord) -> None:
            append_step(folder, record)
            self.marks.append((time.process_time(), time.thread_time(), self.loss, self.lists))

        CustomLoss.__call__ = timed_call  # type: ignore[method-assign]
        RunFolder.append_step = marked  # type: ignore[method-assign]
        model_input.func = timed_list

    def report(self, pairs: int, tokens: int) -> None:
        """Print the medians over the steps, and exit with 1 where the bar is missed."""
        # no next step is submitted before the last one is recorded
        steps = [
            tuple(after - before for before, after in zip(one, other, strict=True))
            for one, other in itertools.pairwise(self.marks[WARM_STEPS - 1 : -1])
        ]
        process, runner, loss, lists = (statistics.median(values) for values in zip(*steps, strict=True))
        ours = runner + loss + lists
        sdk = process - ours
        print(f"{pairs} pairs, {tokens} target tokens per step, CPU seconds on the client, medians")
        print(f"the SDK {sdk:.3f} s; ours {ours:.3f} s: ", end="")
        print(f"runner {runner:.3f} s, loss {loss:.3f} s, lists of tokens {lists:.3f} s")
        print(f"ours is {ours / sdk:.1%} of the SDK's (at most {BAR:.0%})")
        raise SystemExit(ours / sdk > BAR)


def pairs(number: int, tokens: int) -> list[dict[str, str]]:
    """Make pairs of which both sides have at least `tokens` tokens."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    text = " ".join(words * (tokens // 4))
    return [
        {"prompt": f"Count {index}.", "chosen": f"yes {text}", "rejected": f"no {text}"}
        for index in range(number)
    ]


@contextlib.contextmanager
def idle_service(model: str) -> Any:
    """Run the small service in its own process and yield its address."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(model, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def serve(model: str, parent: Connection) -> None:
    """Answer every request of a run; passes get logprobs of the right lengths."""
    results: dict[str, bytes] = {}
    numbers = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            text = self.text(self.path.rpartition("/")[2], body)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer  # noqa: N815 - http.server's names

        def text(self, name: str, body: dict[str, Any]) -> bytes:
            if name == "retrieve_future":
                return results.pop(body["request_id"])
            if name in ("forward", "forward_backward"):
                key = "forward_input" if name == "forward" else "forward_backward_input"
                lengths = [
                    len(datum["loss_fn_inputs"]["target_tokens"]["data"]) for datum in body[key]["data"]
                ]
                outputs = [
                    {"logprobs": {"data": logprobs(length), "dtype": "float32", "shape": [length]}}
                    for length in lengths
                ]
                result = {"loss_fn_output_type": "scalar", "loss_fn_outputs": outputs, "metrics": {}}
            elif name == "create_model":
                result = {"model_id": "model_1", "type": "create_model"}
            elif name in ("save_weights", "save_weights_for_sampler"):
                result = {"path": "tinker://model_1/weights/one", "type": name}
            elif name in ("optim_step", "unload_model"):
                result = {"model_id": "model_1", "type": name}
            else:
                return json.dumps(
                    {
                        "session_id": "session_1",
                        "supported_models": [{"model_name": model}],
                        "type": "get_info" if name == "get_info" else name,
                        "model_id": "model_1",
                        "model_data": {"model_name": model, "tokenizer_id": model, "base_model": model},
                    }
                ).encode()
            request_id = str(next(numbers))
            results[request_id] = json.dumps(result).encode()
            return json.dumps({"request_id": request_id}).encode()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    parent.send(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


def logprobs(length: int) -> list[float]:
    """Make logprobs that are as long in JSON as those of a real model."""
    return [-0.1234567890123456 - 0.001 * (index % 997) for index in range(length)]


if __name__ == "__main__":
    main()
