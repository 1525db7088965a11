"""Save and load an adapter with its optimiser state, bit for bit, as safetensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mint_train.backends.peft_folder import ADAPTER_WEIGHTS
from mint_train.errors import BackendError, MintTrainError
from mint_train.run_folder.files import whole_folder
from mint_train.run_folder.records import STATE_FILE

CHECKSUM = "sha256"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
WEIGHT = "weight/"
PEFT_NAME = re.compile(r"(\.lora_[AB])(\.weight)$")


def save_state(
    folder: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Save the weights and AdamW's moments in a folder, atomically.

    Raises:
        BackendError: writing failed; an earlier state in the folder is unchanged.
    """
    tensors = {WEIGHT + name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}
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
    check_weights(folder, weights_of(tensors), parameters)
    for name, parameter in parameters.items():
        for key in MOMENTS:
            moment = tensors.get(f"{key}/{name}")
            if moment is not None and moment.shape != (parameter.shape if key != "step" else ()):
                raise BackendError(f"the state in {folder} is broken: {key} of {name} has another shape")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[WEIGHT + name])
            moments = {key: tensors[f"{key}/{name}"] for key in MOMENTS if f"{key}/{name}" in tensors}
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter) for key, value in moments.items()
            }


def load_weights(folder: Path, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Load the weights alone, of a state that `save_state` saved or of an adapter in PEFT's format.

    Raises:
        BackendError: the file is missing or broken, or belongs to another adapter.
    """
    if (folder / STATE_FILE).exists():
        weights = weights_of(read_state(folder / STATE_FILE))
    else:
        weights = read_peft_weights(folder / ADAPTER_WEIGHTS)
    check_weights(folder, weights, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def weights_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a state by the names of their parameters."""
    return {name.removeprefix(WEIGHT): tensor for name, tensor in tensors.items() if name.startswith(WEIGHT)}


def check_weights(
    folder: Path, weights: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.nn.Parameter]
) -> None:
    """Refuse weights that are not exactly those of the parameters.

    Raises:
        BackendError: naming the first one that is missing, has another shape, or is one too many.
    """
    for name in [*parameters, *weights]:
        if name not in parameters or name not in weights or weights[name].shape != parameters[name].shape:
            raise BackendError(
                f"{folder} belongs to another model or rank: {name} is missing on one side, or has another "
                "shape"
            )


def read_peft_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read an adapter in PEFT's format, whose names lack the adapter's own.

    Raises:
        BackendError: the file is missing or broken.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise BackendError(f"the adapter {path} cannot be loaded: {error}") from error
    return {PEFT_NAME.sub(r"\1.default\2", name): tensor for name, tensor in tensors.items()}


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
