"""Train a linear loss on a server in both forms: one request for logprobs and gradients, and two."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Any
from unittest.mock import patch

import mint_train
from mint_train.backends.mint.client import MintTrainingClient
from mint_train.losses.custom_loss import CustomLoss

FORMS = ("two", "one")


def train(form: str, start: str, steps: int) -> list[str]:
    """Train `sft` in a form, from a run's adapter, in the folder `sft-FORM`; return its steps' requests."""
    requests: list[str] = []

    def counted(name: str) -> Any:
        send = getattr(MintTrainingClient, name)

        def sent(client: MintTrainingClient, *arguments: Any) -> Any:
            requests.append(name)
            return send(client, *arguments)

        return patch.object(MintTrainingClient, name, sent)

    known = CustomLoss.known_gradients if form == "one" else lambda _: None
    with (
        redirect_stdout(sys.stderr),
        patch.object(CustomLoss, "known_gradients", known),
        counted("forward"),
        counted("forward_backward"),
    ):
        mint_train.train(
            "sft",
            data="pairs.jsonl",
            steps=steps,
            lr=1e-3,
            from_checkpoint=start,
            output=f"sft-{form}",
            overwrite=True,
        )
    return requests


def main(start: str, steps: int) -> None:
    """Train in both forms, and print how many requests of each kind there were."""
    found = {}
    for form in FORMS:
        requests = train(form, start, steps)
        found[form] = {name: requests.count(name) for name in ("forward", "forward_backward")}
    print(json.dumps(found))
