"""APO-zero on unpaired completions: raises desirable ones and lowers undesirable ones, without a baseline.

D'Oosterlinck et al. (2024, arXiv 2408.06266, eq. 7), its two terms taken over single completions, as TRL's
`apo_zero_unpaired` does: 1 - sigma(beta r) for a desirable completion, sigma(beta r) for an undesirable one.
That is KTO with z_0 = 0, so it extends `kto` and brings nothing but its options.

Formula: 1 - sigma(beta r) for a desirable completion, sigma(beta r) for an undesirable one
Paper: D'Oosterlinck et al., 2024, arXiv 2408.06266, eq. 7, over single completions
Defaults: as for kto
Use: KTO without the cost of a baseline
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mint_train.plugin import hookimpl
from mint_train_kto.plugin import KTOOptions
from mint_train_kto.plugin import data_note as data_note  # a hook that is not inherited

EXTENDS = "kto"


class APOZeroUnpairedOptions(KTOOptions):
    """The options of KTO, without a choice of the baseline."""

    baseline: Literal["none"] = Field(default="none", description="z_0 is 0: this loss has no baseline.")


@hookimpl
def loss_options() -> type[APOZeroUnpairedOptions]:
    """Return the options of KTO with the baseline fixed."""
    return APOZeroUnpairedOptions
