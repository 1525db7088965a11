"""The experiments that prove gradients: short texts, weights of their tokens, and what must follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mint_train.sdk import Datum, types

# ids that any vocabulary has; the short text is the beginning of the long one, so both share its logprobs
LONG_TEXT = (11, 57, 23, 90, 41, 66, 35, 78, 19, 84, 52, 30, 73, 47)
SHORT_TEXT = LONG_TEXT[:9]
SHORT, LONG = len(SHORT_TEXT) - 1, len(LONG_TEXT) - 1
PREFIX_WEIGHTS = np.zeros(LONG, np.float32)
PREFIX_WEIGHTS[3:SHORT] = (1.0, 0.5, 0.25, 2.0, 0.75)
"""All positive, on tokens that both texts have; the first tokens stand for a prompt."""
TAIL_WEIGHTS = np.zeros(LONG, np.float32)
TAIL_WEIGHTS[SHORT:] = (1.0, -0.5, 2.0, -1.5, 0.25)
"""Of both signs, on tokens that only the long text has."""
NOTHING = np.zeros(LONG, np.float32)
LARGE = 1000.0
"""Two weights of this size nearly cancel; bfloat16, with steps of 4 there, rounds both to the same value."""

Row = tuple[bool, np.ndarray]
"""Whether the text is the long one, and its weights `[LONG]`."""
Experiment = Sequence[Sequence[Row]]
"""The requests that are sent before one update, each with its rows."""


def both(short: np.ndarray, long: np.ndarray) -> list[Row]:
    """Return the rows of a request with both texts."""
    return [(False, short), (True, long)]


@dataclass(frozen=True, slots=True)
class Check:
    """An experiment, and the movement that it must show."""

    name: str
    fault: str
    """What is wrong where it does not."""
    experiment: Experiment
    base: float = 0.0
    """How many times the movement by `PREFIX_WEIGHTS`."""
    tail: float = 0.0
    """How many times the movement by `TAIL_WEIGHTS`."""


STILL: Experiment = [both(NOTHING, NOTHING)]
BASE: Experiment = [both(PREFIX_WEIGHTS, NOTHING)]
TAIL: Experiment = [both(NOTHING, TAIL_WEIGHTS)]
CHECKS = (
    Check(
        "twice the weights",
        "it normalises weights: twice the weights do not give twice the gradient",
        [both(2 * PREFIX_WEIGHTS, NOTHING)],
        base=2,
    ),
    Check(
        "the same tokens in a longer text",
        "it divides a text's gradient by the text's length",
        [both(NOTHING, PREFIX_WEIGHTS)],
        base=1,
    ),
    Check(
        "one datum instead of two",
        "it takes the mean over the datums of a request, not their sum",
        [[(True, PREFIX_WEIGHTS)]],
        base=1,
    ),
)
"""With positive weights only: an adapter survives them on a service that divides by their sum."""
SIGNED_CHECKS = (
    Check(
        "negative weights",
        "it does not carry out negative weights",
        [both(-1.5 * PREFIX_WEIGHTS, NOTHING)],
        base=-1.5,
    ),
    Check(
        "two texts, weights of both signs",
        "the gradients of two texts do not add up",
        [both(0.75 * PREFIX_WEIGHTS, -1.25 * TAIL_WEIGHTS)],
        base=0.75,
        tail=-1.25,
    ),
    Check(
        "two requests before one update",
        "the gradients of two requests before one update do not add up",
        [[(True, TAIL_WEIGHTS)], [(True, 0.5 * PREFIX_WEIGHTS)]],
        base=0.5,
        tail=1,
    ),
)
CANCELLING: Experiment = [both(LARGE * PREFIX_WEIGHTS, -(LARGE + 1) * PREFIX_WEIGHTS)]
"""Their sum is minus `PREFIX_WEIGHTS`."""
MIXED = Check(
    "all of it at once",
    "the gradients of tokens, texts and requests do not add up",
    [*CANCELLING, [(True, 2.5 * PREFIX_WEIGHTS)]],
    base=1.5,
)
"""Wrong in every form that fails another check, but does not show which one."""


def text_datum(text: Sequence[int]) -> Datum:
    """Return a text as a datum without weights."""
    targets = types.TensorData.from_numpy(np.array(text[1:], dtype=np.int64))
    return Datum(
        model_input=types.ModelInput.from_ints(list(text[:-1])), loss_fn_inputs={"target_tokens": targets}
    )


TEXTS = (text_datum(SHORT_TEXT), text_datum(LONG_TEXT))


def has_weights(experiment: Experiment) -> bool:
    """Return whether an experiment sends any weight."""
    return any(bool(weights.any()) for request in experiment for _, weights in request)
