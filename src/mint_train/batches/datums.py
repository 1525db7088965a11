"""Datums: one sequence's tokens, targets and weights, and what a loss attaches to it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np

from mint_train.errors import DoesNotFit
from mint_train.sdk import Datum, types

Attachment: TypeAlias = float | Sequence[float]


@dataclass(frozen=True, slots=True)
class AttachedDatum:
    """A datum with the numbers that its loss needs and that the SDK has no field for."""

    datum: Datum
    attached: Mapping[str, Attachment]


def attach(datum: Datum, **values: Attachment) -> AttachedDatum:
    """Attach numbers to a datum for its loss: one, or one per target token.

    Args:
        datum: the datum.
        values: by name, a float (a label, a score) or a sequence of as many floats as target tokens
            (old logprobs, advantages).
    """
    return AttachedDatum(datum, values)


def over_completion(datum: Datum, values: Sequence[float]) -> list[float]:
    """Lay values of a completion's tokens over its datum's target tokens, with 0.0 over the prompt.

    Args:
        datum: whose completion `max_length` may have cut.
        values: one per token of the whole completion; those of tokens that were cut off are left out.

    Returns:
        One per target token, as `attach` takes them.
    """
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    return [*[0.0] * (prompt_length(weights) - 1), *values][: len(weights)]


class ArrayDatum(Datum):
    """The SDK's datum made of arrays; the list of its input tokens is built on first use.

    A datum that is only checked and written to disk never needs that list, nor does the embedded backend.
    """

    inputs: np.ndarray
    """int64 `[target tokens]`"""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Take the arrays as they are.

        Args:
            inputs: int64 `[target tokens]`.
            targets: int64 `[target tokens]`.
            weights: float32 `[target tokens]`.
        """
        shape = [len(targets)]
        tensors = {
            "target_tokens": types.TensorData(targets, "int64", shape),
            "weights": types.TensorData(weights, "float32", shape),
        }
        # the SDK's class is frozen
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "loss_fn_inputs", tensors)

    @cached_property
    def model_input(self) -> types.ModelInput:
        """The input tokens as the SDK sends them."""
        # already integers; the SDK would validate each one again, which takes as long as everything else here
        chunk = types.EncodedTextChunk.model_construct(tokens=self.inputs.tolist())
        return types.ModelInput.model_construct(chunks=[chunk])


def input_length(datum: Datum) -> int:
    """Count the tokens of a datum's model input."""
    return len(datum.inputs) if isinstance(datum, ArrayDatum) else int(datum.model_input.length)


def build_datum(
    prompt_tokens: Sequence[int], completion_tokens: Sequence[int], max_length: int | None
) -> Datum:
    """Build a datum that trains on a completion and not on its prompt.

    With `all = prompt + completion`, the inputs are `all[:-1]`, the targets `all[1:]`, and the weights
    0.0 for `len(prompt) - 1` tokens, then 1.0.

    Args:
        prompt_tokens: at least one token.
        completion_tokens: at least one token.
        max_length: the most tokens of `all`; the completion is cut at its end to fit.

    Raises:
        DoesNotFit: the prompt alone fills `max_length`.
        TypeError: a token is not an integer.
    """
    return build_datums(prompt_tokens, [completion_tokens], max_length)[0]


def build_datums(
    prompt_tokens: Sequence[int], completions: Sequence[Sequence[int]], max_length: int | None
) -> list[Datum]:
    """Build the datums of several completions of one prompt, each as `build_datum` does.

    Raises:
        DoesNotFit: the prompt alone fills `max_length`.
        TypeError: a token is not an integer.
    """
    if max_length is not None and len(prompt_tokens) >= max_length:
        raise DoesNotFit(f"the prompt's {len(prompt_tokens)} tokens fill --max-length {max_length}")
    prompt, datums = token_array(prompt_tokens), list[Datum]()
    for completion in completions:
        all_tokens = np.concatenate([prompt, token_array(completion)])[:max_length]
        weights = np.ones(len(all_tokens) - 1, dtype=np.float32)
        weights[: len(prompt) - 1] = 0.0
        datums.append(ArrayDatum(all_tokens[:-1], all_tokens[1:], weights))
    return datums


def token_array(tokens: Sequence[int]) -> np.ndarray:
    """Return token ids as an array, int64 `[tokens]`.

    Raises:
        TypeError: one is not an integer.
    """
    listed = list(tokens)
    if listed and isinstance(listed[0], bool):
        raise TypeError("tokens must be integers, not bool")
    try:
        try:
            numbers = array("I", listed)  # read twice as fast as by "q", and four times as fast as by numpy
        except OverflowError:
            numbers = array("q", listed)  # refused later, with its file and line
    except (TypeError, OverflowError) as error:
        raise TypeError(f"tokens must be integers: {error}") from None
    return np.frombuffer(numbers, dtype=numbers.typecode).astype(np.int64)


def build_weighted_datum(tokens: Sequence[int], weights: Sequence[float], max_length: int | None) -> Datum:
    """Build a datum of tokens of which only some are trained.

    Args:
        tokens: at least two.
        weights: per token, 1.0 where it is trained and 0.0 where not.
        max_length: the most tokens; those behind are cut away.

    Raises:
        DoesNotFit: nothing that is trained is left.
    """
    kept = token_array(tokens[:max_length])
    left = np.array(weights[1:max_length], dtype=np.float32)
    if not left.any():
        raise DoesNotFit(f"--max-length {max_length} leaves none of its trained tokens")
    return ArrayDatum(kept[:-1], kept[1:], left)


def prompt_length(weights: np.ndarray) -> int:
    """Count the tokens before the first trained target, given a datum's weights `[target tokens]`."""
    trained = weights.nonzero()[0]
    return int(trained[0]) + 1 if len(trained) else len(weights) + 1


class DatumArrays(NamedTuple):
    """A datum's lists as arrays."""

    inputs: np.ndarray
    """int64 `[target tokens]`"""
    targets: np.ndarray
    """int64 `[target tokens]`"""
    weights: np.ndarray
    """float32 `[target tokens]`"""
    prompt_length: int
    """Tokens before the first trained one; all of them where none is trained."""
    trained: int
    """Target tokens of non-zero weight."""

    @classmethod
    def counted(cls, inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> DatumArrays:
        """Count the trained tokens."""
        return cls(inputs, targets, weights, prompt_length(weights), int(np.count_nonzero(weights)))

    @classmethod
    def of(cls, datum: Datum) -> DatumArrays:
        """Return a datum's arrays, read from its lists where it was not made of arrays."""
        if isinstance(datum, ArrayDatum):
            inputs = datum.inputs
        else:
            inputs = np.asarray(datum.model_input.to_ints(), dtype=np.int64)
        targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
        weights = datum.loss_fn_inputs["weights"].to_numpy().astype(np.float32, copy=False)
        return cls.counted(inputs, targets, weights)

    @property
    def prompt(self) -> np.ndarray:
        """The tokens before the first trained one, int64; all of them where none is trained."""
        return self.inputs[: self.prompt_length]
