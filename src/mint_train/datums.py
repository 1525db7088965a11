"""From text to datums: what every loss on prompts and completions builds its groups with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mint_train.errors import DoesNotFit
from mint_train.sdk import Datum, types

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = Mapping[str, str]
Prompt: TypeAlias = str | Sequence[Message]


class ArrayDatum(Datum):
    """The SDK's datum of arrays; the list of its input tokens is made when it is first asked for.

    A datum that is only checked and kept on disk never needs it, and neither does the embedded backend.
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
        # whole numbers already; the SDK would look at each again, which takes as long as all else here
        chunk = types.EncodedTextChunk.model_construct(tokens=self.inputs.tolist())
        return types.ModelInput.model_construct(chunks=[chunk])


def build_prompt_tokens(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenise a prompt up to where the assistant's answer begins.

    Uses the tokenizer's chat template with its generation prompt where it has one, else the plain form
    `User: ...` and `Assistant:` a line each.

    Args:
        prompt: a user's text, or chat messages with `role` and `content`.
        tokenizer: the model's tokenizer.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if tokenizer.chat_template:
        tokens = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return list(tokens)
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return list(tokenizer.encode("\n".join([*lines, "Assistant:"]), add_special_tokens=True))


def build_completion_tokens(completion: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenise a completion: a leading space, no special tokens, the end-of-sequence token behind."""
    tokens = tokenizer.encode(f" {completion}", add_special_tokens=False)
    return [*tokens, tokenizer.eos_token_id]


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
        TypeError: a token is no whole number.
    """
    if max_length is not None and len(prompt_tokens) >= max_length:
        raise DoesNotFit(f"the prompt's {len(prompt_tokens)} tokens fill --max-length {max_length}")
    all_tokens = np.array([*prompt_tokens, *completion_tokens][:max_length])
    if all_tokens.dtype.kind != "i":
        raise TypeError(f"tokens must be whole numbers, not {all_tokens.dtype}")
    targets = all_tokens[1:]
    weights = np.ones(len(targets), dtype=np.float32)
    weights[: len(prompt_tokens) - 1] = 0.0
    return ArrayDatum(all_tokens[:-1], targets, weights)


def prompt_length(weights: np.ndarray) -> int:
    """Count the tokens before the first trained target, given a datum's weights `[target tokens]`."""
    trained = weights != 0
    return int(trained.argmax()) + 1 if trained.any() else len(weights) + 1
