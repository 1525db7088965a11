"""Processes on one machine that compute together: what process 0 sends them, and what it gets back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mint_train.backends.ranks import Ranks
from mint_train.errors import BackendError, OptionError

JOINING = timedelta(minutes=5)
"""How long a process waits for the others to start."""
WAITING = timedelta(days=30)
"""How long a process waits for the next request: process 0 may read data or ask a judge for hours."""


class LostProcessError(BackendError):
    """Another process has ended, or cannot be reached."""


class Group:
    """All processes of a run. Every method but `close` is called in each of them, in the same order."""

    def __init__(self, ranks: Ranks) -> None:
        """Join the group: the device, the threads and the connections of this process.

        Raises:
            OptionError: this machine lacks a GPU for each process, or torch cannot connect them.
            LostProcessError: the others have not started.
        """
        self.rank, self.count = ranks.rank, ranks.count
        self.lost = False
        if ranks.count_here != self.count:
            raise OptionError(
                f"{self.count} processes on several machines: mint-train trains on one; leave --nnodes out"
            )
        if not dist.is_available():
            raise OptionError("this torch is built without torch.distributed: start without torchrun")
        backend = "gloo"
        if torch.cuda.is_available():
            if torch.cuda.device_count() < self.count:
                raise OptionError(
                    f"{self.count} processes need a GPU each, and there are {torch.cuda.device_count()}: "
                    f"give torchrun --nproc-per-node {torch.cuda.device_count()}"
                )
            torch.cuda.set_device(self.rank)
            backend = "cpu:gloo,cuda:nccl"
        share_threads(self.count)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with self.reached():
            store, _, _ = next(rendezvous("env://", timeout=JOINING))
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.count, timeout=WAITING
            )

    def hand_out(self, objects: Sequence[Any] | None = None) -> Any:
        """Give each process its object; process 0 brings them all, and the others None."""
        given: list[Any] = [None]
        with self.reached():
            dist.scatter_object_list(given, None if objects is None else list(objects), src=0)
        return given[0] if objects is None else objects[0]

    def collect(self, own: Any) -> list[Any]:
        """Return what each process brings, by rank, to process 0; an empty list to the others."""
        found: list[Any] | None = [None] * self.count if self.rank == 0 else None
        with self.reached():
            dist.gather_object(own, found, dst=0)
        return [] if found is None else [own, *found[1:]]

    def exchange(self, own: Any) -> list[Any]:
        """Return what each process brings, by rank, to all of them."""
        found: list[Any] = [None] * self.count
        with self.reached():
            dist.all_gather_object(found, own)
        return found

    def add_up(self, tensor: torch.Tensor) -> None:
        """Put the sum over all processes in place of a tensor, the same bits in each."""
        with self.reached():
            dist.all_reduce(tensor)

    def close(self) -> None:
        """Close the connections and end torch's threads; one that outlives Python could abort the process."""
        dist.destroy_process_group()

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn a lost connection into one line, and let nothing be sent after it.

        Raises:
            LostProcessError: a process has ended.
        """
        if self.lost:
            raise LostProcessError("a process of this run has ended")
        try:
            yield
        except RuntimeError as error:
            self.lost = True
            raise LostProcessError(
                "another process of this run has ended: killed, or out of memory; start again with "
                "mint-train resume, or with fewer processes"
            ) from error
        except BaseException:  # an interrupt between two parts of a message
            self.lost = True
            raise


def share_threads(processes: int) -> None:
    """Divide the processor's cores among processes, unless the user has said how many threads each has."""
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # which is what torchrun sets
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // processes))
