"""Where tokenised data is kept from run to run, and the key that says what it was made of."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from mint_train.errors import UserError
from mint_train.losses.loss import Loss
from mint_train.plugins.sources import source_of, sources_digest, with_helpers
from mint_train.run_folder.files import digests_of_files
from mint_train.settings.cache import CACHE_VARIABLE, cache_folder

PART = "part-"
STALE_SECONDS = 86_400.0
LIBRARIES = ("mint-train", "tinker", "tokenizers", "transformers")
CORE_SOURCES = ("rows", "rendering", "batches", "groups")


def new_folder() -> Path:
    """Make a folder to write tokenised data in, before it is whole and gets its name.

    Raises:
        UserError: the cache cannot be written to.
    """
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_stale(cache)
        return Path(tempfile.mkdtemp(prefix=PART, dir=cache))
    except OSError as error:
        raise cannot_keep(error) from error


def remove_stale(cache: Path) -> None:
    """Remove what killed runs left half written, once nothing has been written to it for a day."""
    for folder in cache.glob(f"{PART}*"):
        with suppress(OSError):
            written = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - written > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def put_away(kept: Path) -> None:
    """Remove tokenised data that is broken; a run that reads it keeps its open files.

    Raises:
        UserError: it cannot be removed.
    """
    try:
        aside = Path(tempfile.mkdtemp(prefix=PART, dir=kept.parent))
        kept.rename(aside / kept.name)
        shutil.rmtree(aside)
    except FileNotFoundError:
        return  # another run was faster
    except OSError as error:
        raise cannot_keep(error) from error


def cannot_keep(error: OSError) -> UserError:
    """Say that the disk of the cache refuses, and why."""
    return UserError(
        f"{cache_folder()}, where tokenised data is kept, cannot be written to ({error.strerror or error}); "
        f"name another folder with {CACHE_VARIABLE}"
    )


def keep(folder: Path, key: str) -> Path:
    """Give a folder that is whole its name; where another run was first, its folder is taken."""
    kept = cache_folder() / key
    with suppress(OSError):  # it is there already, and not empty
        folder.rename(kept)
    if folder.exists():
        shutil.rmtree(folder)
    return kept


def token_key(data: Mapping[str, Any], loss: Loss, tokenizer: Any) -> str:
    """Return a key of everything that decides how rows become datums.

    That is the data, the tokenizer, the versions and sources of core and of the plugins that read and flatten
    rows, and the loss's options where one of these hooks takes them. What cannot be identified (a slow
    tokenizer, a plugin without a source file) gets a key that is never found again.

    Args:
        data: fingerprint, columns, max_length and what else was asked for; as JSON has it.
        loss: the loss.
        tokenizer: the model's tokenizer.
    """
    parts = {"data": dict(data), "tokenizer": tokenizer_digest(tokenizer), **makers_of_datums(loss)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def makers_of_datums(loss: Loss) -> dict[str, Any]:
    """Identify the code that reads and flattens rows, and the loss's options where that takes them."""
    here = Path(__file__).parents[1]
    hooks = loss.data_hooks()
    takes_options = any("options" in hook.argnames for hook in hooks)
    sources = {source_of(hook.function) for hook in hooks}
    digests = {source: sources_digest(with_helpers(source)) for source in sources}
    return {
        "libraries": library_versions(),
        "core": sources_digest(here / name for name in CORE_SOURCES),
        "plugins": [(hook.plugin_name, digests[source_of(hook.function)]) for hook in hooks],
        "options": loss.options.model_dump(mode="json") if takes_options else {},
        "files": digests_of_files(loss.option_values) if takes_options else {},
    }


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries; cached, as reading one parses its metadata each time."""
    return {name: version(name) for name in LIBRARIES}


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest what a tokenizer makes of texts and messages."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return uuid4().hex
    said = [backend.to_str(), repr(tokenizer.chat_template), repr(tokenizer.special_tokens_map)]
    return hashlib.sha256("\n".join([type(tokenizer).__qualname__, *said]).encode()).hexdigest()
