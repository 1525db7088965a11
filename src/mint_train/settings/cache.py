"""Where on this machine is kept what is costly to get again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from mint_train.errors import UserError

CACHE_VARIABLE = "MINT_TRAIN_CACHE"


def cache_folder() -> Path:
    """Return the folder of what runs share: MINT_TRAIN_CACHE, else `mint-train` in the user's cache folder.

    The platform decides which that is: `~/.cache` or XDG_CACHE_HOME on Linux. It may be deleted whenever no
    run uses it.

    Raises:
        UserError: the user has no home folder, and none is given.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    with suppress(RuntimeError):  # a new platformdirs raises it, an old one returns a path that begins with ~
        folder = user_cache_path("mint-train", appauthor=False)
        if folder.is_absolute():
            return folder
    raise UserError(f"this user has no home folder to keep tokenised data in; name one in {CACHE_VARIABLE}")
