"""Measure free memory and the activations that a model keeps, and tune the allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mint_train.backends.ranks import processes_here

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt: when freed memory returns to the system, and which sizes use mmap."""
SHARE_OF_FREE_MEMORY = {"cpu": 0.5, "cuda": 0.8}
"""Share for activations; the rest is for gradients, blocks of logits, the optimiser and other programs."""


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of `device`; on a CPU, what the machine and the container still allow.

    Processes that train together share a CPU's memory.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_meminfo_available(), _cgroup_available()]
    known = [limit for limit in limits if limit is not None]
    return (min(known) if known else 4 * 2**30) // processes_here()


def _meminfo_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return None


def _cgroup_available() -> int | None:
    """Return what the container's limit leaves, or None without a limit (cgroup version 2, then 1)."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        (root / "memory.max", root / "memory.current"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):
            continue
    return None


class SavedBytes:
    """Counts the bytes that autograd saves for the backward; a storage counts once."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        # Keep them alive, so that no two counted storages have the same address.
        self._kept: list[torch.Tensor] = []
        self.itemsize = 4

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage."""
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        self._kept.append(tensor)
        if tensor.is_floating_point():
            self.itemsize = tensor.element_size()

    def release(self) -> None:
        """Let the tensors go: they and the graph that saves them keep each other alive."""
        self._kept.clear()

    def without(self, tensors: Iterator[torch.Tensor]) -> int:
        """Return the sum without the storages of `tensors` (a model's weights)."""
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return sum(size for pointer, size in self._storages.items() if pointer not in known)


@contextmanager
def counted_saved_bytes() -> Iterator[SavedBytes]:
    """Count the bytes that operations in this context save for their backward."""
    counter = SavedBytes()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        counter.add(tensor)
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield counter
    finally:
        counter.release()


def keep_freed_memory() -> None:
    """Let the C library keep the memory that a step frees for the next step (glibc only).

    Returning it to the system and faulting it in again page by page takes up to a tenth of a step.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(AttributeError):  # other C libraries lack mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a failed allocation."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
