"""`--token-budget` over all rounds: what they have sent, and whether the next part of one still fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mint_train.errors import BudgetError
from mint_train.groups.completions import render_prompts
from mint_train.groups.prompts import Prompts
from mint_train.run_folder.records import Round, RunResult
from mint_train.run_folder.token_counts import TokenCounts
from mint_train.sampling.policy import Policy
from mint_train.sampling.round_plan import read_scores, rows_of, run_of
from mint_train.settings.prices import describe_tokens
from mint_train.settings.sampling import Sampling


@dataclass(frozen=True)
class RoundBudget:
    """The most tokens that all rounds may send, and those that they have sent; None for any number."""

    most: int | None
    sent: int

    @classmethod
    def before(cls, number: int, most: int | None, rounds: Sequence[Round]) -> RoundBudget:
        """Return the budget of a round's run: its own tokens do not count, since the run counts them."""
        own = next((each.trained for each in rounds if each.number == number), {})
        sent = sum(sum(each.tokens.values()) for each in rounds)
        return cls(most, sent - sum(own.values()))

    @property
    def left(self) -> int | None:
        """The budget of the run, which has to be one token at least."""
        return None if self.most is None else max(1, self.most - self.sent)

    def refuse_sampling(self, policy: Policy, prompts: Prompts, sampling: Sampling) -> None:
        """Refuse to complete prompts where that may pass the budget.

        Raises:
            BudgetError: with what is needed at most.
        """
        if self.most is None:
            return
        asked = render_prompts(policy, prompts, policy.sampler.window).tokens
        written = len(asked) * sampling.samples * sampling.max_tokens
        ahead = Counter({"prompts": sum(map(len, asked)), "sampled": written})
        if self.sent + ahead.total() > self.most:
            what = f"the next round's completions need {describe_tokens(ahead)} at most"
            raise BudgetError(self.most, self.sent, what, ahead.total())

    def of_all(self, error: BudgetError) -> BudgetError:
        """Return what a run refuses in the terms of all rounds."""
        return BudgetError(self.most or 0, self.sent + error.sent, error.what, error.tokens)


def read_rounds(folder: Path) -> list[Round]:
    """Return the rounds in a folder whose rows are written; the last one may not be trained yet.

    Raises:
        UserError: what the folder keeps of them is broken.
    """
    rounds = []
    for line in read_scores(folder):
        number = int(line["round"])
        run = run_of(folder, number)
        trained = TokenCounts(run).by_kind
        tokens = Counter[str](line.get("tokens", {})) + Counter(trained)
        rows = rows_of(folder, number)
        rounds.append(Round(number, line["mean_score"], line["rows"], rows, run, tokens, trained))
    return rounds


def stopped(
    run: Path, before: RunResult | None, error: BudgetError, tell: Callable[[str], None]
) -> RunResult:
    """Say that the budget ends the rounds between two runs; return how they ended."""
    tell(f"The rounds stop: {error}.")
    ended = before or RunResult("interrupted", run, 0, {}, None)
    return replace(ended, status="interrupted", budget_spent=True)
