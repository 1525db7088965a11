"""A run's weights in the formats of the ecosystem."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mint_train.backends.peft_folder import ADAPTER_CONFIG, ALL_LINEAR, PeftConfig
from mint_train.errors import DataError, OptionError, UserError, command_line
from mint_train.losses.trust import check_address
from mint_train.observers.model_card import MERGED, write_card
from mint_train.observers.terminal import echo_problem
from mint_train.run_folder.files import whole_folder
from mint_train.run_folder.folder import BASE_MODEL, RunFolder
from mint_train.run_folder.records import Checkpoint
from mint_train.trained.find import Trained, find_trained

if TYPE_CHECKING:
    from mint_train.trained.export_check import ExportCheck

BASE_FIELD = "base_model_name_or_path"


@dataclass(frozen=True, slots=True)
class Exported:
    """Where a run's weights are."""

    checkpoint: Checkpoint
    folder: Path
    """The folder that was written."""
    check: ExportCheck | None = None
    """How far the weights are from the policy; None where they are a copy, or were not checked."""
    unchecked: str = ""
    """Why they were not checked, though they should have been."""


def export_run(
    path: Path,
    output: Path | None = None,
    *,
    step: int | str | None = None,
    merge: bool = False,
    check: bool = True,
) -> Exported:
    """Write a run's adapter, or its merged model, to a folder; a service sends the adapter.

    What is not a plain copy is checked: the logprobs of rows are computed anew from what was written.

    Args:
        path: the run folder.
        output: the folder to write; without it, one beside the run folder.
        step: the checkpoint that is written: its step, "best" or "last"; without it, the run's result.
        merge: add the adapter to the base model's weights.
        check: compute the logprobs of a merged model, and of an adapter that a service sent.

    Raises:
        UserError: the run or its adapter is missing, or the service does not give it away.
        OptionError: the folder exists and is not empty.
        BackendError: the weights cannot be merged, or are not the policy's.
    """
    trained = find_trained(str(path), step, {}, only_read=True)
    folder = trained.folder
    if folder is None or folder.path != path:
        raise UserError(f"{path} is not a run folder; name the folder that holds its run.json")
    checkpoint = weights_of(folder) if step is None else trained.checkpoint
    if trained.backend.remote:
        check_address(trained.settings)
    after = "" if step is None else f"-step-{checkpoint.step:06d}"
    output = output or path.with_name(f"{path.name}{after}-{'merged' if merge else 'adapter'}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OptionError(f"--output {output} exists and is not empty; name another folder")
    with whole_folder(output) as beside, tempfile.TemporaryDirectory() as scratch:
        adapter = adapter_of(trained, folder, checkpoint, Path(scratch))
        if merge:
            merge_into(trained, folder, checkpoint, adapter, beside)
        else:
            copy_adapter(trained, folder, checkpoint, adapter, beside)
        done = Exported(checkpoint, output)
        if check and (merge or trained.backend.remote):
            done = checked(done, str(path), adapter, beside if merge else None)
    return done


def checked(done: Exported, name: str, adapter: Path, merged: Path | None) -> Exported:
    """Return what was exported with its check, or with the reason why there is none.

    Raises:
        BackendError: the weights are not the policy's.
    """
    from mint_train.trained.export_check import check_export

    try:
        trained = replace(find_trained(name, None, {}), checkpoint=done.checkpoint)
        return replace(done, check=check_export(trained, adapter, merged))
    except (UserError, DataError) as error:  # rows that are gone are no fault of the weights
        return replace(done, unchecked=str(error))


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


def adapter_of(trained: Trained, folder: RunFolder, checkpoint: Checkpoint, scratch: Path) -> Path:
    """Return the folder of a checkpoint's adapter.

    A service sends it; on this machine that of an earlier checkpoint is made of its state.

    Raises:
        UserError: it is gone, not one that this run wrote, or the service does not give it away.
        BackendError: the state is broken, or what the service sends is not an adapter.
    """
    if trained.backend.remote:
        if checkpoint.sampler is None:
            raise UserError(
                f"the state {checkpoint.state} on the service is not saved for sampling; "
                f"`{command_line('sample', folder.path, '--step', checkpoint.step)}` saves it"
            )
        trained.backend.fetch_adapter(checkpoint.sampler, scratch)
        name_layers(scratch)
        return scratch
    if checkpoint.sampler is None:
        client = trained.backend.open_client(scratch, echo_problem, trains=False)
        client.load_state(checkpoint.state).result()
        return Path(client.save_weights_for_sampler(scratch.name).result().path)
    adapter = Path(checkpoint.sampler)
    if not adapter.is_dir():
        raise UserError(f"{adapter} is gone: `{command_line('resume', folder.path)}` writes it again")
    if not adapter.resolve().is_relative_to(folder.path.resolve()):
        raise UserError(f"{adapter} is not in {folder.path}, so it is not an adapter that this run wrote")
    return adapter


def name_layers(adapter: Path) -> None:
    """Name the layers in an adapter's configuration: where it names none, PEFT would take some of them."""
    path = adapter / ADAPTER_CONFIG
    layers = {"target_modules": list(PeftConfig.read(adapter).targets) or ALL_LINEAR}
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | layers), encoding="utf-8")


def merge_into(
    trained: Trained, folder: RunFolder, checkpoint: Checkpoint, adapter: Path, target: Path
) -> None:
    """Fill a folder with the merged model and its card."""
    from mint_train.backends.local.merging import merge_adapter

    merge_adapter(trained.backend.model, adapter, target)
    write_card(folder, target, checkpoint.step, MERGED)


def copy_adapter(
    trained: Trained, folder: RunFolder, checkpoint: Checkpoint, adapter: Path, target: Path
) -> None:
    """Fill a folder with the adapter, its card, and the base model if that was made for the run.

    Raises:
        UserError: the adapter's configuration is broken.
    """
    shutil.copytree(adapter, target, dirs_exist_ok=True)
    config_path = target / ADAPTER_CONFIG
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        broken = adapter / ADAPTER_CONFIG
        raise UserError(f"{broken} is broken ({error}); `mint-train resume` writes it again") from error
    base = Path(trained.backend.model)
    config[BASE_FIELD] = trained.backend.model
    if base.exists():  # its path is of this machine alone
        config[BASE_FIELD] = base.resolve().name
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    made = base.resolve() == (folder.path / BASE_MODEL).resolve()
    if made:
        shutil.copytree(base, target / BASE_MODEL)
    write_card(folder, target, checkpoint.step, with_base=made)
