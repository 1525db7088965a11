"""The one module that imports the SDK, and that knows which distributions and versions of it will do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

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
        except ModuleNotFoundError as error:
            if error.name == "tinker":
                reason = "is not installed: run `pip install mindlab-toolkit`, or `pip install tinker`"
            else:
                reason = f"needs {error.name}, which is not installed: run `pip install {error.name}`"
            raise UserError(f"the MinT SDK {reason}") from error
    if not hasattr(mint, "ServiceClient"):
        raise UserError(
            f"`import mint` found another package ({mint.__file__}), the HTML template engine called mint; "
            "run `pip uninstall mint` and then `pip install --force-reinstall mindlab-toolkit`"
        )
    types = mint.types

Datum = types.Datum
SDK_VERSION = version("tinker")
SDK_MINOR = (int(SDK_VERSION.split(".")[0]), int(SDK_VERSION.split(".")[1]))
SUPPORTED = ((0, 22), (0, 30))
"""The oldest and the newest minor version that real servers were driven with.

From 0.32 on the SDK ignores the HTTP client that it is given, so nothing could be sent at most once.
"""
ONE_ROUTE = (0, 25)
"""The minor version from which a forward goes to the route of gradients, in a binary form."""

__all__ = [
    "ONE_ROUTE",
    "SDK_MINOR",
    "SDK_VERSION",
    "SUPPORTED",
    "Datum",
    "mint",
    "types",
    "without_remote_code",
]


@contextmanager
def without_remote_code() -> Iterator[None]:
    """Keep the SDK from running Python code that comes with a tokenizer, as it does for some models."""
    from transformers import AutoTokenizer

    kept = AutoTokenizer.__dict__["from_pretrained"]
    load = AutoTokenizer.from_pretrained

    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        return load(*arguments, **options | {"trust_remote_code": False})

    AutoTokenizer.from_pretrained = staticmethod(from_pretrained)  # type: ignore[method-assign]
    try:
        yield
    finally:
        AutoTokenizer.from_pretrained = kept  # type: ignore[method-assign]
