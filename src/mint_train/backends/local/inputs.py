"""Turn datums into tensors, checked against the model's limits before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from mint_train.backends.local.packing import TokenSequence
from mint_train.errors import UserError
from mint_train.sdk import Datum


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes of a model's tables.

    Attributes:
        inputs: tokens in the embedding.
        targets: tokens in the vocabulary projection.
        positions: rows of the position embedding, or None if positions are computed.
    """

    inputs: int
    targets: int
    positions: int | None

    @classmethod
    def of(cls, model: nn.Module) -> Limits:
        """Read the limits from the model's own tables."""
        known = cast(Any, model)
        embedding, head = known.get_input_embeddings(), known.get_output_embeddings()
        inputs = int(embedding.weight.shape[0])
        tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not embedding]
        longest = getattr(known.config, "max_position_embeddings", None) or 0
        # Some position tables have extra rows (OPT has two, for padding).
        learned = any(0 <= table.num_embeddings - longest <= 2 for table in tables)
        # A padded embedding may have more tokens than the projection, or fewer.
        weight = getattr(head, "weight", None)
        targets = inputs if weight is None else int(weight.shape[0])
        return cls(inputs, targets, int(longest) if learned else None)


def token_sequences(data: Sequence[Datum], limits: Limits) -> list[TokenSequence]:
    """Turn datums into tensors; without weights every target is trained, as on the service.

    Raises:
        UserError: a datum does not fit the model; the message names it and says what to do.
    """
    return [_token_sequence(datum, f"datum {index}", limits) for index, datum in enumerate(data)]


def _token_sequence(datum: Datum, name: str, limits: Limits) -> TokenSequence:
    targets = datum.loss_fn_inputs["target_tokens"].to_torch()
    weights = datum.loss_fn_inputs.get("weights")
    trained = torch.ones(len(targets), dtype=torch.bool) if weights is None else weights.to_torch() != 0
    inputs = torch.tensor(datum.model_input.to_ints(), dtype=torch.int64)
    try:
        sequence = TokenSequence(inputs, targets, trained)
    except ValueError as error:
        raise UserError(
            f"{name} of the batch: input, target_tokens and weights do not fit together: {error}"
        ) from error
    if limits.positions is not None and len(inputs) > limits.positions:
        raise UserError(
            f"{name} of the batch has {len(inputs)} tokens, but the model has only {limits.positions} "
            f"positions; set --max-length to at most {limits.positions}"
        )
    looked_up = (("input", inputs, limits.inputs), ("target", targets[trained], limits.targets))
    for what, tokens, known in looked_up:
        strange = tokens[(tokens < 0) | (tokens >= known)]
        if len(strange):
            raise UserError(
                f"{name} of the batch: {what} token {int(strange[0])} is not in the model's vocabulary of "
                f"{known}; the tokenizer belongs to another model"
            )
    return sequence
