"""`--token-budget`: a run stops at a checkpoint before it would send more tokens than that."""

from __future__ import annotations

from mint_train.errors import BudgetError
from mint_train.groups.expected_tokens import ExpectedTokens
from mint_train.run_folder.token_counts import TokenCounts
from mint_train.settings.prices import describe_tokens


class TokenBudget:
    """The most tokens, of all kinds, that a run may send; None for any number."""

    def __init__(self, most: int | None, counts: TokenCounts, expected: ExpectedTokens) -> None:
        self.most, self.counts, self.expected = most, counts, expected

    def allows(self, step: int) -> bool:
        """Return whether a step can be taken, with the evaluation and the samples that are due after it."""
        return self.most is None or self.counts.total + self.expected.of_step(step).total() <= self.most

    def refuse_no_step(self, finished: int) -> None:
        """Refuse a budget that is not enough for the next step of a run, before anything is sent for it.

        Args:
            finished: the steps that have been taken.

        Raises:
            BudgetError: with what is needed.
        """
        if self.most is None or finished >= self.expected.steps:
            return
        ahead = self.expected.of_step(finished + 1)
        if not finished:
            ahead += self.expected.before_first_step()
        if self.counts.total + ahead.total() > self.most:
            needs = "may need" if any(ahead[kind] for kind in self.expected.at_most) else "need"
            what = f"the next step and what is due around it {needs} {describe_tokens(ahead)}"
            raise BudgetError(self.most, self.counts.total, what, ahead.total())
