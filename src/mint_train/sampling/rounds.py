"""`--rounds`: sample, judge, write rows, train, and again from the state that was reached."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from mint_train.backends.choose import choose_backend
from mint_train.backends.start import base_model, find_start
from mint_train.errors import BudgetError, DataError, JudgeError, OptionError, command_line
from mint_train.groups.prompts import Prompts, read_prompts
from mint_train.groups.reference import INITIAL
from mint_train.judging.judge import Judge, function_name, open_judge
from mint_train.losses.loss import Loss
from mint_train.losses.trust import check_address, refuse_foreign
from mint_train.losses.weighted_sum import open_loss
from mint_train.observers.progress import Progress
from mint_train.observers.terminal import echo_problem
from mint_train.plugins.functions import named_function
from mint_train.run_folder.base_model import refuse_changed_reference
from mint_train.run_folder.description import RunDescription
from mint_train.run_folder.files import Place, append_line
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.parts import CHECKPOINTS_FILE
from mint_train.run_folder.records import RunResult
from mint_train.run_folder.replacing import holds_run
from mint_train.sampling.making import Making, RowWriter, make_rows
from mint_train.sampling.policy import open_policy, reading_settings
from mint_train.sampling.round_budget import RoundBudget, read_rounds, stopped
from mint_train.sampling.round_plan import (
    POLICY_FIELDS,
    SCORES_FILE,
    Plan,
    is_done,
    keep_judge,
    mixed_in,
    read_plan,
    read_scores,
    rows_of,
    run_of,
    write_plan,
)
from mint_train.settings.loss_names import is_loss_file, parse_terms
from mint_train.settings.merge import KEY_VARIABLE, explain
from mint_train.settings.model import Settings
from mint_train.settings.prices import describe_tokens
from mint_train.training.run import Program
from mint_train.training.training import resume_run, start_run

PROMPTS_FILE = "prompts.jsonl"
"""The prompts, where a program gave them as rows."""
REFERENCE, BASE = "reference", "base"
"""`--set reference=base`: the base model in every round."""

Shown = Callable[[], AbstractContextManager[Progress]]
"""Shows the progress of sampling and judging while it is entered."""


@dataclass(frozen=True)
class RoundsProgram(Program):
    """What a Python program that calls brings to rounds."""

    prompts: str | None = None
    """The prompts as JSON Lines, if the program gave rows or texts."""


@dataclass(frozen=True)
class Rounds:
    """Rounds in a folder."""

    place: Place
    """Where the folder is, whatever the judge or the loss makes the current folder."""
    plan: Plan
    given: Mapping[str, Any]
    """The settings of the training that were given, without those that each round has of its own."""
    trusted: bool = False
    """Whether files that the folder names and that are not plainly the user's own may be run."""
    program: RoundsProgram | None = None
    """The Python program that calls; None for the command line."""

    @property
    def folder(self) -> Path:
        """The folder of the rounds."""
        return self.place.path

    @classmethod
    def read(
        cls,
        folder: Path,
        program: RoundsProgram | None = None,
        *,
        trusted: bool = False,
        token_budget: int | None = None,
    ) -> Rounds:
        """Read the plan of a folder, which may come from somebody else.

        Args:
            folder: the folder of the rounds.
            program: the Python program that calls; None for the command line.
            trusted: the user has said that what it names may be run and asked.
            token_budget: a larger budget than that of before.

        Raises:
            UserError: it is broken, or names an address that the environment does not.
            OptionError: it names code to run or an address to ask, and is not trusted; or the judge that it
                began with is a function, and is not given.
        """
        rounds = cls(Place(folder), *read_plan(folder), trusted, program)
        rounds.require_own_judge()
        settings = rounds.settings({})
        check_address(settings.model_copy(update={"backend": choose_backend(settings).name}))
        files = [name for _, name in parse_terms(settings.loss) if is_loss_file(name)]
        options = [*rounds.plan.judge_options.values(), *settings.judge_options.values()]
        for name in (*files, *map(str, options)):
            refuse_foreign(name, folder, trusted=trusted)
        if token_budget is not None:
            checked = rounds.settings({"token_budget": token_budget}).token_budget
            rounds = replace(rounds, given={**rounds.given, "token_budget": checked})
            write_plan(folder, rounds.plan, rounds.given)
        return rounds

    def train(self, shown: Shown, tell: Callable[[str], None]) -> RunResult:
        """Do the rounds that are not done yet; return the last one's result, or that of an interrupted one.

        Args:
            shown: shows the progress of sampling and judging.
            tell: tells the user one line.

        Raises:
            MintTrainError: a round failed; `mint-train resume` goes on in it.
        """
        result: RunResult | None = None
        for number in range(1, self.plan.rounds + 1):
            if (finished := is_done(run_of(self.folder, number))) and number < self.plan.rounds:
                continue
            tell(f"Round {number} of {self.plan.rounds}.")
            begun = result is not None
            try:
                if not finished and not rows_of(self.folder, number).exists():
                    self.sample(number, shown, tell)
                    begun = True
                result = self.train_round(number)
            except BudgetError as error:
                if not begun:
                    raise
                result = stopped(run_of(self.folder, number), result, error, tell)
            if result.status != "done":
                break
        assert result is not None, "there is a last round"  # noqa: S101 - rounds is at least 1
        rounds = read_rounds(self.folder)
        tokens = sum((Counter(each.tokens) for each in rounds), Counter[str]())
        tell(f"Tokens of all rounds: {describe_tokens(tokens)}.")
        if result.status == "interrupted":
            more = ("--token-budget", "N") if result.budget_spent else ()
            tell(f"Continue the rounds with: {command_line('resume', self.folder, *more)}")
        return replace(result, rounds=rounds)

    def budget(self, number: int) -> RoundBudget:
        """Return what a round's run may send, and its completions."""
        return RoundBudget.before(number, self.given.get("token_budget"), read_rounds(self.folder))

    def read_prompts(self) -> Prompts:
        """Return the prompts.

        Raises:
            DataError: they cannot be read, or are not those that the rounds began with.
        """
        kept, name = self.folder / PROMPTS_FILE, self.plan.prompts
        prompts = read_prompts(kept if name == PROMPTS_FILE else name, reading_settings({}))
        if self.plan.prompts_sha256 not in ("", prompts.sha256):
            raise DataError(
                f"{self.plan.prompts} has changed since these rounds began; restore it, or start new rounds"
            )
        return prompts

    def open_judge(self) -> Judge:
        """Return the judge, a function of the program or an installed one.

        Raises:
            UserError: there is no such judge, or an option is wrong.
        """
        own, plan = self.program.judge if self.program else None, self.plan
        return open_judge(own or plan.judge, plan.judge_options, plan.judge_timeout)

    def open_loss(self, settings: Settings) -> Loss:
        """Return the loss, a function of the program or one by its name.

        Raises:
            UserError: there is no such loss, or an option is wrong.
        """
        if self.program is not None and self.program.loss is not None:
            return Loss.of(named_function(self.program.loss), settings.options)
        return open_loss(settings.loss, settings.options)

    def require_own_judge(self) -> None:
        """Refuse to go on with another judge than the function that the rounds began with.

        Raises:
            OptionError: it is not given, or another judge is.
        """
        plan, given = self.plan, self.program.judge if self.program else None
        if given is not None and not (plan.judge_is_function and function_name(given) == plan.judge):
            raise OptionError(f"judge {function_name(given)}: these rounds began with {plan.judge}")
        if given is None and plan.judge_is_function:
            raise OptionError(
                f'the judge "{plan.judge}" of {self.folder} is a function of a Python program; call '
                f'mint_train.resume("{self.folder}", judge={plan.judge}) there'
            )

    def sample(self, number: int, shown: Shown, tell: Callable[[str], None]) -> None:
        """Write the rows of a round, from the policy that the one before it reached.

        Raises:
            JudgeError: no row was made.
        """
        plan, settings = self.plan, self.settings({})
        judge, prompts = self.open_judge(), self.read_prompts()
        name = str(run_of(self.folder, number - 1)) if number > 1 else settings.from_checkpoint
        given = {field: getattr(settings, field) for field in POLICY_FIELDS}
        if number == 1:  # the base model of what it begins with, where that says so
            given["model"] = find_start(settings)[0].model
        sampling = replace(plan.sampling, seed=plan.sampling.seed + number - 1)  # each round draws others
        keep_judge(self.folder, judge.versions, name if number > 1 else None)
        part = rows_of(self.folder, number).with_suffix(".part").absolute()
        # a kill came while the rows were written, or between them and their scores, which belong together
        for left in (part, *self.folder.glob(f".{part.name}*")):
            left.unlink(missing_ok=True)
        making = Making(judge, RowWriter(plan.writer, plan.writer_options), sampling, part)
        with open_policy(name, given, echo_problem) as policy, shown() as progress:
            self.budget(number).refuse_sampling(policy, prompts, sampling)
            made = make_rows(policy, prompts, making, progress)
        for line in [*made.readable.lines(), *made.lines(), *filter(None, [judge.note()])]:
            tell(line)
        if not made.rows:
            raise JudgeError(f"round {number}: {made.why_no_rows()}, in new rounds")
        known = read_scores(self.folder)
        if number not in [line["round"] for line in known]:
            scored = {"round": number, "mean_score": made.mean, "rows": made.rows, "tokens": made.tokens}
            append_line(self.folder / SCORES_FILE, scored, durable=True)
        part.replace(rows_of(self.folder, number))

    def train_round(self, number: int) -> RunResult:
        """Train a round, or go on with it where it has a checkpoint.

        Raises:
            BudgetError: the next step would pass the budget of all rounds.
        """
        folder, budget = run_of(self.folder, number), self.budget(number)
        own = {} if budget.left is None else {"token_budget": budget.left}
        try:
            if holds_run(folder) and (folder / CHECKPOINTS_FILE).is_file():
                return resume_run(folder, own, program=self.program, trust_loss=self.trusted)
            settings = self.settings(self.own_settings(number) | own)
            loss = self.open_loss(settings)
            if number > 1:
                refuse_changed_reference(self.first_round(), loss.reference)
            return start_run(settings, loss, self.program)
        except BudgetError as error:
            raise budget.of_all(error) from None

    def own_settings(self, number: int) -> dict[str, Any]:
        """Return the settings that a round has of its own: its rows, its folder, and what it begins with."""
        rows: list[Any] = [str(rows_of(self.folder, number))]
        share = self.plan.mix_previous
        if earlier := mixed_in(share, read_scores(self.folder), number):
            rows = [{"name": rows[0], "weight": 1 - share}]
            rows += [
                {"name": str(rows_of(self.folder, each)), "weight": share / len(earlier)} for each in earlier
            ]
        own: dict[str, Any] = {"data": rows, "output": run_of(self.folder, number), "overwrite": True}
        if number > 1:
            own["from_checkpoint"] = str(run_of(self.folder, number - 1))
        options = dict(self.given.get("options", {}))
        if options.get(REFERENCE) == BASE:
            options[REFERENCE] = INITIAL if number == 1 else self.base_model()
            own["options"] = options
        return own

    def base_model(self) -> str:
        """Return the base model of the first round.

        Raises:
            OptionError: that round began with an adapter, so that the base model is not what it began with.
        """
        if self.given.get("from_checkpoint") is not None:
            raise OptionError("--set reference=base cannot be taken with --from, which begins elsewhere")
        return base_model(RunFolder(run_of(self.folder, 1)), self.first_round())

    def first_round(self) -> RunDescription:
        """Return what the run of the first round says of itself."""
        return RunFolder(run_of(self.folder, 1)).read_description()

    def settings(self, own: Mapping[str, Any]) -> Settings:
        """Return the settings of a round's training.

        Raises:
            OptionError: the plan was edited and is no longer valid.
        """
        key = os.environ.get(KEY_VARIABLE)
        given = {**self.given, **own}
        try:
            return Settings(**given, api_key=SecretStr(key) if key else None)
        except ValidationError as error:
            raise OptionError(explain(error, given, str(given.get("loss")), None)) from None
