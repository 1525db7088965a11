"""Train where a second adapter computes references, however few they are, or where one is refused."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Any
from unittest.mock import patch

import mint_train
from mint_train.errors import BackendError
from mint_train.groups.reference_ahead import SecondAdapter
from mint_train.training import references


def refuse(_: Any) -> Any:
    """Stand for a service without a second slot."""
    raise BackendError("no slot left")


def main(start: str, data: str, output: str, refused: bool) -> None:
    """Train from a run's adapter, and print how many requests the second adapter had."""
    asked: list[int] = []
    forward = SecondAdapter.forward

    def noted(self: SecondAdapter, datums: list[Any], loss_fn: str) -> Any:
        asked.append(len(datums))
        return forward(self, datums, loss_fn)

    with (
        redirect_stdout(sys.stderr),
        patch.object(references, "FEW_BLOCKS", 0),
        patch.object(references, "open_start", refuse if refused else references.open_start),
        patch.object(SecondAdapter, "forward", noted),
    ):
        mint_train.train(
            "dpo", options={"reference": "initial"}, data=data, batch_size=2, steps=6, lr=1e-3,
            from_checkpoint=start, output=output,
        )  # fmt: skip
    print(json.dumps(len(asked)))
