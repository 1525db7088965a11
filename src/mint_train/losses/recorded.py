"""The loss of a run that is there already."""

from __future__ import annotations

from pathlib import Path

from mint_train.errors import UserError
from mint_train.losses.loss import Loss
from mint_train.losses.trust import check_loss_file
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.authoring import FunctionLoss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.plugins.functions import SCRIPT, find_function, is_importable, named_function
from mint_train.run_folder.description import RunDescription
from mint_train.settings.model import Settings


def open_run_loss(
    recorded: RunDescription,
    folder: Path,
    settings: Settings,
    function: FunctionLoss | None = None,
    *,
    trust_loss: bool = False,
) -> Loss:
    """Open the loss that the settings of a run name.

    Args:
        recorded: what the run's folder says of it.
        folder: the run's folder.
        settings: those of the run, perhaps with another loss to evaluate it with.
        function: the loss, if it is a function of the calling program.
        trust_loss: run a file that is not one of the current folder's own.

    Raises:
        UserError: the loss is a function that only its own program can give, or it has changed.
        OptionError: its file is outside the current folder, or came with the run folder.
        PluginError: the loss is missing or broken.
    """
    if function is not None:
        return Loss.of(named_function(function), settings.options)
    if recorded.function is not None and settings.loss == recorded.loss:
        return Loss.of(find_again(recorded, folder, trust_loss=trust_loss), settings.options)
    return open_loss(settings.loss, settings.options)


def find_again(recorded: RunDescription, folder: Path, *, trust_loss: bool) -> NamedPlugin:
    """Return the function of a Python program that a run was trained with.

    Raises:
        UserError: as `open_run_loss` does.
    """
    described = recorded.function
    assert described is not None  # noqa: S101 - the caller looked
    if not is_importable(described):
        kind = f"of {described.file}" if described.file else "of a notebook"
        kind = "of a program" if described.file is None and described.module != SCRIPT else kind
        raise UserError(
            f'the loss "{recorded.loss}" of {folder} is a function {kind}; call '
            f'mint_train.resume("{folder}", loss={recorded.loss}) there, or evaluate or sample'
        )
    if not Path(str(described.file)).is_file():
        raise UserError(
            f'{described.file} is gone, which held the loss "{recorded.loss}" of {folder}; restore it, or '
            f"give the function: mint_train.resume(..., loss={recorded.loss})"
        )
    check_loss_file(str(described.file), recorded.loss_files, folder, trust_loss=trust_loss)
    return find_function(described)
