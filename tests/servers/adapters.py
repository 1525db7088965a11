"""Adapters as a server saves them, and how far training moved them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from server import SkyrlServer

SHARED = ("q_proj.lora_A", "k_proj.lora_A", "v_proj.lora_A", "gate_proj.lora_A", "up_proj.lora_A")
"""The matrices A that SkyRL has once for several projections, and other programs once for each."""
Adapter = dict[str, torch.Tensor]
"""The matrices by PEFT's names."""


def adapter_on_disk(server: SkyrlServer, path: str) -> Path:
    """Return the folder, on the server's own disk, of the adapter that a path for sampling names."""
    model, _, name = path.removeprefix("tinker://").partition("/")
    name = name.removeprefix("sampler_weights/")
    saved = server.log.parent / "checkpoints"
    archives = list(saved.glob(f"{model}/sampler_weights/{name}.tar.gz"))  # SkyRL
    if not archives:
        (config,) = saved.rglob(f"{model}/**/{name}/adapter/adapter_config.json")  # TuFT
        return config.parent
    folder = archives[0].with_suffix("").with_suffix("")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder


def load_adapter(folder: Path) -> Adapter:
    """Read the matrices of an adapter in PEFT's format."""
    return load_file(folder / "adapter_model.safetensors")


def moved(first: Adapter, last: Adapter) -> torch.Tensor:
    """Return how far an adapter moved, float64 `[numbers]`, without the matrices that SkyRL shares."""
    own = sorted(name for name in first if not any(part in name for part in SHARED))
    return torch.cat([(last[name].double() - first[name].double()).flatten() for name in own])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the cosine distance of two movements."""
    return 1 - float(torch.nn.functional.cosine_similarity(one, other, dim=0))
