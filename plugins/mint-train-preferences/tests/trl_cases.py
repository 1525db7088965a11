"""The losses that TRL 1.16 has, as this project and TRL's trainers configure them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Case:
    """A loss on both sides."""

    ours: str
    trainer: Literal["dpo", "cpo", "orpo", "kto"]
    theirs: str
    """How a user of TRL would call it."""
    options: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)


REFERENCE = {"reference": "initial"}
DPO = REFERENCE | {"beta": 0.1}

CASES = [
    Case("dpo", "dpo", '`loss_type="sigmoid"`', DPO, {"loss_type": "sigmoid", "beta": 0.1}),
    Case("hinge", "dpo", '`loss_type="hinge"`', {}, {"loss_type": "hinge", "beta": 0.1}),
    Case("ipo", "dpo", '`loss_type="ipo"`', {}, {"loss_type": "ipo", "beta": 0.1}),
    Case(
        "exo",
        "dpo",
        '`loss_type="exo_pair"`',
        {},
        {"loss_type": "exo_pair", "beta": 0.1, "label_smoothing": 1e-3},
    ),
    Case("nca", "dpo", '`loss_type="nca_pair"`', {}, {"loss_type": "nca_pair", "beta": 0.01}),
    Case(
        "robust",
        "dpo",
        '`loss_type="robust"`',
        {"beta": 0.1},
        {"loss_type": "robust", "beta": 0.1, "label_smoothing": 0.1},
    ),
    Case(
        "bco",
        "dpo",
        '`loss_type="bco_pair"`, without a shift',
        {"shift": False},
        {"loss_type": "bco_pair", "beta": 0.01},
    ),
    Case("sppo", "dpo", '`loss_type="sppo_hard"`', {}, {"loss_type": "sppo_hard", "beta": 1e-3}),
    Case("aot", "dpo", '`loss_type="aot"`', {"beta": 0.1}, {"loss_type": "aot", "beta": 0.1}),
    Case(
        "aot-unpaired",
        "dpo",
        '`loss_type="aot_unpaired"`',
        {"beta": 0.1},
        {"loss_type": "aot_unpaired", "beta": 0.1},
    ),
    Case("apo-zero", "dpo", '`loss_type="apo_zero"`', {}, {"loss_type": "apo_zero", "beta": 0.1}),
    Case("apo-down", "dpo", '`loss_type="apo_down"`', {}, {"loss_type": "apo_down", "beta": 0.1}),
    Case(
        "discopop",
        "dpo",
        '`loss_type="discopop"`',
        {},
        {"loss_type": "discopop", "beta": 0.05, "discopop_tau": 0.05},
    ),
    Case("dpo-norm", "dpo", '`loss_type="sigmoid_norm"`', {}, {"loss_type": "sigmoid_norm", "beta": 5.0}),
    Case("sft", "dpo", '`loss_type="sft"`', {}, {"loss_type": "sft"}),
    Case(
        "dpo+0.2*sft",
        "dpo",
        '`loss_type=["sigmoid", "sft"]`, `loss_weights=[1.0, 0.2]`',
        {f"dpo.{name}": value for name, value in DPO.items()},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.1},
    ),
    Case(
        "wpo",
        "dpo",
        "`use_weighting=True`",
        {},
        {"loss_type": "sigmoid", "beta": 0.01, "use_weighting": True},
    ),
    Case(
        "ld-dpo",
        "dpo",
        "`ld_alpha=0.5`",
        {},
        {"loss_type": "sigmoid", "beta": 0.1, "ld_alpha": 0.5},
    ),
    *(
        Case(
            "f-dpo",
            "dpo",
            f'`f_divergence_type="{theirs}"`' + ("" if alpha is None else f", coefficient {1 - alpha:g}"),
            {"divergence": ours} | ({} if alpha is None else {"alpha": alpha}),
            {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": theirs}
            | ({} if alpha is None else {"f_alpha_divergence_coef": 1 - alpha}),
        )
        for ours, theirs, alpha in (
            ("forward-kl", "forward_kl", None),
            ("jensen-shannon", "js_divergence", None),
            ("alpha", "alpha_divergence", 0.5),
        )
    ),
    Case("cpo", "cpo", "`CPOTrainer`", {}, {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}),
    Case(
        "simpo",
        "cpo",
        '`CPOTrainer`, `loss_type="simpo"`',
        {},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
    ),
    Case(
        "alphapo",
        "cpo",
        '`CPOTrainer`, `loss_type="alphapo"`',
        {},
        {"loss_type": "alphapo", "beta": 2.5, "simpo_gamma": 0.1, "alpha": 0.25, "cpo_alpha": 0.0},
    ),
    Case("orpo", "orpo", "`ORPOTrainer`, its NLL averaged as the paper's", {}, {"beta": 0.1}),
    Case("kto", "kto", "`KTOTrainer`", {}, {"loss_type": "kto", "beta": 0.1}),
    Case(
        "kto",
        "kto",
        "`KTOTrainer`, weights 1.5 and 0.5",
        {"desirable_weight": 1.5, "undesirable_weight": 0.5},
        {"loss_type": "kto", "beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.5},
    ),
    Case(
        "apo-zero-unpaired",
        "kto",
        '`KTOTrainer`, `loss_type="apo_zero_unpaired"`',
        {},
        {"loss_type": "apo_zero_unpaired", "beta": 0.1},
    ),
]
