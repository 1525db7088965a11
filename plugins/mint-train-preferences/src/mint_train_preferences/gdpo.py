"""GDPO: DPO on soft labels, by the geometric average of both orders of a pair.

A row's `p_chosen` is the probability that the chosen completion is the better one: 1 is DPO, and 0.5, a tie,
has no gradient.

In the formula w is the chosen and l the rejected completion, p the row's `p_chosen`, and h the log-ratio of
policy and reference.

Formula: -log sigma(beta (2 p - 1) (h_w - h_l))
Paper: Furuta et al., 2024, arXiv 2409.06691; its text could not be read, the formula is from its abstract
Defaults: beta is DPO's
Use: labels with a confidence: the share of judges that agree, or a reward model's probability
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_train.plugin import AttachedDatum, Batch, Forms, Renderer, hookimpl
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry
from mint_train_preferences.fields import RicherPair, Values, bounded, flatten_richer, forms_with
from mint_train_preferences.options import AnchoredOptions

EXTENDS = "dpo"
P_CHOSEN = "p_chosen"


def read_probability(row: Mapping[str, Any]) -> Values:
    """Read `p_chosen`, from 0.5 to 1."""
    probability = bounded(row, P_CHOSEN, 0.5, 1)
    return {P_CHOSEN: (probability, probability)}


FORMS = forms_with(read_probability, [P_CHOSEN])
"""Every form of a pair with `p_chosen`."""


@hookimpl
def loss_options() -> type[AnchoredOptions]:
    """Return the options of GDPO."""
    return AnchoredOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight pairs with soft labels to try the loss on."""
    return Path(__file__).with_name("soft_pairs.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a pair with `p_chosen`."""
    return FORMS


@hookimpl
def flatten(example: RicherPair, renderer: Renderer) -> Sequence[AttachedDatum]:
    """Flatten a pair into [chosen, rejected], its probability attached to both."""
    return flatten_richer(example, renderer)


@hookimpl
def compute_loss(batch: Batch, logprobs: Logprobs, options: AnchoredOptions) -> LossAndMetrics:
    """Compute -log sigma(beta (2 p - 1) margin), the mean over pairs."""
    pairs = Pairs.of(batch, logprobs)
    confidence = 2 * batch.attached(P_CHOSEN)[::2] - 1
    losses = bradley_terry(options.beta * confidence * pairs.margins)
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))
