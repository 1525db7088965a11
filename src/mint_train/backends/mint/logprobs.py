"""What a service answers as logprobs, checked: a wrong number would be trained on in silence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mint_train.sdk import types

ROUNDING = 1e-2
"""How far above 0 rounding in bfloat16 may take the logprob of a token that is all but certain."""


def logprob_leaves(answer: types.ForwardBackwardOutput) -> list[torch.Tensor]:
    """Return the logprobs of an answer, float32 `[target tokens]` per datum, requiring grad."""
    read = [output["logprobs"].to_torch().float() for output in answer.loss_fn_outputs]
    return [logprob.clone().requires_grad_() for logprob in read]


def logprobs_problem(answer: types.ForwardBackwardOutput, counts: Sequence[int]) -> str | None:
    """Say what is wrong with the logprobs of an answer, or return None.

    Args:
        answer: the service's.
        counts: per datum that was sent, its target tokens.
    """
    outputs = answer.loss_fn_outputs
    if len(outputs) != len(counts):
        return f"answered with logprobs of {len(outputs)} datums for the {len(counts)} that it was sent"
    for number, (output, count) in enumerate(zip(outputs, counts, strict=True), start=1):
        if "logprobs" not in output:
            return f"answered without logprobs for datum {number} of {len(counts)}"
        try:
            values = np.asarray(output["logprobs"].to_numpy(), dtype=np.float64)
        except (TypeError, ValueError) as error:
            return f"answered with logprobs of datum {number} that cannot be read: {error}"
        if values.size != count:
            return f"answered with {values.size} logprobs for the {count} target tokens of datum {number}"
        worst = values[~((values <= ROUNDING) & (values >= np.finfo(np.float32).min))]
        if worst.size:
            return (
                f"answered with a logprob of {worst[0]:g} for datum {number}; none can be above 0 or so low"
            )
    return None
