"""A run's weights in the formats of the ecosystem."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from mint_train.backends.peft_folder import ADAPTER_CONFIG
from mint_train.errors import OptionError, UserError, command_line
from mint_train.observers.model_card import MERGED, write_card
from mint_train.run_folder.files import whole_folder
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import Checkpoint
from mint_train.trained.find import Trained, find_trained

BASE_FIELD = "base_model_name_or_path"


@dataclass(frozen=True, slots=True)
class Exported:
    """Where a run's weights are."""

    checkpoint: Checkpoint
    folder: Path | None
    """The folder that was written; None where the weights are on the service, as `checkpoint.sampler`."""
    address: str | None = None
    """The service's address, if the run names one."""


def export_run(path: Path, output: Path | None = None, *, merge: bool = False) -> Exported:
    """Write a run's adapter, or its merged model, to a folder; those of a run on MinT stay on the service.

    Args:
        path: the run folder.
        output: the folder to write; without it, one beside the run folder.
        merge: add the adapter to the base model's weights.

    Raises:
        UserError: the run or its adapter is missing, or the weights are on the service.
        OptionError: the folder exists and is not empty.
        BackendError: the weights cannot be merged.
    """
    trained = find_trained(str(path), None, {}, only_read=True)
    folder = trained.folder
    if folder is None or folder.path != path:
        raise UserError(f"{path} is not a run folder; name the folder that holds its run.json")
    checkpoint = weights_of(folder)
    if trained.backend.remote:
        if merge or output is not None:
            raise UserError(
                f"the weights of {path} are on the service, as {checkpoint.sampler}; without --merge and "
                "--output this command prints how to sample from them"
            )
        return Exported(checkpoint, None, trained.settings.base_url)
    output = output or path.with_name(f"{path.name}-{'merged' if merge else 'adapter'}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OptionError(f"--output {output} exists and is not empty; name another folder")
    with whole_folder(output) as beside:
        write_weights(trained, folder, checkpoint, beside, merge=merge)
    return Exported(checkpoint, output)


def weights_of(folder: RunFolder) -> Checkpoint:
    """Return the newest checkpoint with weights to sample from.

    Raises:
        UserError: there is none.
    """
    saved = [checkpoint for checkpoint in folder.checkpoints() if checkpoint.sampler is not None]
    if not saved:
        raise UserError(
            f"{folder.path} has no adapter yet: `{command_line('resume', folder.path)}` continues it to its "
            "end"
        )
    return saved[-1]


def write_weights(
    trained: Trained, folder: RunFolder, checkpoint: Checkpoint, target: Path, *, merge: bool
) -> None:
    """Fill a folder with the adapter or the merged model, and the model card."""
    adapter = Path(str(checkpoint.sampler))
    if not adapter.is_dir():
        raise UserError(f"{adapter} is gone: `{command_line('resume', folder.path)}` writes it again")
    if not adapter.resolve().is_relative_to(folder.path.resolve()):
        raise UserError(f"{adapter} is not in {folder.path}, so it is not an adapter that this run wrote")
    if merge:
        from mint_train.backends.local.merging import merge_adapter

        merge_adapter(str(trained.settings.model), adapter, target)
        write_card(folder, target, checkpoint.step, MERGED)
        return
    shutil.copytree(adapter, target, dirs_exist_ok=True)
    config_path = target / ADAPTER_CONFIG
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        broken = adapter / ADAPTER_CONFIG
        raise UserError(f"{broken} is broken ({error}); `mint-train resume` writes it again") from error
    if Path(str(trained.settings.model)).exists():  # PEFT resolves a relative path from the working directory
        config[BASE_FIELD] = str(Path(str(trained.settings.model)).resolve())
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_card(folder, target, checkpoint.step)
