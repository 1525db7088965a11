"""What the tests of a loss use: the conformance kit, a list of named checks, and batches made by hand.

No check needs a model or a network: logprobs are random, and so is what the loss asks of a reference or of
the vocabulary.

Under pytest::

    @pytest.mark.parametrize("check", conformance_checks("my-loss"), ids=str)
    def test_conformance(check):
        check()

A plugin may have traits that a check or a backend must know: a module states them as constants, a function by
`@loss(traits={...})`:

- `ORDER_MATTERS = True`: the loss of a batch depends on the order of its groups;
- `UNTRAINED_DATUMS = (1,)`: the datums at these positions of a group are measured or ignored, and their
  gradient is zero;
- `STOPS_GRADIENT = True`: a part of the loss that depends on trained logprobs (a weight, a baseline) is held
  constant, so that finite differences do not give its gradient;
- `DATUMS_MAY_REPEAT = True`: two datums of a group may be equal, as samples of one prompt may;
- `LINEAR = True`: the loss is linear in the logprobs, so that its gradient is the same whatever they are, and
  it keeps no state. Then a step takes one pass over the model where it takes two otherwise.

A trait may be a function of the options, and holds for the losses that extend the plugin. `LINEAR` holds only
for those that inherit `compute_loss` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import ModuleType
from typing import Any, TypeAlias

from mint_train.conformance import data_checks, descent_check, linear_checks, math_checks, weight_checks
from mint_train.conformance.by_hand import make_batch, make_group, make_logprobs
from mint_train.conformance.judge_checks import BUNDLED, JUDGE_CHECKS, JudgeMaterial, candidates_of
from mint_train.conformance.material import ConformanceError, Material
from mint_train.judging.judge import Judge, open_judge
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.authoring import FunctionLoss
from mint_train.plugins.discovery import NamedPlugin

__all__ = [
    "CHECKS",
    "Check",
    "CheckResult",
    "ConformanceError",
    "check_judge",
    "check_loss",
    "conformance_checks",
    "make_batch",
    "make_group",
    "make_logprobs",
]

CHECKS: Mapping[str, Callable[[Material], str]] = {
    "options are valid and documented": data_checks.options_are_valid,
    "rows become examples": data_checks.rows_become_examples,
    "bad rows are refused with their field": data_checks.bad_rows_are_refused,
    "examples become datums": data_checks.examples_become_datums,
    "max-length is kept": data_checks.max_length_is_kept,
    "a group of the wrong size is refused": data_checks.wrong_size_is_refused,
    "datums swapped between groups are refused": data_checks.swapped_datums_are_refused,
    "a datum without trained tokens is refused": data_checks.untrained_datums_are_refused,
    "equal datums in a group are refused": data_checks.equal_datums_are_refused,
    "the gradient reaches every trained logprob": math_checks.gradient_reaches_all,
    "the gradient matches finite differences": math_checks.gradient_matches_differences,
    "logprobs without weight do not matter": math_checks.weightless_logprobs_do_not_matter,
    "float32 stays finite at margins of 1e4": math_checks.float32_stays_finite,
    "the order of groups does not matter": math_checks.order_of_groups_does_not_matter,
    "weights of rows count as rows do": weight_checks.weights_count_as_rows,
    "a loss called linear is linear": linear_checks.linear_as_it_says,
    "an evaluation changes nothing": math_checks.evaluation_changes_nothing,
    "metrics are plain finite floats": math_checks.metrics_are_plain,
    "the described metrics are computed": math_checks.described_metrics_are_computed,
    "a step down the loss improves its metrics": descent_check.descent_improves_metrics,
}


GivenLoss: TypeAlias = str | FunctionLoss | ModuleType | NamedPlugin | Loss
"""A loss as a test names it: by name, file or sum, or a function or a module that is one."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How one check went; `detail` says what was tried, or why it failed."""

    name: str
    passed: bool
    detail: str


class Examined:
    """A loss under examination, opened when the first check looks at it."""

    def __init__(
        self,
        loss: GivenLoss,
        rows: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any] | None,
    ) -> None:
        self.given, self.rows, self.options = loss, rows, options or {}

    @cached_property
    def material(self) -> Material:
        """The opened loss with its rows."""
        if isinstance(self.given, Loss):
            return Material(self.given, self.rows)
        if isinstance(self.given, str):
            return Material(open_loss(self.given, self.options), self.rows)
        if isinstance(self.given, NamedPlugin):
            return Material(Loss.of(self.given, self.options), self.rows)
        named = NamedPlugin(self.given.__name__.rpartition(".")[2], self.given, "this program")
        return Material(Loss.of(named, self.options), self.rows)


@dataclass(frozen=True)
class Check:
    """One check of one loss; calling it raises where it fails."""

    name: str
    examined: Examined

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> str:
        """Run the check and return what was tried.

        Raises:
            ConformanceError: an AssertionError with what the loss did wrong.
            MintTrainError: the loss cannot be opened, or its plugin raised.
        """
        return CHECKS[self.name](self.examined.material)

    def result(self) -> CheckResult:
        """Run the check; whatever it raises becomes a failed result."""
        return result_of(self.name, self)


def result_of(name: str, check: Callable[[], str]) -> CheckResult:
    """Run a check; whatever it raises becomes a failed result."""
    try:
        return CheckResult(name, True, check())
    except ConformanceError as error:
        return CheckResult(name, False, " ".join(str(error).split()))
    except Exception as error:
        return CheckResult(name, False, " ".join(f"{type(error).__name__}: {error}".split()))


def conformance_checks(
    loss: GivenLoss,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Check]:
    """List the checks of a loss; it is opened when the first of them runs.

    Args:
        loss: an installed loss's name, a file (`./my_loss.py`), a sum (`dpo+0.2*sft`), a function under
            `@mint_train.loss`, an imported module of hooks, or an opened loss.
        rows: rows to check it with; else its bundled ones. Two of different prompts at least.
        options: the loss's options.
    """
    examined = Examined(loss, rows, options)
    return [Check(name, examined) for name in CHECKS]


def check_loss(
    loss: GivenLoss,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[CheckResult]:
    """Run all checks of a loss and return how each went.

    Raises:
        MintTrainError: the loss cannot be opened, or an option is wrong.
    """
    checks = conformance_checks(loss, rows=rows, options=options)
    _ = checks[0].examined.material
    return [check.result() for check in checks]


def check_judge(
    judge: str | Judge,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[CheckResult]:
    """Run all checks of a judge and return how each went.

    Args:
        judge: an installed judge's name, or an opened judge.
        rows: each with `prompt`, `completions` and what else the judge reads; else bundled ones.
        options: the judge's options, where it is given by name.

    Raises:
        MintTrainError: the judge cannot be created, or an option is wrong.
        ConformanceError: a row lacks its prompt or its completions.
    """
    opened = judge if isinstance(judge, Judge) else open_judge(judge, options)
    material = JudgeMaterial(opened, BUNDLED if rows is None else [candidates_of(row) for row in rows])
    return [result_of(name, partial(check, material)) for name, check in JUDGE_CHECKS.items()]
