"""The one place that imports the `mint` SDK, and that knows which distribution must provide it."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING

from mint_train.errors import UserError

if TYPE_CHECKING:
    import tinker as mint
    from tinker import types
else:
    # the SDK's telemetry prints tracebacks while a service is away; whoever wants it can switch it on
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    try:
        import mint
    except ImportError as error:
        raise UserError("the MinT SDK is not installed: run `pip install mindlab-toolkit`") from error
    if not hasattr(mint, "ServiceClient"):
        raise UserError(
            f"`import mint` found another package ({mint.__file__}), the HTML template engine called mint; "
            "run `pip uninstall mint` and then `pip install --force-reinstall mindlab-toolkit`"
        )
    from mint import types

Datum = types.Datum
SDK_VERSION = version("tinker")

__all__ = ["SDK_VERSION", "Datum", "mint", "types"]
