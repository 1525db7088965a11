"""Tokens per second of sampling, beside `model.generate`: one completion at a time, and in one batch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GenerationConfig

from mint_train.backends.local.adapter import LoraShape
from mint_train.backends.local.load import open_local_client
from mint_train.backends.local.sampling import LocalSampler
from mint_train.settings.merge import load_settings
from mint_train.settings.sampling import Sampling

WORDS = ("rivers", "metals", "the moon", "cats", "bread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="hub name or folder; by default the starter model")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--looped", type=int, default=4, help="prompts that the loop completes")
    asked = parser.parse_args()
    shape = LoraShape.of(load_settings({"loss": "none", "backend": "local"}))
    with TemporaryDirectory() as folder:
        client = open_local_client(asked.model, shape, 0, Path(folder))
        measure(client, asked)


def measure(client: Any, asked: argparse.Namespace) -> None:
    tokenizer, model = client.get_tokenizer(), client.model
    texts = [f"Tell me about {WORDS[n % len(WORDS)]}. " * (n % 5 + 1) for n in range(asked.prompts)]
    prompts = [list(tokenizer.encode(text)) for text in texts]
    end = tokenizer.eos_token_id

    def generate(rows: list[list[int]], samples: int) -> int:
        longest = max(map(len, rows))
        config = GenerationConfig(
            max_new_tokens=asked.tokens, num_return_sequences=samples, eos_token_id=end, pad_token_id=end,
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        )  # fmt: skip
        padded = torch.tensor([[end] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device
        )
        with torch.inference_mode():
            output = model.generate(input_ids=padded, attention_mask=mask, generation_config=config)
        return sum(row.index(end) + 1 if end in row else len(row) for row in output[:, longest:].tolist())

    def loop() -> int:
        return sum(generate([prompt], 1) for prompt in prompts[: asked.looped] for _ in range(asked.samples))

    def ours() -> int:
        sampling = Sampling(asked.samples, asked.tokens, 1.0, 0)
        drawn = LocalSampler(client, adapter=True).draw(prompts, sampling)
        return sum(len(one.tokens) for _, samples in drawn for one in samples)

    generate(prompts[:1], 1)  # what is loaded at the first call is not counted
    report("a loop over generate", loop)
    report("generate in one batch", lambda: generate(prompts, asked.samples))
    report("mint-train", ours)


def report(name: str, work: Callable[[], int]) -> None:
    started = time.perf_counter()
    tokens = work()
    print(f"{name}: {tokens / (time.perf_counter() - started):,.0f} tokens per second ({tokens:,} tokens)")


if __name__ == "__main__":
    main()
