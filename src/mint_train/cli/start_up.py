"""Start and end quickly: a short run spends most of its time on importing torch, transformers and PEFT."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from mint_train.garbage import OBJECTS_PER_COLLECTION
from mint_train.observers.terminal import echo


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Run the cyclic garbage collector less often, and not at the end of the process.

    Imports make a million objects that live as long as the process. Searching them for garbage again and
    again, and once more at the end, would take a quarter of a short run's time.
    """
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    try:
        yield
    finally:
        gc.freeze()


def load_libraries(message: str) -> None:
    """Print `message` to a terminal, then import the SDK while torch's shared library loads.

    Raises:
        UserError: the SDK is not installed.
    """
    if sys.stderr.isatty():
        echo(message, err=True)
    # ctypes releases the interpreter's lock while it loads a library; `import torch` would hold it
    Thread(target=_load_torch_library, daemon=True).start()
    import mint_train.sdk  # noqa: F401 - needs no torch


def _load_torch_library() -> None:
    """Load the library that most of `import torch` waits for; the import itself reports any failure."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        library = Path(folder, "lib", "libtorch_cpu.so")
        # with CUDA, torch loads other libraries first
        if not library.with_name("libtorch_cuda.so").exists():
            with suppress(OSError):
                ctypes.CDLL(str(library))
