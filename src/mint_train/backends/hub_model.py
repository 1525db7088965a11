"""A base model on the hub, perhaps at one of its revisions: `org/name@revision`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def split_revision(model: str) -> tuple[str, str | None]:
    """Return the name of a model and its revision; a folder has none, whatever it is called."""
    name, at, revision = model.partition("@")
    return (name, revision) if at and revision and not Path(model).exists() else (model, None)


def at_revision(model: str, revision: str | None) -> str:
    """Return the name of a model at a revision; a folder has none."""
    return f"{model}@{revision}" if model and revision and not Path(model).exists() else model


def loading_arguments(model: str) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` loads a model, a folder or one on the hub."""
    name, revision = split_revision(model)
    return {"pretrained_model_name_or_path": name, **({} if revision is None else {"revision": revision})}


def pinned(model: str) -> str:
    """Name the commit of a hub model that is on this machine, so that it is the one that is loaded again.

    Args:
        model: the hub name or folder, of which a folder is returned as it is.
    """
    if Path(model).exists():
        return model
    from huggingface_hub import try_to_load_from_cache

    name, revision = split_revision(model)
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return at_revision(name, Path(config).parent.name) if isinstance(config, str) else model
