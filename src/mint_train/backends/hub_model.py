"""A model on the hub, perhaps at one of its revisions: `org/name@revision`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_train.run_folder.base_model import model_files

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


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model in a folder or on the hub, as it is now."""

    arguments: Mapping[str, Any]
    """Those with which `from_pretrained` loads this version, whatever the hub has later."""
    version: str
    """The commit, or a digest of the folder's files; empty where loading will fail."""

    @classmethod
    def of(cls, model: str) -> ModelVersion:
        """Look at a model.

        Args:
            model: a folder, a hub name, or a hub name with `@REVISION`.

        Raises:
            UserError: a file of the folder cannot be read.
        """
        name = pinned(model)
        files = model_files(Path(name)) if Path(name).is_dir() else {}
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest() if files else ""
        return cls(loading_arguments(name), commit_of(name) or digest)
