"""Adapters in PEFT's format: what `adapter_config.json` says, and whether it is plain LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mint_train.backends.hub_model import at_revision, split_revision
from mint_train.errors import UserError
from mint_train.run_folder.several_runs import name_one

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
ALL_LINEAR = "all-linear"
READ = frozenset({"base_model_name_or_path", "lora_alpha", "r", "target_modules", "use_rslora"})
ABOUT_TRAINING = frozenset(
    {
        "auto_mapping",
        "fan_in_fan_out",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Fields that do not change what the weights compute in a plain linear layer."""
PLAIN_VALUES: Mapping[str, tuple[object, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
}
"""Values of other fields that mean plain LoRA; a field in neither list must be empty."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What a run needs to know of an adapter."""

    base_model: str
    rank: int
    alpha: float
    """LoRA's alpha: the adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...]
    """Names of the adapted layers; empty for all linear layers."""

    @classmethod
    def read(cls, folder: Path) -> PeftConfig:
        """Read a folder's `adapter_config.json`.

        Raises:
            UserError: it is broken, or the adapter is more than plain LoRA.
        """
        path = folder / ADAPTER_CONFIG
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            refuse_variants(path, values)
            rank, alpha = int(values["r"]), float(values["lora_alpha"])
            targets = values.get("target_modules") or adapted_layers(folder)  # SkyRL names none
            base_model = at_revision(str(values["base_model_name_or_path"] or ""), values.get("revision"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not a LoRA adapter's: {error}") from error
        if (folder / PICKLED_WEIGHTS).exists() and not (folder / ADAPTER_WEIGHTS).exists():
            raise UserError(
                f"{folder / PICKLED_WEIGHTS} is a pickle, which can run code when it is loaded; "
                f"convert it to {ADAPTER_WEIGHTS}"
            )
        if isinstance(targets, str) and targets != ALL_LINEAR:
            raise UserError(f"{path}: target_modules is a pattern ({targets}); list the names of the layers")
        if values.get("use_rslora"):
            alpha *= rank**0.5  # its output is multiplied by alpha / sqrt(rank)
        return cls(base_model, rank, alpha, () if targets == ALL_LINEAR else tuple(sorted(targets)))

    def find_base(self, folder: Path) -> str:
        """Return the base model: a folder in the adapter's or beside it, else as the adapter names it."""
        beside = (Path(self.base_model), folder / self.base_model, folder.resolve().parent / self.base_model)
        found = next((path for path in beside if self.base_model and path.is_dir()), None)
        return self.base_model if found is None else str(found)

    def may_belong_to(self, model: str) -> bool:
        """Return whether an adapter may be of a base model: a folder may be a copy of what the hub has."""
        if not self.base_model or Path(self.base_model).name == Path(model).resolve().name:
            return True
        (own, revision), (other, given) = split_revision(self.base_model), split_revision(model)
        alike = revision is None or given is None or revision == given
        return alike and Path(own).name == Path(other).resolve().name


def adapted_layers(folder: Path) -> list[str]:
    """Return the names of the layers whose matrices an adapter holds.

    Raises:
        ValueError: its weights cannot be read, or are of no layer.
    """
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
            names = {key.rpartition(".lora_A")[0].rpartition(".")[2] for key in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"it names no target_modules, and its weights cannot be read: {error}") from error
    if not names - {""}:
        raise ValueError("it names no target_modules, and its weights hold no matrices of LoRA")
    return sorted(names - {""})


def refuse_variants(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse an adapter that plain LoRA on linear layers does not compute.

    Raises:
        UserError: naming the field.
    """
    if values["peft_type"] != "LORA":
        raise UserError(f"{path}: an adapter of the type {values['peft_type']}; only LORA can be trained on")
    for field, value in values.items():
        if field in READ | ABOUT_TRAINING:
            continue
        if value and value not in PLAIN_VALUES.get(field, ()):
            raise UserError(f"{path}: {field} is {json.dumps(value)}, which is more than plain LoRA")


def download_adapter(name: str) -> Path:
    """Return the folder of an adapter of the hub, downloaded unless it is there already.

    Raises:
        UserError: the name is of nothing on this machine, and the hub does not give an adapter of that name.
    """
    missing = f"--from {name}: neither a run folder, nor a folder with an {ADAPTER_CONFIG}"
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).exists():
        raise UserError(f"{missing}, nor a state on the service (tinker://...){name_one(Path(name))}")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[ADAPTER_CONFIG, ADAPTER_WEIGHTS]))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{missing}, nor can it be downloaded from the hub: {reason}") from error
    if not (folder / ADAPTER_CONFIG).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{missing}, and on the hub it lacks {ADAPTER_CONFIG} or {ADAPTER_WEIGHTS}")
    return folder
