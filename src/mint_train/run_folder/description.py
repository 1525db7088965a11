"""What `run.json` says of a run: everything that decides it, and how it stands. It never holds a secret."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mint_train.errors import UserError
from mint_train.run_folder.metric import Metric
from mint_train.settings.prices import Cost

FORMAT = 3
"""The format of what a run writes; a resume of another one is refused."""


class Part(BaseModel):
    """A part of `run.json`; a field that this version does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LossDescription(Part):
    """A loss, or one part of a weighted sum."""

    name: str
    weight: float | None = None
    """Its weight in a sum."""
    description: str
    paper: str | None
    options: dict[str, Any]
    plugins: dict[str, str]
    """The distribution of each plugin by name, the base first."""


class FunctionDescription(Part):
    """Where the loss stands that is a function of a Python program."""

    name: str
    """Its qualified name in the module."""
    module: str
    """`__main__` for a script or a notebook."""
    file: str | None
    """None in a notebook."""
    code: str | None = None
    """A digest of its code; None in a run of an earlier version."""


class SourceDescription(Part):
    """One of the sources of the rows that are trained on."""

    path: str
    sha256: str
    rows: int
    weight: float | None = None
    per_epoch: int | None = None
    """Groups of it in an epoch, where the sources have weights."""


class HeldOutDescription(Part):
    """A held-out set; with `--eval-fraction` its rows are of the same data as the others."""

    name: str = ""
    """What the user calls it."""
    path: str
    sha256: str
    groups: int
    left_out: list[str]


class DataDescription(Part):
    """The rows and what became of them."""

    path: str
    """The names of all sources."""
    sha256: str
    sources: list[SourceDescription]
    forms: dict[str, int]
    """Rows by their form."""
    rows: int
    skipped: int
    groups: int
    left_out: list[str]
    """Rows that `--max-length` leaves with nothing to train: file, line and reason."""
    special_tokens: list[str]
    """Rows whose text holds a special token, with the token."""
    held_out: list[HeldOutDescription]


class StartDescription(Part):
    """The adapter that a run begins with."""

    name: str
    """As the user named it."""
    path: str
    """A state on the service or in a run folder, or a folder in PEFT's format."""
    sha256: str | None
    """The SHA-256 of its weights; None if they are on the service."""
    optimizer: bool
    """Whether the optimiser's moments are taken too."""


class ReferenceDescription(Part):
    """A reference in a folder: a model, or a saved state."""

    path: str
    """The folder, absolute."""
    files: dict[str, str]
    """Digests of its files, by name."""


class QuantizationDescription(Part):
    """How far logprobs are from those of the unquantised model, without adapter: absolute, nats per token."""

    texts: int
    tokens: int
    mean: float
    largest: float


class RunDescription(Part):
    """A run as `run.json` holds it."""

    format: int = FORMAT
    status: Literal["running", "done", "interrupted", "failed"] = "running"
    finished_steps: int | None = None
    problem: str | None = None
    """Why the run failed."""
    tokens: dict[str, int] = {}
    """The tokens that it has sent, by kind, since it began; known once it has ended."""
    cost: Cost | None = None
    """What they cost; None without prices."""
    loss: str
    losses: list[LossDescription]
    metrics: dict[str, Metric]
    """What the loss says of its metrics, by name."""
    loss_files: dict[str, str] = {}
    """The SHA-256 of each loss file, by its path."""
    function: FunctionDescription | None = None
    """The function of a Python program that is the loss; None for any other loss."""
    chat_template: str | None = None
    """The SHA-256 of the file of `--chat-template`."""
    sample_prompts: str | None = None
    """The SHA-256 of the prompts of `--sample-prompts`."""
    judge_versions: dict[str, str] = {}
    """What decides the scores of their completions besides the judge's options, by name."""
    backend: Literal["mint", "local"]
    model: str
    base_model: dict[str, str] = {}
    """Digests of the files of the base model's folder, by name; empty for a model that is not in a folder."""
    reference: ReferenceDescription | None = None
    """The loss's reference; None for one that is not in a folder."""
    processes: int = 1
    """How many processes of this machine compute together; after a resume, how many now."""
    start: StartDescription | None = None
    """The adapter that the run begins with; None for a fresh one."""
    quantization: QuantizationDescription | None = None
    """What `--quantize` changes, measured on the first rows; None for weights that are not quantised."""
    gradients: str
    """How gradients reach the backend; "exact" if no service comes between."""
    steps: int
    settings: dict[str, Any]
    data: DataDescription
    versions: dict[str, str]

    @property
    def options(self) -> dict[str, Any]:
        """The options of the loss; those of a sum as `part.option`."""
        if len(self.losses) == 1:
            return self.losses[0].options
        return {f"{loss.name}.{name}": value for loss in self.losses for name, value in loss.options.items()}

    @property
    def plugins(self) -> dict[str, str]:
        """The distributions of all plugins of the loss, by plugin."""
        return {name: origin for loss in self.losses for name, origin in loss.plugins.items()}

    def seal(self) -> str:
        """Digest what decides the run: its settings, its backend, its data."""
        decisive = self.model_dump(
            mode="json", include={"settings", "backend", "data", "loss_files", "chat_template", "start"}
        )
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of `run.json`."""
        values = self.model_dump(mode="json") | {"seal": self.seal()}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def parse_description(text: str, path: Path) -> RunDescription:
    """Read the text of `run.json`.

    Raises:
        UserError: it is broken, edited, or of another version of mint-train.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if isinstance(values, dict) and "settings" in values and values.get("format") != FORMAT:
        raise UserError(
            f"{path} was written by another version of mint-train (format {values.get('format')}, this one "
            f"reads {FORMAT}); continue the run with that version"
        )
    try:
        seal = values.pop("seal")
        description = RunDescription(**values)
        own = description.seal()  # of what is nested too deeply there is none
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not a run description that this version of mint-train reads"
            f"{first_problem(error)}; take the version that wrote it, or name another folder"
        ) from error
    if seal != own:
        raise UserError(
            f"{path} has been edited: its settings are no longer those of the run; undo the edit, "
            "or start a new run"
        )
    return description


def first_problem(error: Exception) -> str:
    """Say which field is wrong, where that is known."""
    if not isinstance(error, ValidationError):
        return ""
    first = error.errors(include_url=False)[0]
    return f" ({'.'.join(map(str, first['loc']))}: {first['msg'].lower()})"
