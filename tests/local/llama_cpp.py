"""Ask llama.cpp's own server for tokens, next tokens and a chat, of each GGUF file that stdin names.

Run as a process of its own: its threads end with it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from typing import Any

import xllamacpp

Answer = tuple[list[list[int]], list[list[tuple[int, float]]], str]
"""Of one model: the tokens of each text, the likeliest next tokens of each prompt, a chat as text."""


def ask(server: xllamacpp.Server, route: str, body: dict[str, Any]) -> Any:
    """Post one request."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + route, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def answer(path: str, texts: Sequence[str], prompts: Sequence[Sequence[int]]) -> Answer:
    """Load a model and ask."""
    given = xllamacpp.CommonParams()
    given.model.path, given.n_ctx, given.n_parallel, given.warmup = path, 512, 1, False
    given.cpuparams.n_threads = 1
    server = xllamacpp.Server(given)
    text = {"add_special": False, "parse_special": True}
    tokens = [ask(server, "/tokenize", text | {"content": each})["tokens"] for each in texts]
    next_tokens = []
    for prompt in prompts:
        one = {"prompt": prompt, "n_predict": 1, "n_probs": 20, "cache_prompt": False, "temperature": 0}
        likeliest = ask(server, "/completion", one)["completion_probabilities"][0]["top_logprobs"]
        next_tokens.append([(each["id"], each["logprob"]) for each in likeliest])
    chat = ask(server, "/apply-template", {"messages": [{"role": "user", "content": "Hi"}]})["prompt"]
    return tokens, next_tokens, chat


if __name__ == "__main__":
    print("ANSWERS", json.dumps([answer(*each) for each in json.load(sys.stdin)]), flush=True)
    os._exit(0)
