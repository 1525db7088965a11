"""The adapter that a run begins with: of another run, of a state on the service, or in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mint_train.backends.base import TrainingClient
from mint_train.backends.choose import choose_backend
from mint_train.backends.closing import closed_on_failure
from mint_train.backends.hub_model import split_revision
from mint_train.backends.peft_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PeftConfig, download_adapter
from mint_train.errors import OptionError, UserError
from mint_train.rendering.options import template_digest
from mint_train.run_folder.base_model import refuse_changed_model
from mint_train.run_folder.description import RunDescription, StartDescription
from mint_train.run_folder.files import file_sha256
from mint_train.run_folder.folder import BEST, LAST, RunFolder
from mint_train.run_folder.parts import BASE_MODEL
from mint_train.run_folder.records import ON_THE_SERVICE, SAVED_STATE, STATE_FILE
from mint_train.run_folder.replacing import holds_run
from mint_train.settings.model import Settings, option_name

TAKEN_FROM_A_RUN = ("rank", "lora_alpha", "lora_targets")


def find_start(settings: Settings) -> tuple[Settings, StartDescription | None]:
    """Find the adapter that `--from` names, and take base model, rank, alpha and targets from it.

    Returns:
        the settings of the run, and the adapter; None where the run begins with a fresh one.

    Raises:
        UserError: it does not exist, or is not an adapter that the backend can begin with.
        OptionError: a setting contradicts it.
    """
    name = settings.from_checkpoint
    if name is None:
        if settings.from_optimizer:
            raise OptionError("--from-optimizer takes the moments of --from, which is not given")
        return settings, None
    remote = choose_backend(settings).remote
    if name.startswith(ON_THE_SERVICE):
        if not remote:
            raise OptionError(f"--from {name} is on the service, but this run trains on this machine")
        if SAVED_STATE not in name:
            raise OptionError(
                f"--from {name} names weights for sampling; a run begins with a state, which is called "
                f"tinker://...{SAVED_STATE}...: give that, or the run's folder"
            )
        return settings, describe(settings, name)
    run, step = run_and_step(name)
    if not remote:
        refuse_to_replace(settings, run.path if run else Path(name))
    if run is not None:
        return of_run(settings, run, step, remote=remote)
    if remote and not Path(name).exists():
        raise OptionError(
            f"--from {name}: there is no run of that name here; states on the service have names that begin "
            f"with {ON_THE_SERVICE[0]}"
        )
    if remote:
        raise OptionError(
            f"--from {name}: a service begins with a state of its own ({ON_THE_SERVICE[0]}...) or with a run "
            "that was trained on it"
        )
    return of_peft_folder(settings, name)


def refuse_to_replace(settings: Settings, start: Path) -> None:
    """Refuse a run that would replace the one whose adapter it begins with.

    Raises:
        OptionError: naming both options.
    """
    output = settings.output
    if output is not None and holds_run(output) and start.resolve().is_relative_to(output.resolve()):
        raise OptionError(
            f"--from {settings.from_checkpoint} is in {output}, the folder of --output, whose run would be "
            "replaced; name another --output"
        )


def run_and_step(name: str) -> tuple[RunFolder | None, int | str | None]:
    """Return the run that `RUN` or `RUN@STEP` names, and the step, which may be "best" or "last".

    No run is returned if none is there.
    """
    if holds_run(Path(name)):
        return RunFolder(Path(name)), None
    run, at, step = name.rpartition("@")
    if at and (step.isdecimal() or step in (BEST, LAST)) and holds_run(Path(run)):
        return RunFolder(Path(run)), int(step) if step.isdecimal() else step
    return None, None


def of_run(
    settings: Settings, run: RunFolder, step: int | str | None, *, remote: bool
) -> tuple[Settings, StartDescription]:
    """Begin with a checkpoint of another run.

    Raises:
        UserError: the run is broken, or does not have that checkpoint.
        OptionError: it was trained on another backend or service, or a setting contradicts it.
    """
    recorded, checkpoint = run.read_description(), run.checkpoint_after(step)
    name = settings.from_checkpoint
    if (recorded.backend == "mint") != remote:
        raise OptionError(
            f"--from {name} was trained with --backend {recorded.backend}, whose states the other backend "
            "cannot load"
        )
    if remote and recorded.settings["base_url"] != settings.base_url:
        raise OptionError(
            f"--from {name} was trained on {recorded.settings['base_url'] or 'MinT'}, where its states are: "
            "name that service in MINT_BASE_URL"
        )
    model = base_model(run, recorded)
    refuse_changed_model(recorded, Path(model))
    known = {field: recorded.settings.get(field) for field in TAKEN_FROM_A_RUN}
    known["lora_targets"] = tuple(known["lora_targets"] or ())
    settings = take(settings, known | {"model": model})
    state = checkpoint.state if remote else str(Path(checkpoint.state).resolve())
    return settings, describe(settings, state)


def other_rendering(settings: Settings) -> str:
    """Say how the run that `--from` names rendered its rows, if this one does it in another way."""
    run = run_and_step(settings.from_checkpoint)[0] if settings.from_checkpoint else None
    if run is None:
        return ""
    recorded = run.read_description()
    form, template = recorded.settings["render"], recorded.settings["chat_template"]
    if (form, recorded.chat_template) == (settings.render, template_digest(settings)):
        return ""
    before, now = rendered_with(form, template), rendered_with(settings.render, settings.chat_template)
    return f"Its run rendered rows with {before}, and this one does with {now}."


def rendered_with(form: str, template: str | None) -> str:
    """Return the options that rows are rendered with."""
    return f"--render {form}" if template is None else f"--render {form} --chat-template {template}"


def base_model(run: RunFolder, recorded: RunDescription) -> str:
    """Return the base model of a run; one that was made for it lies in its folder."""
    if recorded.backend == "mint":
        return recorded.model
    return str(recorded.settings["model"] or (run.path / BASE_MODEL).resolve())


def of_peft_folder(settings: Settings, name: str) -> tuple[Settings, StartDescription]:
    """Begin with an adapter in PEFT's format, in a folder or on the hub.

    Raises:
        UserError: it does not exist, or is more than plain LoRA.
        OptionError: a setting contradicts it.
    """
    if settings.from_optimizer:
        raise OptionError(f"--from-optimizer: {name} holds an adapter without an optimiser's moments")
    folder = Path(name)
    if not (folder / ADAPTER_CONFIG).is_file():
        folder = download_adapter(name)
    config = PeftConfig.read(folder)
    known: dict[str, Any] = {"rank": config.rank, "lora_alpha": config.alpha, "lora_targets": config.targets}
    if settings.model is None:
        known["model"] = config.find_base(folder)
    elif settings.model == split_revision(config.base_model)[0]:
        known["model"] = config.base_model
    elif not config.may_belong_to(settings.model):
        raise OptionError(
            f"--model {settings.model}: the adapter {name} was trained on {config.base_model}; leave --model "
            "out, or begin with another adapter"
        )
    settings = take(settings, known)
    return settings, describe(settings, str(folder.resolve()))


def take(settings: Settings, known: Mapping[str, Any]) -> Settings:
    """Return settings with what is known of an adapter.

    Raises:
        OptionError: the user gave another value.
    """
    for field, value in known.items():
        given = getattr(settings, field)
        if field in settings.model_fields_set and not same(given, value):
            raise OptionError(
                f"{option_name(field)} {shown(given)}: {settings.from_checkpoint} has {shown(value)}; leave "
                f"{option_name(field)} out, or begin with another adapter"
            )
    return settings.model_copy(update=dict(known))


def same(given: object, value: object) -> bool:
    """Return whether two values are equal: paths of one folder, or a hub name and the same at a revision."""
    if isinstance(given, str) and isinstance(value, str) and Path(given).exists():
        return Path(given).resolve() == Path(value).resolve()
    return given == value or (isinstance(value, str) and given == split_revision(value)[0])


def shown(value: object) -> str:
    """Return a value as an option takes it."""
    return ",".join(value) or "all layers" if isinstance(value, tuple) else str(value)


def describe(settings: Settings, path: str) -> StartDescription:
    """Describe an adapter, with a digest of its weights if they are on this machine.

    Raises:
        UserError: the weights are missing or unreadable.
    """
    sha256 = None if path.startswith(ON_THE_SERVICE) else adapter_sha256(path)
    name = str(settings.from_checkpoint)
    return StartDescription(name=name, path=path, sha256=sha256, optimizer=settings.from_optimizer)


def adapter_sha256(path: str) -> str:
    """Return the SHA-256 of an adapter's weights, hexadecimal.

    Raises:
        UserError: they are missing or unreadable.
    """
    files = [Path(path) / name for name in (STATE_FILE, ADAPTER_WEIGHTS)]
    weights = next((file for file in files if file.is_file()), files[0])
    try:
        return file_sha256(weights)
    except OSError as error:
        raise UserError(f"--from: {weights} cannot be read: {error.strerror or error}") from error


def refuse_changed_start(start: StartDescription) -> None:
    """Refuse an adapter in a folder that is not the one which a run began with.

    Raises:
        UserError: it has changed, or is not there any more.
    """
    if start.sha256 is not None and adapter_sha256(start.path) != start.sha256:
        raise UserError(f"{start.path} has changed since this run began with it; restore it")


def load_start(client: TrainingClient, start: StartDescription) -> None:
    """Load the adapter that a run begins with into a client whose adapter is fresh; close it if that fails.

    Raises:
        UserError: it is no longer the one that the run began with, or of another base model or rank.
        BackendError: it cannot be loaded.
    """
    with closed_on_failure(client):
        refuse_changed_start(start)
        load = client.load_state_with_optimizer if start.optimizer else client.load_state
        load(start.path).result()
