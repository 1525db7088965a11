"""Logprobs of many datums without gradients: all requests in flight together, each of a bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mint_train.backends.base import TrainingClient
from mint_train.errors import BackendError
from mint_train.sdk import Datum

DATUMS_PER_REQUEST = 64
"""Enough to keep the backend busy, few enough to bound a request."""


def forward_logprobs(data: Sequence[Datum], client: TrainingClient) -> list[torch.Tensor]:
    """Compute the logprobs of the datums' target tokens, nats: per datum float32 `[target tokens]`.

    Raises:
        BackendError: a forward failed, or gave something else than one finite number per target token.
    """
    starts = range(0, len(data), DATUMS_PER_REQUEST)
    futures = [
        client.forward(list(data[start : start + DATUMS_PER_REQUEST]), "cross_entropy") for start in starts
    ]
    outputs = [output for future in futures for output in future.result().loss_fn_outputs]
    logprobs = [output["logprobs"].to_torch().float().flatten() for output in outputs]
    for logprob, datum in zip(logprobs, data, strict=True):
        targets = len(datum.loss_fn_inputs["target_tokens"].to_numpy())
        if len(logprob) != targets or not torch.isfinite(logprob).all():
            finite = int(torch.isfinite(logprob).sum())
            raise BackendError(f"a forward gave {finite} finite logprobs for {targets} target tokens")
    return logprobs
