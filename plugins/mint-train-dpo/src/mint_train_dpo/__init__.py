"""Direct Preference Optimization, and what a loss on pairs is written with."""

from mint_train_dpo.pairs import Pairs, bradley_terry

__all__ = ["Pairs", "bradley_terry"]
