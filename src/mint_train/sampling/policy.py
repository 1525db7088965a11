"""A policy to sample from: a run, a state on the service, an adapter in PEFT's format, or a base model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mint_train.backends.base import Sampler
from mint_train.backends.choose import choose_backend
from mint_train.backends.peft_folder import ADAPTER_CONFIG
from mint_train.backends.start import adapter_sha256, find_start, run_and_step, same
from mint_train.errors import OptionError, UserError
from mint_train.groups.completions import PromptRenderer
from mint_train.rendering.options import Rendering
from mint_train.run_folder.records import ON_THE_SERVICE, Checkpoint
from mint_train.run_folder.replacing import holds_run
from mint_train.run_folder.several_runs import name_one
from mint_train.settings.merge import load_settings
from mint_train.settings.model import Settings
from mint_train.trained.find import Trained, find_trained

NO_LOSS = "none"
"""Stands for the loss in the settings of a policy that no run made; nothing opens it."""
MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class Policy(PromptRenderer):
    """An opened policy, with the rendering that its training uses."""

    name: str
    """As the user calls it."""
    sampler: Sampler
    identity: Mapping[str, Any]
    """What decides what it writes, as JSON has it: the model, the weights, the rendering."""
    run: Path | None = None
    """The folder of the run that it is a state of; None for any other policy."""
    step: int = 0
    """The steps that the run had taken."""


@contextmanager
def open_policy(name: str | None, given: Mapping[str, Any], warn: Callable[[str], None]) -> Iterator[Policy]:
    """Open what a name stands for: a run (`RUN`, `RUN@STEP`, `RUN@best`), a state, an adapter, a base model.

    Args:
        name: the policy; None for the base model that the settings name.
        given: settings on the command line; those of a run's rendering come from the run, unless given.
        warn: tells the user one line.

    Raises:
        UserError: there is no such policy, or a setting contradicts it.
        BackendError: it cannot be loaded, or the service refuses.
    """
    trained, checkpoint = find_policy(name, given)
    with TemporaryDirectory(prefix="mint-train-") as made:
        folder = trained.folder.path if trained.folder else Path(made)
        try:
            samplers = trained.backend.open_samplers(folder, checkpoint, warn)
        except UserError as error:
            if name is None or checkpoint is not None:
                raise
            raise UserError(f"{name} holds no run, so it was taken for a base model: {error}") from error
        try:
            identity = describe(trained, checkpoint, samplers.tokenizer)
            policy = Policy(
                trained.settings, samplers.tokenizer, trained.name, sampler=samplers.after, identity=identity
            )
            if trained.folder is not None and checkpoint is not None:
                policy = replace(policy, run=trained.folder.path, step=checkpoint.step)
            yield policy
        finally:
            samplers.close()


def find_policy(name: str | None, given: Mapping[str, Any]) -> tuple[Trained, Checkpoint | None]:
    """Find a policy by its name; no checkpoint stands for a base model.

    Raises:
        UserError: there is none, or a setting contradicts it.
    """
    known = {key: value for key, value in given.items() if value is not None}
    if name is None:
        return base_policy(known), None
    if name.startswith(ON_THE_SERVICE):
        trained = find_trained(name, None, {"loss": NO_LOSS} | known)
        return trained, trained.checkpoint
    run, step = run_and_step(name)
    within = not (Path(name) / MODEL_CONFIG).is_file()  # the base model of a run lies in its folder
    if run is not None or (within and any(holds_run(parent) for parent in Path(name).parents[:2])):
        path = name if run is None else str(run.path)
        own = {key: value for key, value in known.items() if key != "model"}
        trained = find_trained(path, step, own | {"loss": NO_LOSS})
        refuse_other_model(name, trained.settings.model, known.get("model"))
        return replace(trained, name=name), trained.checkpoint
    if (Path(name) / ADAPTER_CONFIG).is_file():
        settings = load_settings(known | {"loss": NO_LOSS, "from_checkpoint": name})
        settings, start = find_start(settings)
        checkpoint = Checkpoint(0, start.path if start else name, None, {})
        return Trained(name, settings, choose_backend(settings), checkpoint, None), checkpoint
    if within and (several := name_one(Path(name))):
        raise UserError(f"{name} holds no run{several}")
    refuse_other_model(name, name, known.get("model"))
    return base_policy(known | {"model": name}), None


def base_policy(given: Mapping[str, Any]) -> Trained:
    """Return the base model that the settings name, untrained."""
    settings = load_settings({**given, "loss": NO_LOSS})
    backend = choose_backend(settings)
    return Trained(backend.model, settings, backend, Checkpoint(0, "", None, {}), None)


def reading_settings(given: Mapping[str, Any]) -> Settings:
    """Return the settings that say how a file of prompts is read: those that are given, else the defaults.

    Raises:
        OptionError: one of them is wrong.
    """
    return load_settings({**given, "loss": NO_LOSS})


def refuse_other_model(name: str, model: str | None, given: str | None) -> None:
    """Refuse a `--model` that is not the policy's own.

    Raises:
        OptionError: naming both.
    """
    if given is not None and not same(given, model):
        raise OptionError(f"--model {given}: {name} is of {model}; leave --model out")


def describe(trained: Trained, checkpoint: Checkpoint | None, tokenizer: Any) -> dict[str, Any]:
    """Return what decides what a policy writes, as JSON has it."""
    model = trained.backend.model  # a folder, perhaps by a path from the current one
    weights = None if checkpoint is None else checkpoint.sampler or checkpoint.state
    if checkpoint is not None and not trained.backend.remote:
        weights = adapter_sha256(checkpoint.state)
    return {
        "backend": trained.backend.name,
        "base_url": trained.settings.base_url,
        "model": os.path.realpath(model) if os.path.isdir(model) else model,
        "weights": weights,
        "special_tokens": trained.settings.special_tokens,
        "rendering": Rendering.of(trained.settings).describe(tokenizer),
    }
