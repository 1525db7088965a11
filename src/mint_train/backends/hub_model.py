"""A base model on the hub, perhaps at one of its revisions: `org/name@revision`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

COMMIT = re.compile("[0-9a-f]{40}")


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


def commit_of(model: str) -> str | None:
    """Return the commit that a name holds; a branch or a tag, which may move, is none."""
    revision = split_revision(model)[1]
    return revision if revision and COMMIT.fullmatch(revision) else None


def pinned(model: str) -> str:
    """Name the commit that a hub model has now, so that it is the one that is loaded from here on.

    Args:
        model: the hub name or folder. A folder is returned as it is, and so is what the hub does not give:
            loading it says why.
    """
    if Path(model).exists() or commit_of(model):
        return model
    from huggingface_hub import hf_hub_download

    name, revision = split_revision(model)
    try:
        config = hf_hub_download(name, "config.json", revision=revision)
    except Exception:  # of the network, of the hub, of its library
        return model
    return at_revision(name, Path(config).parent.name)
