"""`--rounds`: sample, judge, write rows, train, and again from the state that was reached."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from mint_train.backends.base import Sampling
from mint_train.backends.choose import choose_backend
from mint_train.errors import JudgeError, OptionError, UserError, command_line
from mint_train.judging.judge import open_judge
from mint_train.losses.trust import check_address
from mint_train.observers.terminal import echo_problem
from mint_train.run_folder.files import append_line, write_whole
from mint_train.run_folder.folder import CHECKPOINTS_FILE, RunFolder, holds_run
from mint_train.run_folder.names import make_unused_folder
from mint_train.run_folder.records import RunResult
from mint_train.sampling.collecting import Progress
from mint_train.sampling.making import Making, RowWriter, make_rows
from mint_train.sampling.policy import open_policy, reading_settings
from mint_train.sampling.prompts import read_prompts
from mint_train.settings.data_items import absolute_item
from mint_train.settings.loss_names import is_loss_file, parse_terms
from mint_train.settings.merge import KEY_VARIABLE, explain
from mint_train.settings.model import SECRET_FIELDS, Settings
from mint_train.training.training import resume_run, train_with

PLAN_FILE = "rounds.json"
SCORES_FILE = "rounds.jsonl"
POLICY_FIELDS = (
    *("backend", "base_url", "dtype", "special_tokens"),
    *("render", "chat_template", "chat_template_kwargs"),
)
REFERENCE, BASE, INITIAL = "reference", "base", "initial"
"""`--set reference=base`: the base model in every round; `initial` is the policy that a round begins with."""


Shown = Callable[[], AbstractContextManager[Progress]]
"""Shows the progress of sampling and judging while it is entered."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all rounds have in common, beside the settings of their training."""

    rounds: int
    prompts: str
    judge: str
    judge_options: Mapping[str, str]
    judge_timeout: float
    sampling: Sampling
    writer: str
    writer_options: Mapping[str, str]
    mix_previous: float = 0.0
    """The share of an epoch that rows of earlier rounds have."""


@dataclass(frozen=True)
class Rounds:
    """Rounds in a folder."""

    folder: Path
    plan: Plan
    given: Mapping[str, Any]
    """The settings of the training that were given, without those that each round has of its own."""
    trusted: bool = False
    """Whether files that the folder names and that are not plainly the user's own may be run."""

    @classmethod
    def begin(cls, settings: Settings, plan: Plan) -> Rounds:
        """Make the folder, and keep the plan in it.

        Raises:
            OptionError: the folder exists, or a setting is one that rounds decide.
        """
        own = {name: getattr(settings, name) for name in settings.model_fields_set - SECRET_FIELDS}
        for name in ("data", "columns"):
            if own.pop(name, None):
                raise OptionError(f"--{name}: --rounds trains on what is sampled; leave it out")
        output, own["overwrite"] = own.pop("output", None), False
        if output is not None and output.exists():
            if holds_rounds(output):
                raise OptionError(
                    f"--output {output} holds rounds; {command_line('resume', output)} goes on with them"
                )
            raise OptionError(f"--output {output} exists; name another folder")
        folder = output or make_unused_folder(f"{settings.loss}-rounds")
        folder.mkdir(parents=True, exist_ok=True)
        if plan.prompts != "-" and Path(plan.prompts).exists():
            plan = Plan(**{**fields_of(plan), "prompts": str(Path(plan.prompts).resolve())})
        own |= found_anywhere(settings, own)
        kept = Settings(**own).model_dump(mode="json", include=set(own))
        write_whole(folder / PLAN_FILE, json.dumps({"plan": asdict(plan), "settings": kept}, indent=2) + "\n")
        return cls(folder, plan, kept)

    @classmethod
    def read(cls, folder: Path, *, trusted: bool = False) -> Rounds:
        """Read the plan of a folder, which may come from somebody else.

        Args:
            folder: the folder of the rounds.
            trusted: the user has said that what it names may be run and asked.

        Raises:
            UserError: it is broken, or names an address that the environment does not.
            OptionError: it names code to run or an address to ask, and is not trusted.
        """
        try:
            found = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
            plan = found["plan"] | {"sampling": Sampling(**stops(found["plan"]["sampling"]))}
            rounds = cls(folder, Plan(**plan), dict(found["settings"]), trusted)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / PLAN_FILE} is broken: {error}") from error
        settings = rounds.settings({})
        check_address(settings.model_copy(update={"backend": choose_backend(settings).name}))
        files = [name for _, name in parse_terms(settings.loss) if is_loss_file(name)]
        for name in (*files, *map(str, rounds.plan.judge_options.values())):
            refuse_foreign(name, folder, trusted=trusted)
        return rounds

    def train(
        self, shown: Callable[[], AbstractContextManager[Progress]], tell: Callable[[str], None]
    ) -> RunResult:
        """Do the rounds that are not done yet; return the last one's result, or that of an interrupted one.

        Args:
            shown: shows the progress of sampling and judging.
            tell: tells the user one line.

        Raises:
            MintTrainError: a round failed; `mint-train resume` goes on in it.
        """
        result: RunResult | None = None
        for number in range(1, self.plan.rounds + 1):
            if (finished := is_done(self.run_of(number))) and number < self.plan.rounds:
                continue
            tell(f"Round {number} of {self.plan.rounds}.")
            if not finished and not self.rows_of(number).exists():
                self.sample(number, shown, tell)
            result = self.train_round(number)
            if result.status != "done":
                return result
        assert result is not None, "there is a last round"  # noqa: S101 - rounds is at least 1
        return result

    def run_of(self, number: int) -> Path:
        """Return the run folder of a round, counted from 1."""
        return self.folder / f"round-{number:03d}"

    def rows_of(self, number: int) -> Path:
        """Return the rows of a round."""
        return self.folder / f"round-{number:03d}.jsonl"

    def sample(self, number: int, shown: Shown, tell: Callable[[str], None]) -> None:
        """Write the rows of a round, from the policy that the one before it reached.

        Raises:
            JudgeError: no row was made.
        """
        plan, settings = self.plan, self.settings({})
        name = str(self.run_of(number - 1)) if number > 1 else settings.from_checkpoint
        given = {field: getattr(settings, field) for field in POLICY_FIELDS}
        if name is None:
            given["model"] = settings.model
        # each round draws other completions, by the seed
        sampling = Sampling(**fields_of(plan.sampling) | {"seed": plan.sampling.seed + number - 1})
        judge = open_judge(plan.judge, plan.judge_options, plan.judge_timeout)
        part = self.rows_of(number).with_suffix(".part")
        part.unlink(missing_ok=True)  # a kill came between the rows and their scores, which belong together
        making = Making(judge, RowWriter(plan.writer, plan.writer_options), sampling, part)
        prompts = read_prompts(plan.prompts, reading_settings({}))
        with open_policy(name, given, echo_problem) as policy, shown() as progress:
            made = make_rows(policy, prompts, making, progress)
        for line in [*made.readable.lines(), *made.lines(), *filter(None, [judge.note()])]:
            tell(line)
        if not made.rows:
            raise JudgeError(f"round {number}: the judge tells no prompt's completions apart")
        known = read_scores(self.folder)
        if number not in [line["round"] for line in known]:
            scored = {"round": number, "mean_score": made.mean, "rows": made.rows}
            append_line(self.folder / SCORES_FILE, scored, durable=True)
        part.replace(self.rows_of(number))

    def train_round(self, number: int) -> RunResult:
        """Train a round, or go on with it where it has a checkpoint."""
        folder = self.run_of(number)
        if holds_run(folder) and (folder / CHECKPOINTS_FILE).is_file():
            return resume_run(folder, trust_loss=self.trusted)
        return train_with(self.settings(self.own_settings(number)))

    def own_settings(self, number: int) -> dict[str, Any]:
        """Return the settings that a round has of its own: its rows, its folder, and what it begins with."""
        rows: list[Any] = [str(self.rows_of(number))]
        share, earlier = self.plan.mix_previous, range(1, number)
        if share and earlier:
            rows = [{"name": rows[0], "weight": 1 - share}]
            rows += [{"name": str(self.rows_of(each)), "weight": share / len(earlier)} for each in earlier]
        own: dict[str, Any] = {"data": rows, "output": self.run_of(number), "overwrite": True}
        if number > 1:
            own["from_checkpoint"] = str(self.run_of(number - 1))
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
        recorded = RunFolder(self.run_of(1)).read_description()
        made = self.run_of(1) / "base_model"
        return str(made.resolve()) if made.is_dir() else recorded.model

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


def found_anywhere(settings: Settings, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some settings that name files, so that they hold in any folder."""
    found: dict[str, Any] = {}
    if "eval_data" in own:
        found["eval_data"] = {name: absolute_item(item) for name, item in settings.eval_data.items()}
    for name in ("model", "from_checkpoint"):
        if own.get(name) and Path(own[name]).exists():
            found[name] = str(Path(own[name]).resolve())
    return found


def refuse_foreign(name: str, folder: Path, *, trusted: bool) -> None:
    """Refuse a file whose code would be run, or an address that would get a key, unless it is the user's own.

    Raises:
        OptionError: it is outside the current folder, came with the rounds, or is an address.
    """
    path = Path(name).resolve()
    own = path.is_relative_to(Path.cwd()) and not path.is_relative_to(folder.resolve())
    if not trusted and ("://" in name or (path.is_file() and not own)):
        raise OptionError(
            f"{folder} names {name} for its loss or its judge, which would be run or asked; it is not one of "
            "the current folder's own files: look at it, and add --trust-loss"
        )


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Return what each round's completions scored before it was trained."""
    path = folder / SCORES_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def holds_rounds(folder: Path) -> bool:
    """Return whether a folder holds rounds."""
    return (folder / PLAN_FILE).is_file()


def is_done(folder: Path) -> bool:
    """Return whether a folder holds a run that has reached its end."""
    return holds_run(folder) and RunFolder(folder).read_description().status == "done"


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, as they are."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def stops(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a sampling with its tokens in a tuple again."""
    return {**sampling, "stop": tuple(sampling["stop"])}
