"""The model card of an adapter: its base model, its training, its data, and its results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_train.backends.hub_model import split_revision
from mint_train.observers.terminal import printable
from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.description import RunDescription
from mint_train.run_folder.files import read_lines, write_whole
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.metric import with_interval
from mint_train.run_folder.parts import BASE_MODEL, METRICS_FILE
from mint_train.run_folder.records import Checkpoint

CARD_FILE = "README.md"
MARKDOWN = re.compile(r"([\\`*_\[\]<>#~&$])")
ADDRESS = re.compile(r"https?://[^\s<>`|()\[\]]+")
LOAD_ADAPTER = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained({base})
```"""
LOAD_MERGED = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```"""
GGUF_FILE, MODELFILE = "model-f16.gguf", "Modelfile"
LOAD_GGUF = f"""\
```bash
llama-server --model THIS_FOLDER/{GGUF_FILE}
ollama create MY_MODEL --file THIS_FOLDER/{MODELFILE}
```"""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the weights beside a card are."""

    name: str
    library: str
    """The hub's name of the library that loads them."""
    tags: tuple[str, ...]
    load: str


ADAPTER = Kind("LoRA adapter", "peft", ("lora",), LOAD_ADAPTER)
MERGED = Kind("merged model", "transformers", (), LOAD_MERGED)
GGUF = Kind("model in GGUF", "gguf", ("gguf",), LOAD_GGUF)


class CardWriter:
    """Writes a model card beside the weights of each checkpoint that is a folder on this machine."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @hookimpl
    def checkpoint_saved(self, checkpoint: Checkpoint) -> None:
        """Write the card."""
        if checkpoint.sampler is not None and Path(checkpoint.sampler).is_dir():
            write_card(self.folder, Path(checkpoint.sampler), checkpoint.step)


def write_card(
    folder: RunFolder, target: Path, step: int, kind: Kind = ADAPTER, *, with_base: bool = False
) -> None:
    """Write the model card of a run's weights, as they were after a step, into a folder.

    Args:
        folder: the run.
        target: the folder of the weights.
        step: the optimiser steps that they have taken.
        kind: what the weights are.
        with_base: the base model, which was made for the run, lies in the folder too.

    Raises:
        MintTrainError: the run folder is broken, or the card cannot be written.
    """
    write_whole(target / CARD_FILE, model_card(folder, step, kind, with_base=with_base))


def model_card(folder: RunFolder, step: int, kind: Kind = ADAPTER, *, with_base: bool = False) -> str:
    """Return the text of the model card of a run's weights, with metadata for the hub.

    Raises:
        UserError: the run folder is broken.
    """
    from huggingface_hub import ModelCardData

    run = folder.read_description()
    base = base_model(run)
    data = ModelCardData(
        base_model=None if is_private(run) else base,
        library_name=kind.library,
        pipeline_tag="text-generation",
        tags=["mint-train", *kind.tags, *(loss.name for loss in run.losses)],
    )
    named = literal(f"THIS_FOLDER/{BASE_MODEL}" if with_base else base)
    if revision := base_revision(run):
        named = f"{named}, revision={literal(revision)}"
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {plain(run.loss)} on {plain(base)}",
        f"A {kind.name} trained with mint-train {plain(run.versions['mint-train'])}.",
        "## Training",
        table(("what", "value"), training_rows(run, base, step)),
        *results(folder, run, step),
        "## How to load it",
        kind.load.format(base=named),
        "## Versions",
        ", ".join(plain(f"{name} {number}") for name, number in run.versions.items()) + ".",
    ]
    return "\n\n".join(sections) + "\n"


def is_private(run: RunDescription) -> bool:
    """Return whether the base model is on this machine only, so that the hub does not have it."""
    model = run.settings["model"]
    return model is None or Path(model).exists()


def base_model(run: RunDescription) -> str:
    """Name the base model; local paths are private, so a folder is named without its path."""
    model = run.settings["model"]
    if model is None:
        return BASE_MODEL
    return Path(model).name if is_private(run) else split_revision(model)[0]


def base_revision(run: RunDescription) -> str | None:
    """Return the base model's revision on the hub, where it is known."""
    model = run.settings["model"]
    return None if model is None else split_revision(model)[1]


def without_path(value: Any) -> Any:
    """Return an option's value; a file or folder is named without its path, which is private."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def training_rows(run: RunDescription, base: str, step: int) -> Iterable[tuple[str, str]]:
    """Say what was trained, how, and on what."""
    yield "base model", code(base) + (" (a local folder)" if is_private(run) else "")
    if revision := base_revision(run):
        yield "its revision", code(revision)
    for loss in run.losses:
        weight = "" if loss.weight is None else f"{loss.weight} * "
        plugin = Path(next(reversed(loss.plugins.values()))).name  # of a file; others hold no slash
        yield "loss", f"{weight}{code(loss.name)} ({plain(plugin)}): {plain(loss.description)}"
        if loss.paper:
            yield "paper", loss.paper if ADDRESS.fullmatch(loss.paper) else plain(loss.paper)
        options = ", ".join(f"{name}={without_path(value)}" for name, value in loss.options.items())
        yield "its options", plain(options) or "none"
    for source in run.data.sources:
        weight = "" if source.weight is None else f", weight {source.weight:g}"
        yield "data", f"{code(Path(source.path).name)}, SHA-256 {code(source.sha256)}{weight}"
    yield "trained groups", f"{run.data.groups}, and {len(run.data.left_out)} left out"
    yield "steps", f"{step} of {run.steps}"
    for name in ("batch_size", "accumulate", "lr", "schedule", "rank", "max_length", "seed"):
        yield name.replace("_", " "), plain(str(run.settings[name]))
    kind, off = run.settings.get("quantize"), run.quantization
    if kind:
        moved = f"; that moved logprobs by {off.mean:.2g} nats on average" if off else ""
        yield "base model in training", f"{kind} weights{moved}"
    if run.processes > 1:
        yield "processes", str(run.processes)


def results(folder: RunFolder, run: RunDescription, step: int) -> Iterable[str]:
    """Report the last step's metrics, and the evaluations before and after."""
    steps = [line for line in read_lines(folder.path / METRICS_FILE) if line["step"] <= step]
    evaluations = [line for line in folder.evaluations() if line["step"] <= step]
    if steps:
        yield "## Results"
        yield f"The batch of step {steps[-1]['step']}:"
        metrics = steps[-1]["metrics"]
        yield table(("metric", "value"), [(plain(name), f"{value:.6g}") for name, value in metrics.items()])
    for held_out in run.data.held_out:
        lines = [line for line in evaluations if line.get("held_out", "") == held_out.name]
        if not lines:
            continue
        first, last = lines[0], lines[-1]
        yield (
            f"{held_out.name + ': ' if held_out.name else ''}"
            f"{last['groups']} held-out groups of {code(Path(held_out.path).name)} "
            f"(SHA-256 {code(held_out.sha256)}), with 95 % confidence intervals:"
        )
        header = ("metric", f"after step {first['step']}", f"after step {last['step']}")
        rows = [(plain(name), evaluated(name, first), evaluated(name, last)) for name in last["metrics"]]
        yield table(header, rows)


def evaluated(name: str, line: Mapping[str, Any]) -> str:
    """Format a metric of an evaluation with its interval."""
    return with_interval(name, ".4g", line["metrics"], line["intervals"]) if name in line["metrics"] else ""


def plain(text: str) -> str:
    """Return a text for the body of a card: one line, without Markdown, HTML or control characters in it."""
    return MARKDOWN.sub(r"\\\1", " ".join(printable(text).split()))


def code(name: str) -> str:
    """Return a name as a code span."""
    return f"`{' '.join(printable(name).split()).replace('`', chr(39))}`"


def literal(text: str) -> str:
    """Return a text as a Python literal that does not end the block of code that it stands in."""
    return json.dumps(text).replace("`", "\\u0060")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
