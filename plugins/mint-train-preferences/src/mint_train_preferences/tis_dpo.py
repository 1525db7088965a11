"""TIS-DPO: DPO whose tokens have weights of their own, from the row.

A row's `chosen_token_weights` and `rejected_token_weights` hold a number for each token of the completion,
the end-of-sequence token last (where they are one short, it counts 1). Instead of them, `chosen_spans` and
`rejected_spans` hold spans of the text in characters, `{"start": 5, "end": 9, "weight": 2}`, and tokens
outside of all of them count 1.

In the formula w is the chosen and l the rejected completion, v_t the weight of token t, and h_t the log-ratio
of policy and reference.

The paper's loss also has a sequential KL term, which needs the whole vocabulary; it is left out here. The
paper estimates the weights by two models, trained on the data and on its reverse.

Formula: -log sigma(beta (sum of v_t h_t over w - sum of v_t h_t over l))
Paper: Liu et al., 2024, arXiv 2410.04350, without its KL term
Defaults: beta is that of the authors' README
Use: you know which tokens decide: a wrong step, a span that a judge marked
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mint_train.plugin import AttachedDatum, Batch, Forms, Renderer, attach, hookimpl
from mint_train_dpo import plugin as dpo
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry
from mint_train_preferences.options import AnchoredOptions
from mint_train_preferences.token_weights import FORMS, TokenWeightedPair, datum_weights

EXTENDS = "dpo"
ATTACHED = "token_weights"


@hookimpl
def loss_options() -> type[AnchoredOptions]:
    """Return the options of TIS-DPO."""
    return AnchoredOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight pairs whose texts have weighted spans."""
    return Path(__file__).with_name("token_weighted_pairs.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a pair with token weights."""
    return FORMS


@hookimpl
def flatten(example: TokenWeightedPair, renderer: Renderer) -> Sequence[AttachedDatum]:
    """Flatten a pair into [chosen, rejected], each with its tokens' weights attached; 0 over the prompt.

    Raises:
        RowError: there are more or fewer weights than tokens, or spans cannot be aligned with tokens.
    """
    texts = (example.pair.chosen, example.pair.rejected)
    datums = dpo.flatten(example.pair, renderer)
    return [
        attach(datum, **{ATTACHED: datum_weights(datum, text, weights, renderer)})
        for datum, text, weights in zip(datums, texts, example.weights, strict=True)
    ]


@hookimpl
def compute_loss(batch: Batch, logprobs: Logprobs, options: AnchoredOptions) -> LossAndMetrics:
    """Compute -log sigma(beta margin of weighted log-ratios), the mean over pairs."""
    weighted = Pairs.of(batch, logprobs, weights=batch.weights * batch.attached(ATTACHED))
    metrics = Pairs.of(batch, logprobs).metrics(weighted.rewards(options.beta))
    return batch.mean(bradley_terry(options.beta * weighted.margins)), metrics
