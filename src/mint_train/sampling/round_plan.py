"""The plan of rounds: what they have in common, as their folder keeps it and another process reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError, UserError
from mint_train.groups.shares import largest_remainders
from mint_train.run_folder.files import is_file, write_whole
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.replacing import holds_run
from mint_train.sampling.journal import whole_lines
from mint_train.settings.data_items import absolute_item
from mint_train.settings.model import Settings
from mint_train.settings.rounds import RoundsSettings
from mint_train.settings.sampling import Sampling

PLAN_FILE = "rounds.json"
SCORES_FILE = "rounds.jsonl"
POLICY_FIELDS = (
    *("backend", "base_url", "dtype", "quantize", "special_tokens"),
    *("render", "chat_template", "chat_template_kwargs"),
)
JUDGE_FIELDS = ("judge", "judge_options", "judge_timeout")
"""The plan has them; the settings of each round have them where its run has prompts to complete."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all rounds have in common, beside the settings of their training."""

    rounds: int
    prompts: str
    judge: str
    judge_options: Mapping[str, Any]
    judge_timeout: float
    sampling: Sampling
    writer: str
    writer_options: Mapping[str, str]
    mix_previous: float = 0.0
    """The share of an epoch that rows of earlier rounds have."""
    judge_is_function: bool = False
    """Whether the judge is a function of a Python program, which must be given again to go on."""
    prompts_sha256: str = ""
    """Of the prompts when the rounds began."""
    judge_files: Mapping[str, str] = field(default_factory=dict)
    """What decides the judge's scores besides its options: versions and digests of files, by name."""

    @classmethod
    def of(cls, asked: RoundsSettings, seed: int, *, judge_is_function: bool = False) -> Plan:
        """Return the plan that options ask for.

        Args:
            asked: with rounds, prompts and judge.
            seed: of the first round's completions.
            judge_is_function: the judge is a function of a Python program.
        """
        return cls(
            rounds=asked.rounds or 1,
            prompts=str(asked.prompts),
            judge=str(asked.judge),
            judge_options=asked.judge_options,
            judge_timeout=asked.judge_timeout,
            sampling=Sampling(asked.samples, asked.max_tokens, asked.temperature, seed),
            writer="pair",
            writer_options={"take": asked.model_dump()["pair"]},
            mix_previous=asked.mix_previous,
            judge_is_function=judge_is_function,
        )

    def found_anywhere(self) -> Plan:
        """Return the plan with paths of its prompts and of the judge's files that hold in any folder."""
        options = {
            name: str(Path(value).resolve()) if is_file(value) else value
            for name, value in self.judge_options.items()
        }
        found = self.prompts != "-" and Path(self.prompts).exists()
        prompts = str(Path(self.prompts).resolve()) if found else self.prompts
        return replace(self, prompts=prompts, judge_options=options)


def write_plan(folder: Path, plan: Plan, settings: Mapping[str, Any]) -> None:
    """Keep a plan and the settings of its training in the folder of the rounds.

    Raises:
        MintTrainError: the disk refuses.
    """
    write_whole(folder / PLAN_FILE, json.dumps({"plan": asdict(plan), "settings": settings}, indent=2) + "\n")


def read_plan(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """Return the plan in a folder, and the settings of its training.

    Raises:
        UserError: it is broken.
    """
    try:
        found = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
        sampling = found["plan"]["sampling"]
        drawn = Sampling(**{**sampling, "stop": tuple(sampling["stop"])})
        return Plan(**found["plan"] | {"sampling": drawn}), dict(found["settings"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / PLAN_FILE} is broken: {error}") from error


def run_of(folder: Path, number: int) -> Path:
    """Return the run folder of a round, counted from 1."""
    return folder / f"round-{number:03d}"


def rows_of(folder: Path, number: int) -> Path:
    """Return the rows of a round."""
    return folder / f"round-{number:03d}.jsonl"


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Return what each round's completions scored before it was trained.

    Raises:
        UserError: the file is broken.
    """
    return whole_lines(folder / SCORES_FILE)


def holds_rounds(folder: Path) -> bool:
    """Return whether a folder holds rounds."""
    return (folder / PLAN_FILE).is_file()


def is_done(folder: Path) -> bool:
    """Return whether a folder holds a run that has reached its end."""
    return holds_run(folder) and RunFolder(folder).read_description().status == "done"


def mixed_in(share: float, scored: Sequence[Mapping[str, Any]], number: int) -> list[int]:
    """Return the earlier rounds whose rows a round trains on too: as many as get a row of each epoch.

    Args:
        share: of an epoch that all of them have.
        scored: how many rows each round has, as `read_scores` returns it.
        number: the round.
    """
    counts = {line["round"]: line["rows"] for line in scored}
    for first in range(1, number if share else 1):
        earlier = [*range(first, number)]
        weights = [1 - share, *(share / len(earlier) for _ in earlier)]
        if all(largest_remainders(weights, sum(counts.get(each, 0) for each in (number, *earlier)))):
            return earlier
    return []


def files_found_anywhere(settings: Settings, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some settings that name files, so that they hold in any folder."""
    found: dict[str, Any] = {}
    if "eval_data" in own:
        found["eval_data"] = {name: absolute_item(item) for name, item in settings.eval_data.items()}
    for name in ("model", "from_checkpoint"):
        if own.get(name) and Path(own[name]).exists():
            found[name] = str(Path(own[name]).resolve())
    return found


def keep_judge(folder: Path, files: Mapping[str, str], last: str | None) -> None:
    """Record what the judge is in the first round, where it may still be mended; later refuse another.

    Args:
        folder: of the rounds.
        files: the judge's versions and digests of files now, by name.
        last: the run of the round before; None in the first round.

    Raises:
        OptionError: one is not that which the rounds began with.
        UserError: the plan is broken.
        MintTrainError: the disk refuses.
    """
    plan, given = read_plan(folder)
    if last is None:
        write_plan(folder, replace(plan, judge_files=files), given)
        return
    for name, digest in plan.judge_files.items():
        if files.get(name) != digest:
            raise OptionError(
                f"{name} has changed since these rounds began; restore it, or start new rounds with "
                f"--from {last}"
            )


def refuse_changes(folder: Path, changed: Sequence[str]) -> None:
    """Refuse to resume rounds with other settings than those that they began with, except a larger budget.

    Raises:
        OptionError: something is to be changed.
    """
    if {*changed} - {"token_budget"}:
        raise OptionError(
            f"{folder} holds rounds, which go on with the settings that they began with; only --token-budget "
            "may change"
        )
