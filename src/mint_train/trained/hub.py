"""Uploading exported weights to the Hugging Face hub, where that is asked for."""

from __future__ import annotations

import shlex
import sys
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id  # type: ignore[attr-defined]

from mint_train.errors import MintTrainError, OptionError, UserError

REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def check_repository(name: str) -> None:
    """Refuse a repository that nothing can be uploaded to, before anything is written.

    Args:
        name: ORG/NAME.

    Raises:
        OptionError: it is not a name of the hub's.
        UserError: the user has no token, or HF_HUB_OFFLINE is set.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise OptionError(f"--to hub:{name}: {one_line(error)}") from error
    if name.count("/") != 1:
        raise OptionError(f"--to hub:{name}: name the owner too, --to hub:ORG/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--to hub:{name}: HF_HUB_OFFLINE is set; unset it to upload")
    if get_token() is None:
        raise UserError(f"--to hub:{name}: no token was found; `hf auth login` saves one, or set HF_TOKEN")


def upload(folder: Path, name: str) -> str:
    """Upload a folder to a repository, which is made private if there is none, and return its address.

    Args:
        folder: what `export_run` wrote.
        name: ORG/NAME.

    Raises:
        UserError: the hub does not let this user write there.
        MintTrainError: the hub cannot be reached, or fails. The folder stays.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()
    hub = HfApi()
    try:
        address = hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload from mint-train")
    except Exception as error:  # of its HTTP library too, which depends on its version
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED
        again = shlex.join(["hf", "upload", name, str(folder), ".", "--private"])
        raise (UserError if refused else MintTrainError)(
            f"{folder} is written, but was not uploaded to {name}: {one_line(error)}; `{again}` tries again"
        ) from None
    return str(address)


def one_line(error: Exception) -> str:
    """Return an error's text as one line, without the user's token."""
    text = " ".join(str(error).split()) or type(error).__name__
    token = get_token()
    return text.replace(token, "***") if token else text
