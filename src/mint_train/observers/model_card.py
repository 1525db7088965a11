"""The model card of an adapter: what it was trained from, how, on what, and how well it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_train.observers.console import with_interval
from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.files import read_lines, write_whole
from mint_train.run_folder.folder import METRICS_FILE, RunFolder
from mint_train.run_folder.records import Checkpoint

CARD_FILE = "README.md"
ADAPTER, MERGED = "LoRA adapter", "merged model"
NOT_METRICS = {"step", "learning_rate", "tokens", "seconds", "intervals", "batch_means", "groups"}
LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("{base}")
"""
LOAD_MERGED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
"""


class CardWriter:
    """Puts a model card beside the weights of each checkpoint that is a folder on this machine."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @hookimpl
    def checkpoint_saved(self, checkpoint: Checkpoint) -> None:
        """Write the card."""
        if checkpoint.sampler is not None and Path(checkpoint.sampler).is_dir():
            write_card(self.folder, Path(checkpoint.sampler), checkpoint.step)


def write_card(folder: RunFolder, target: Path, step: int, kind: str = ADAPTER) -> None:
    """Write the model card of a run's weights, as they were after a step, into a folder.

    Raises:
        MintTrainError: the run folder is broken, or the disk refuses.
    """
    write_whole(target / CARD_FILE, model_card(folder, step, kind))


def model_card(folder: RunFolder, step: int, kind: str = ADAPTER) -> str:
    """Return the text of the model card of a run's weights, with its metadata for the hub.

    Raises:
        UserError: the run folder is broken.
    """
    from huggingface_hub import ModelCardData

    run = folder.read_description()
    base = base_model(run)
    data = ModelCardData(
        base_model=None if is_local(run) else base,
        library_name="peft" if kind == ADAPTER else "transformers",
        pipeline_tag="text-generation",
        tags=["mint-train", *(["lora"] if kind == ADAPTER else []), *loss_names(run)],
    )
    load = LOAD_ADAPTER if kind == ADAPTER else LOAD_MERGED
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {run['loss']} on {base}",
        f"A {kind} trained with mint-train {run['versions']['mint-train']}.",
        "## Training",
        table(("what", "value"), training_rows(run, base, step)),
        *results(folder, run, step),
        "## How to load it",
        f"```python\n{load.format(base=base)}```",
        "## Versions",
        ", ".join(f"{name} {number}" for name, number in run["versions"].items()) + ".",
    ]
    return "\n\n".join(sections) + "\n"


def is_local(run: Mapping[str, Any]) -> bool:
    """Tell whether the base model is a folder of the user's, which the hub does not have."""
    model = run["settings"]["model"]
    return model is None or Path(model).exists()


def base_model(run: Mapping[str, Any]) -> str:
    """Name the base model, of a folder without its path, which is nobody else's affair."""
    model = run["settings"]["model"]
    if model is None:
        return str(run["model"]) if run["backend"] == "mint" else "base_model"
    return Path(model).name if Path(model).exists() else str(model)


def losses(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what is said of the loss, or of each part of a sum."""
    return [{"name": run["loss"], **part} for part in run.get("parts", [run])]


def loss_names(run: Mapping[str, Any]) -> list[str]:
    """Return the names of the losses."""
    return [str(part["name"]) for part in losses(run)]


def training_rows(run: Mapping[str, Any], base: str, step: int) -> Iterable[tuple[str, str]]:
    """Say what was trained, how and on what."""
    settings, data = run["settings"], run["data"]
    yield "base model", f"`{base}`" + (" (a local folder)" if is_local(run) else "")
    for part in losses(run):
        weight = f"{part['weight']} * " if "weight" in part else ""
        plugin = next(reversed(part["plugins"].values()))
        options = ", ".join(f"{name}={value}" for name, value in part["options"].items()) or "none"
        yield "loss", f"{weight}`{part['name']}` ({plugin}): {part['description']}"
        if part["paper"]:
            yield "paper", part["paper"]
        yield "its options", options
    yield "data", f"`{Path(data['path']).name}`, SHA-256 `{data['sha256']}`"
    yield "trained groups", f"{data['groups']}, and {len(data['left_out'])} left out"
    yield "steps", f"{step} of {run['steps']}"
    for name in ("batch_size", "accumulate", "lr", "schedule", "rank", "max_length", "seed"):
        yield name.replace("_", " "), str(settings[name])


def results(folder: RunFolder, run: Mapping[str, Any], step: int) -> Iterable[str]:
    """Say how the policy does: the last step's figures, and the evaluations before and after."""
    steps = [line for line in read_lines(folder.path / METRICS_FILE) if line["step"] <= step]
    evaluations = [line for line in folder.evaluations() if line["step"] <= step]
    if steps:
        last = {name: value for name, value in steps[-1].items() if name not in NOT_METRICS}
        yield "## Results"
        yield f"The batch of step {steps[-1]['step']}:"
        yield table(("metric", "value"), [(name, f"{value:.6g}") for name, value in last.items()])
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        held_out = run["data"]["held_out"]
        yield (
            f"{last['groups']} held-out groups of `{Path(held_out['path']).name}` "
            f"(SHA-256 `{held_out['sha256']}`), with 95 % confidence intervals:"
        )
        header = ("metric", f"after step {first['step']}", f"after step {last['step']}")
        names = [name for name in last if name not in NOT_METRICS]
        yield table(header, [(name, evaluated(name, first), evaluated(name, last)) for name in names])


def evaluated(name: str, line: Mapping[str, Any]) -> str:
    """Format a metric of an evaluation with its interval."""
    return with_interval(name, ".4g", line, line["intervals"]) if name in line else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
