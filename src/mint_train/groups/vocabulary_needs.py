"""Losses that need more than logprobs, on backends and with references that cannot give it."""

from __future__ import annotations

from mint_train.backends.base import Backend
from mint_train.batches.vocabulary import QUANTITIES
from mint_train.errors import OptionError
from mint_train.groups.reference import INITIAL
from mint_train.losses.loss import Loss


def refuse_unmet_vocabulary(loss: Loss, backend: Backend) -> None:
    """Refuse a loss that needs something of the whole vocabulary that the run cannot give it.

    Raises:
        OptionError: naming the loss, what it needs, and what to do.
    """
    for term in loss.terms:
        for name in sorted(term.vocabulary):
            if backend.remote:
                raise OptionError(
                    f'the loss "{term.name}" needs {name} over the whole vocabulary at each token, which a '
                    "service does not give: train with --backend local"
                )
            if QUANTITIES[name].of_reference and loss.reference != INITIAL:
                raise OptionError(
                    f'the loss "{term.name}" needs {name}, which takes the distributions of policy and '
                    f"reference at once: --set reference={INITIAL}, not {loss.reference or 'none'}"
                )
