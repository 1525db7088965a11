"""The one place that imports the SDK, and that knows which distributions and versions of it will do."""

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
    except ImportError:
        try:
            import tinker as mint
        except ImportError as error:
            raise UserError(
                "the MinT SDK is not installed: run `pip install mindlab-toolkit`, or `pip install tinker`"
            ) from error
    if not hasattr(mint, "ServiceClient"):
        raise UserError(
            f"`import mint` found another package ({mint.__file__}), the HTML template engine called mint; "
            "run `pip uninstall mint` and then `pip install --force-reinstall mindlab-toolkit`"
        )
    types = mint.types

Datum = types.Datum
SDK_VERSION = version("tinker")
SDK_MINOR = tuple(int(part) for part in SDK_VERSION.split(".")[:2])
SUPPORTED = ((0, 22), (0, 30))
"""The oldest and the newest minor version that real servers were driven with.

From 0.32 on the SDK ignores the HTTP client that it is given, so nothing could be sent at most once.
"""
ONE_ROUTE = (0, 25)
"""The minor version from which a forward goes to the route of gradients, in a binary form."""

__all__ = ["ONE_ROUTE", "SDK_MINOR", "SDK_VERSION", "SUPPORTED", "Datum", "mint", "types"]
