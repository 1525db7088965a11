"""Each loss that TRL has, against TRL's own code as an oracle: value and gradient, float64.

For development only: it runs where TRL is installed (`pip install trl==1.16.0`), and is skipped elsewhere.
TRL's trainers are not trained here: their loss methods are called on a model that returns given logprobs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from pair_batches import completion_part, make_batch, open_loss, random_pairs, value_and_gradients
from torch import Tensor, nn

pytest.importorskip("trl", reason="TRL is the oracle of these tests and is not installed")

from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]

PAIRS = random_pairs(torch.Generator().manual_seed(21), 6)
PROMPT_TOKENS = 3
LENGTH = PROMPT_TOKENS + 7
TOLERANCE = 1e-6


class GivenLogprobs(nn.Module):
    """A model that returns given logprobs, in the shape of TRL's fused head."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs: Tensor) -> None:
        super().__init__()
        self.log_probs = log_probs

    def forward(self, **_: object) -> SimpleNamespace:
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(
            log_probs=self.log_probs,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
            log_sum_sq_probs=zeros,  # WPO's alignment, which logprobs of target tokens do not give
        )


def padded(sides: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64) -> Tensor:
    """Lay logprobs out as TRL does: all chosen, then all rejected; 0 in the prompt and behind the end."""
    rows = torch.zeros(len(sides), LENGTH - 1, dtype=dtype)
    for row, side in zip(rows, sides, strict=True):
        row[PROMPT_TOKENS - 1 : PROMPT_TOKENS - 1 + len(side)] = torch.tensor(side, dtype=dtype)
    return rows


def completion_mask(sides: Sequence[Sequence[float]]) -> Tensor:
    mask = torch.zeros(len(sides), LENGTH, dtype=torch.long)
    for row, side in zip(mask, sides, strict=True):
        row[PROMPT_TOKENS : PROMPT_TOKENS + len(side)] = 1
    return mask


def trl_loss(loss_type: str, dtype: torch.dtype = torch.float64, **config: object) -> tuple[Tensor, Tensor]:
    """Run TRL's DPO loss on the pairs; return it with the policy's padded logprobs."""
    arguments = DPOConfig(output_dir="unused", bf16=False, use_cpu=True, report_to="none", **config)
    policy = padded([p.chosen for p in PAIRS] + [p.rejected for p in PAIRS], dtype).requires_grad_()
    reference = padded([p.reference_chosen for p in PAIRS] + [p.reference_rejected for p in PAIRS], dtype)
    mask = completion_mask([p.chosen for p in PAIRS] + [p.rejected for p in PAIRS])
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    model = GivenLogprobs(policy)
    trainer = SimpleNamespace(
        model=model,
        ref_model=GivenLogprobs(reference),
        args=arguments,
        accelerator=accelerator,
        aux_loss_enabled=False,
        ld_alpha=arguments.ld_alpha,
        precompute_ref_logps=False,
        f_divergence_type=arguments.f_divergence_type,
        f_alpha_divergence_coef=arguments.f_alpha_divergence_coef,
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=arguments.beta,
        label_smoothing=arguments.label_smoothing,
        use_weighting=arguments.use_weighting,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
    }
    return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False), policy


def assert_agrees(
    name: str,
    options: dict[str, object],
    expected: Tensor,
    expected_gradient: Tensor,
    tolerance: float = TOLERANCE,
) -> None:
    """Compare a loss of the family on the pairs with TRL's value and padded gradient."""
    value, gradients = value_and_gradients(open_loss(name, **options), *make_batch(PAIRS))
    torch.testing.assert_close(value, expected.double(), rtol=tolerance, atol=tolerance)
    ordered = [completion_part(gradient) for gradient in [*gradients[::2], *gradients[1::2]]]
    for gradient, row in zip(ordered, expected_gradient, strict=True):
        padded_gradient = row[PROMPT_TOKENS - 1 : PROMPT_TOKENS - 1 + len(gradient)].double()
        torch.testing.assert_close(gradient, padded_gradient, rtol=tolerance, atol=tolerance)


# ours, with options; TRL's loss type, with its configuration
SAME = [
    ("dpo", {"beta": 0.1}, "sigmoid", {"beta": 0.1}),
    ("dpo", {}, "sigmoid", {"beta": 1.0}),
    ("hinge", {}, "hinge", {"beta": 0.1}),
    ("hinge", {"beta": 0.4}, "hinge", {"beta": 0.4}),
    ("ipo", {}, "ipo", {"beta": 0.1}),
    ("exo", {}, "exo_pair", {"beta": 0.1, "label_smoothing": 1e-3}),
    ("nca", {}, "nca_pair", {"beta": 0.01}),
    ("robust", {}, "robust", {"beta": 0.1, "label_smoothing": 0.1}),
    ("bco", {"shift": False}, "bco_pair", {"beta": 0.01}),
    ("sppo", {}, "sppo_hard", {"beta": 1e-3}),
    ("aot", {}, "aot", {"beta": 0.01}),
    ("aot", {"label_smoothing": 0.2}, "aot", {"beta": 0.01, "label_smoothing": 0.2}),
    ("aot-unpaired", {}, "aot_unpaired", {"beta": 0.01}),
    ("aot-unpaired", {"label_smoothing": 0.2}, "aot_unpaired", {"beta": 0.01, "label_smoothing": 0.2}),
    ("apo-zero", {}, "apo_zero", {"beta": 0.1}),
    ("apo-down", {}, "apo_down", {"beta": 0.1}),
    ("discopop", {}, "discopop", {"beta": 0.05, "discopop_tau": 0.05}),
    ("sft", {}, "sft", {}),
    ("dpo-norm", {}, "sigmoid_norm", {"beta": 5.0}),
    ("ld-dpo", {}, "sigmoid", {"beta": 0.1, "ld_alpha": 0.5}),
    ("ld-dpo", {"alpha": 0.0}, "sigmoid", {"beta": 0.1, "ld_alpha": 0.0}),
    ("wpo", {}, "sigmoid", {"beta": 0.01, "use_weighting": True}),
    ("f-dpo", {"divergence": "reverse-kl"}, "sigmoid", {"beta": 0.1, "f_divergence_type": "reverse_kl"}),
    ("f-dpo", {"divergence": "forward-kl"}, "sigmoid", {"beta": 0.1, "f_divergence_type": "forward_kl"}),
    ("f-dpo", {}, "sigmoid", {"beta": 0.1, "f_divergence_type": "js_divergence"}),
]


@pytest.mark.parametrize(("name", "options", "loss_type", "config"), SAME, ids=lambda part: str(part)[:50])
def test_loss_is_that_of_trl(
    name: str, options: dict[str, object], loss_type: str, config: dict[str, object]
) -> None:
    expected, policy = trl_loss(loss_type, **config)
    (gradient,) = torch.autograd.grad(expected, policy)
    assert_agrees(name, options, expected, gradient)


def test_every_loss_type_of_trl_has_its_counterpart() -> None:
    with pytest.raises(ValueError, match="Unknown loss type") as caught:
        trl_loss("no such type")
    theirs = set(str(caught.value).split("[")[1].rstrip("].").replace("'", "").split(", "))
    assert theirs == {loss_type for _, _, loss_type, _ in SAME}


def test_alpha_divergence_is_that_of_trl() -> None:
    """TRL has it in float32 at most; its coefficient is 1 - alpha."""
    expected, policy = trl_loss(
        "sigmoid",
        torch.float32,
        beta=0.1,
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=0.75,
    )
    (gradient,) = torch.autograd.grad(expected, policy)
    assert_agrees("f-dpo", {"divergence": "alpha", "alpha": 0.25}, expected, gradient, tolerance=1e-5)


SIDES = [p.chosen for p in PAIRS] + [p.rejected for p in PAIRS]


def sequence_sums(rows: Tensor, *, average: bool) -> tuple[Tensor, ...]:
    """Sum, or average, padded logprobs per completion: those of the chosen, those of the rejected."""
    lengths = torch.tensor([len(side) for side in SIDES], dtype=rows.dtype)
    return (rows.sum(dim=1) / (lengths if average else 1)).chunk(2)


def cpo_trainer(**attributes: object) -> SimpleNamespace:
    defaults = {"alpha": 0.0, "beta": 0.1, "label_smoothing": 0.0, "simpo_gamma": 0.5, "loss_type": "sigmoid"}
    return SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")), **(defaults | attributes))


@pytest.mark.parametrize(
    ("name", "options", "attributes", "average", "nll_weight"),
    [
        ("cpo", {}, {}, False, 1.0),
        ("simpo", {}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}, True, 0.0),
        (
            "alphapo",
            {},
            {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.1, "alpha": 0.25},
            True,
            0.0,
        ),
        ("hinge", {"reference": "none"}, {"loss_type": "hinge"}, False, 0.0),
        ("dpo", {"reference": "none"}, {"beta": 1.0}, False, 0.0),
    ],
)
def test_loss_is_that_of_trls_cpo_trainer(
    name: str,
    options: dict[str, object],
    attributes: dict[str, object],
    average: bool,
    nll_weight: float,
) -> None:
    policy = padded(SIDES).requires_grad_()
    chosen, rejected = sequence_sums(policy, average=average)
    losses, _, _ = CPOTrainer.cpo_loss(cpo_trainer(**attributes), chosen, rejected)
    # its NLL is torch's cross-entropy over the chosen completions' tokens: their mean
    tokens = sum(len(p.chosen) for p in PAIRS)
    expected = losses.mean() - nll_weight * policy.chunk(2)[0].sum() / tokens
    (gradient,) = torch.autograd.grad(expected, policy)
    assert_agrees(name, options, expected, gradient)


def test_odds_ratio_is_that_of_trls_orpo_trainer() -> None:
    """TRL computes it in float32, and has an NLL that sees the prompt; ours is added here."""
    policy = padded(SIDES).requires_grad_()
    chosen, rejected = sequence_sums(policy, average=True)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")), beta=0.1)
    losses, *_ = ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)
    expected = -chosen.mean() - losses.mean()
    (gradient,) = torch.autograd.grad(expected, policy)
    assert_agrees("orpo", {}, expected, gradient, tolerance=1e-5)
