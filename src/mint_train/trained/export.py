"""A run's weights in the formats of the ecosystem."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mint_train.backends.hub_model import split_revision
from mint_train.backends.peft_folder import ADAPTER_CONFIG, ALL_LINEAR, PeftConfig
from mint_train.errors import DataError, OptionError, UserError, command_line
from mint_train.losses.trust import check_address
from mint_train.observers.model_card import GGUF_FILE, MODELFILE, base_model, write_card
from mint_train.observers.terminal import echo_problem
from mint_train.rendering.options import Rendering, refuse_changed_template
from mint_train.run_folder.files import require_space, whole_folder
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.parts import BASE_MODEL
from mint_train.run_folder.records import Checkpoint
from mint_train.settings.model import Settings
from mint_train.trained.find import Trained, find_trained, step_in_name
from mint_train.trained.forms import GGUF_MODEL, MERGED_MODEL, PEFT, Form, find_target, serving_lines

if TYPE_CHECKING:
    from mint_train.trained.export_check import ExportCheck

BASE_FIELD, REVISION_FIELD = "base_model_name_or_path", "revision"


@dataclass(frozen=True, slots=True)
class Exported:
    """Where a run's weights are."""

    checkpoint: Checkpoint
    folder: Path
    """The folder that was written."""
    form: Form = PEFT
    """The form of the weights."""
    serve: tuple[str, ...] = ()
    """Commands that serve them, each behind the name of its program and a colon."""
    check: ExportCheck | None = None
    """How far the weights are from the policy; None where they are a copy, or were not checked."""
    unchecked: str = ""
    """Why they were not checked, though they should have been."""
    uploaded: str = ""
    """The address on the hub, if they were uploaded."""


def export_run(
    path: Path,
    output: Path | None = None,
    *,
    to: str | Sequence[str] = "peft",
    step: int | str | None = None,
    check: bool = True,
) -> Exported:
    """Write a run's weights to a folder: its adapter, its merged model, or that in GGUF.

    A service sends the adapter. What is not a plain copy is checked: the logprobs of rows are computed anew
    from what was written.

    Args:
        path: the run folder, perhaps with `@STEP` or `@best` behind its name.
        output: the folder to write; without it, one beside the run folder.
        to: "peft", "merged" or "gguf"; "hub:ORG/NAME" beside it, or alone for the adapter, uploads it.
        step: the checkpoint that is written: its step, "best" or "last"; without it, the run's result.
        check: compute the logprobs of a model, and of an adapter that a service sent.

    Raises:
        UserError: the run or its adapter is missing, the service does not give it away, its architecture
            has no GGUF here, or the disk has not enough space.
        OptionError: the folder exists and is not empty.
        BackendError: the weights cannot be merged, or are not the policy's.
        MintTrainError: the upload failed; the folder stays.
    """
    form, repository = find_target(to)
    name, step = step_in_name(str(path), step)
    path, trained = Path(name), find_trained(name, step, {}, only_read=True)
    folder = trained.folder
    if folder is None or folder.path != path:
        raise UserError(f"{path} is not a run folder; name the folder that holds its run.json")
    checkpoint = weights_of(folder) if step is None else trained.checkpoint
    if trained.backend.remote:
        check_address(trained.settings)
    after = "" if step is None else f"-step-{checkpoint.step:06d}"
    output = output or path.with_name(f"{path.name}{after}-{form.suffix}")
    require_free(output)
    if form is GGUF_MODEL:
        require_gguf(trained.backend.model)
    done = write_weights(trained, folder, Exported(checkpoint, output, form), check=check)
    return done if repository is None else uploaded(done, repository)


def write_weights(trained: Trained, folder: RunFolder, done: Exported, *, check: bool) -> Exported:
    """Write what is to be exported, and check what is not a plain copy before it gets its name.

    Raises:
        UserError: the adapter is missing, the service does not give it away, or the disk is too small.
        BackendError: the weights cannot be merged, or are not the policy's.
    """
    with whole_folder(done.folder) as beside, tempfile.TemporaryDirectory() as scratch:
        adapter = adapter_of(trained, folder, done.checkpoint, Path(scratch))
        write_form(trained, folder, done, adapter, beside)
        if check and (done.form is not PEFT or trained.backend.remote):
            done = checked(done, str(folder.path), adapter, beside)
    return replace(done, serve=tuple(serving_lines(done.form, done.folder, trained.backend.model)))


def require_free(output: Path) -> None:
    """Refuse to write to what exists, except an empty folder.

    Raises:
        OptionError: it exists and is not empty.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OptionError(f"--output {output} exists and is not empty; name another folder")


def uploaded(done: Exported, repository: str) -> Exported:
    """Upload what was exported, and return it with its address.

    Raises:
        MintTrainError: the upload failed.
    """
    from mint_train.trained.hub import upload

    return replace(done, uploaded=upload(done.folder, repository))


def require_gguf(model: str) -> None:
    """Refuse a model that cannot be written as GGUF, before anything is.

    Raises:
        UserError: the package `gguf` is not installed, or the model is not mapped.
    """
    try:
        from mint_train.backends.local.gguf_file import check_gguf
    except ModuleNotFoundError as error:
        raise UserError(f"--to gguf needs the package {error.name}: pip install gguf") from error
    check_gguf(model)


def write_form(trained: Trained, folder: RunFolder, done: Exported, adapter: Path, target: Path) -> None:
    """Fill a folder with a run's weights and their card.

    Raises:
        UserError: the adapter's configuration is broken, the run's chat template is gone, or the disk has
            not enough space.
        BackendError: the adapter cannot be merged.
    """
    step, model = done.checkpoint.step, trained.backend.model
    if done.form is PEFT:
        with_base = copy_adapter(trained, folder, adapter, target)
        write_card(folder, target, step, with_base=with_base)
        return
    from mint_train.backends.local import merging

    template = chat_template(trained.settings, folder)
    merged, tokenizer = merging.merge_adapter(model, adapter)
    if template is not None:
        tokenizer.chat_template = template
    if done.form is MERGED_MODEL:
        merging.save_merged(merged, tokenizer, model, target)
    else:
        from mint_train.backends.local.gguf_file import write_gguf

        name = f"{trained.settings.loss} on {base_model(folder.read_description())}"
        write_gguf(merged, tokenizer, target / GGUF_FILE, name)
        (target / MODELFILE).write_text(f"FROM ./{GGUF_FILE}\n", encoding="utf-8")
    write_card(folder, target, step, done.form.kind)


def chat_template(settings: Settings, folder: RunFolder) -> str | None:
    """Return the chat template that a run was given; None where it had the model's own.

    Raises:
        UserError: its file is gone, or has changed.
    """
    refuse_changed_template(folder.read_description(), settings)
    return Rendering.of(settings).template


def checked(done: Exported, name: str, adapter: Path, written: Path) -> Exported:
    """Return what was exported with its check, or with the reason why there is none.

    Raises:
        BackendError: the weights are not the policy's.
    """
    from mint_train.trained.export_check import check_export

    try:
        trained = replace(find_trained(name, None, {}), checkpoint=done.checkpoint)
        return replace(done, check=check_export(trained, done.form, adapter, written))
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


def copy_adapter(trained: Trained, folder: RunFolder, adapter: Path, target: Path) -> bool:
    """Fill a folder with an adapter, and with the base model if that was made for the run; return whether.

    Raises:
        UserError: the adapter's configuration is broken, or the disk has not enough space.
    """
    base = Path(trained.backend.model)
    made = base.resolve() == (folder.path / BASE_MODEL).resolve()
    files = [file for each in (adapter, *([base] if made else [])) for file in each.rglob("*")]
    require_space(target, sum(file.stat().st_size for file in files), "the adapter")
    shutil.copytree(adapter, target, dirs_exist_ok=True)
    config_path = target / ADAPTER_CONFIG
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        broken = adapter / ADAPTER_CONFIG
        raise UserError(f"{broken} is broken ({error}); `mint-train resume` writes it again") from error
    config[BASE_FIELD], config[REVISION_FIELD] = split_revision(trained.backend.model)
    if base.exists():  # its path is of this machine alone
        config[BASE_FIELD] = base.resolve().name
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if made:
        shutil.copytree(base, target / BASE_MODEL)
    return made
