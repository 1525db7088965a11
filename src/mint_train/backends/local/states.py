"""Saving and loading an adapter with its optimiser, in safetensors, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mint_train.errors import BackendError, MintTrainError
from mint_train.run_folder.files import whole_folder

STATE_FILE = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(
    folder: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write the weights and AdamW's moments as one file of a folder, whole or not at all.

    Raises:
        BackendError: the disk refuses; what was saved before stays.
    """
    tensors = {
        f"weight/{name}": parameter.detach().cpu().contiguous() for name, parameter in parameters.items()
    }
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    try:
        with whole_folder(folder) as beside:
            save_file(tensors, beside / STATE_FILE)
    except (MintTrainError, SafetensorError) as error:
        raise BackendError(f"the state cannot be saved to {folder}: {error}") from error


def load_state(
    folder: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Load what `save_state` wrote.

    Raises:
        BackendError: the file is missing, broken, or belongs to another adapter.
    """
    try:
        tensors = load_file(folder / STATE_FILE)
    except (OSError, SafetensorError) as error:
        raise BackendError(f"the state in {folder} cannot be loaded: {error}") from error
    for name, parameter in parameters.items():
        saved = tensors.get(f"weight/{name}")
        if saved is None or saved.shape != parameter.shape:
            raise BackendError(f"the state in {folder} belongs to another model or rank: {name} does not fit")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            moments = {key: tensors[f"{key}/{name}"] for key in MOMENTS if f"{key}/{name}" in tensors}
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter) for key, value in moments.items()
            }


def delete_state(folder: Path) -> None:
    """Remove what `save_state` wrote, and nothing else that may stand in the folder.

    Raises:
        BackendError: the disk refuses.
    """
    try:
        (folder / STATE_FILE).unlink(missing_ok=True)
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise BackendError(f"the state in {folder} cannot be removed: {error}") from error
