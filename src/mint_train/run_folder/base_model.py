"""The models of a run on this machine, and whether they and its other files are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mint_train.errors import UserError
from mint_train.run_folder.description import ReferenceDescription, RunDescription
from mint_train.run_folder.files import file_sha256
from mint_train.run_folder.parts import BASE_MODEL
from mint_train.settings.model import Settings

WEIGHTS = (".safetensors", ".bin")
PATTERNS = (
    *(f"*{ending}" for ending in WEIGHTS),
    "config.json",
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)
BLOCK, BLOCKS = 4096, 1024


def model_files(folder: Path) -> dict[str, str]:
    """Return a digest of each file that decides a model's logprobs or its tokens, by name.

    Empty where the name is not of a folder, as for a model on the hub.

    Raises:
        UserError: a file cannot be read.
    """
    found = sorted({path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()})
    try:
        return {
            path.name: sampled_sha256(path) if path.suffix in WEIGHTS else file_sha256(path) for path in found
        }
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def sampled_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's size and of blocks spread over it, 4 MiB of them at most.

    Reading all of a model would take as long as loading it. Training changes every weight matrix, so that
    other weights differ in some block.
    """
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, max(BLOCK, size // BLOCKS)):
            file.seek(start)
            found.update(file.read(BLOCK))
    return found.hexdigest()


def describe_reference(reference: str | None) -> ReferenceDescription | None:
    """Describe a reference that is in a folder, a model or a saved state; None for any other.

    Raises:
        UserError: a file cannot be read.
    """
    if reference is None or not Path(reference).is_dir():
        return None
    return ReferenceDescription(path=str(Path(reference).resolve()), files=model_files(Path(reference)))


def base_model_folder(settings: Settings, run: Path) -> Path:
    """Return the folder of the base model, which a run without `--model` has in its own."""
    return Path(settings.model or run / BASE_MODEL)


def refuse_changed(name: object, before: str | None, now: str | None) -> None:
    """Refuse what has changed since a run began: its results could not be compared with those before.

    Args:
        name: the file or the source, as the user knows it.
        before: its digest or version then.
        now: the same, now.

    Raises:
        UserError: naming it.
    """
    if now != before:
        raise UserError(f"{name} has changed since this run began; restore it, or start a new run")


def refuse_changed_models(recorded: RunDescription, folder: Path, reference: str | None) -> None:
    """Refuse a base model or a reference that has changed since a run began with it.

    Raises:
        UserError: naming the first file that differs.
    """
    refuse_changed_model(recorded, folder)
    refuse_changed_reference(recorded, reference)


def refuse_changed_model(recorded: RunDescription, folder: Path) -> None:
    """Refuse a base model that has changed since a run began with it.

    Args:
        recorded: the run; one on a service, or with a model on the hub, has no digests, and passes.
        folder: of the base model now; one that is missing is refused where the model is loaded.

    Raises:
        UserError: naming the first file that differs.
    """
    if recorded.base_model:
        refuse_changed_files(recorded.base_model, folder, "base model")


def refuse_changed_reference(recorded: RunDescription, reference: str | None) -> None:
    """Refuse the reference that a run began with where it has changed since then; another one passes.

    Args:
        recorded: the run; without a reference in a folder it has no digests.
        reference: the loss's, now.

    Raises:
        UserError: naming the first file that differs.
    """
    before = recorded.reference
    if before is not None and reference is not None and before.path == str(Path(reference).resolve()):
        refuse_changed_files(before.files, Path(reference), "reference")


def refuse_changed_files(before: Mapping[str, str], folder: Path, what: str) -> None:
    """Refuse a folder whose files are not those that a run began with; one that is missing passes.

    Raises:
        UserError: naming the first file that differs.
    """
    if not folder.is_dir():
        return
    now = model_files(folder)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            kind = "is gone" if name not in now else "has changed" if name in before else "is new"
            raise UserError(
                f"{folder / name} {kind} since the run began with this {what}; put the folder back as it "
                "was, or start a new run"
            )
