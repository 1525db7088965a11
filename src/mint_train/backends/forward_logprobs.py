"""Forwards of many datums without gradients: a bounded number of requests in flight, each of bounded size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from mint_train.backends.base import Forwards, Future
from mint_train.batches.datums import input_length
from mint_train.errors import BackendError
from mint_train.run_folder.token_counts import Sent, uncounted
from mint_train.sdk import Datum

LOGPROBS = "logprobs"
DATUMS_PER_REQUEST = 64
"""Enough to keep the backend busy, few enough to bound a request."""
MOST_IN_FLIGHT = 16
"""Requests that are sent before the first one is awaited."""


def forward_logprobs(data: Iterable[Datum], client: Forwards) -> Iterator[torch.Tensor]:
    """Yield the logprobs of the datums' target tokens, as `forward_values` does."""
    return (values[LOGPROBS] for values in forward_values(data, client))


def forward_values(
    data: Iterable[Datum], client: Forwards, vocabulary: Sequence[str] = (), *, sent: Sent = uncounted
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield what a forward gives of each datum: by name, float32 `[target tokens]`.

    "logprobs" are those of the target tokens, in nats; what is asked of the vocabulary stands beside them.
    Memory holds what is in flight, however many datums there are. `sent` is told the tokens of each request.

    Raises:
        BackendError: a forward failed, or gave something else than one finite number per target token.
    """
    return forward_parts(requests_of(data), client, vocabulary, sent=sent)


def requests_of(data: Iterable[Datum]) -> Iterator[list[Datum]]:
    """Divide datums into requests of bounded size."""
    datums = iter(data)
    return iter(lambda: list(islice(datums, DATUMS_PER_REQUEST)), [])


def forward_parts(
    parts: Iterable[list[Datum]], client: Forwards, vocabulary: Sequence[str] = (), *, sent: Sent = uncounted
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield what `forward_values` does, for datums that are divided into requests, none of them empty."""
    remaining = iter(parts)
    in_flight: deque[tuple[list[Datum], Future[Any]]] = deque()
    while True:
        for part in islice(remaining, MOST_IN_FLIGHT - len(in_flight)):
            in_flight.append((part, client.forward(part, "cross_entropy")))
            sent(sum(map(input_length, part)))
        if not in_flight:
            return
        part, future = in_flight.popleft()
        for output, datum in zip(future.result().loss_fn_outputs, part, strict=True):
            targets = len(datum.loss_fn_inputs["target_tokens"].to_numpy())
            values = {name: output[name].to_torch().float().flatten() for name in (LOGPROBS, *vocabulary)}
            for name, found in values.items():
                finite = int(torch.isfinite(found).sum())
                if len(found) != targets or finite != targets:
                    raise BackendError(f"a forward gave {finite} finite {name} for {targets} target tokens")
            yield values
