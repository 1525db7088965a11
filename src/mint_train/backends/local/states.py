"""Save and load an adapter with its optimiser state, bit for bit, as safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mint_train.errors import BackendError, MintTrainError
from mint_train.run_folder.files import whole_folder

STATE_FILE = "state.safetensors"
CHECKSUM = "sha256"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(
    folder: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Save the weights and AdamW's moments in a folder, atomically.

    Raises:
        BackendError: writing failed; an earlier state in the folder is unchanged.
    """
    tensors = {
        f"weight/{name}": parameter.detach().cpu().contiguous() for name, parameter in parameters.items()
    }
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    try:
        with whole_folder(folder) as beside:
            save_file(tensors, beside / STATE_FILE, {CHECKSUM: checksum(tensors)})
    except (MintTrainError, SafetensorError) as error:
        raise BackendError(f"the state cannot be saved to {folder}: {error}") from error


def load_state(
    folder: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Load a state that `save_state` saved.

    Raises:
        BackendError: the file is missing or broken, or belongs to another adapter.
    """
    tensors = read_state(folder / STATE_FILE)
    for name, parameter in parameters.items():
        saved = tensors.get(f"weight/{name}")
        if saved is None or saved.shape != parameter.shape:
            raise BackendError(
                f"the state in {folder} belongs to another model or rank: "
                f"{name} is missing or has another shape"
            )
        for key in MOMENTS:
            moment = tensors.get(f"{key}/{name}")
            if moment is not None and moment.shape != (parameter.shape if key != "step" else ()):
                raise BackendError(f"the state in {folder} is broken: {key} of {name} has another shape")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            moments = {key: tensors[f"{key}/{name}"] for key in MOMENTS if f"{key}/{name}" in tensors}
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter) for key, value in moments.items()
            }


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a state.

    Raises:
        BackendError: the file is missing, or is not as it was written.
    """
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get(CHECKSUM)
    except (OSError, SafetensorError, ValueError) as error:
        raise BackendError(f"the state in {path.parent} cannot be loaded: {error}") from error
    if written != checksum(tensors):
        raise BackendError(f"the state in {path.parent} is broken: it is not as it was written")
    return tensors


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, shapes and dtypes, hexadecimal."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def delete_state(folder: Path) -> None:
    """Delete a state that `save_state` saved, and its folder if that leaves it empty.

    Raises:
        BackendError: deleting failed.
    """
    try:
        (folder / STATE_FILE).unlink(missing_ok=True)
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise BackendError(f"the state in {folder} cannot be deleted: {error}") from error
