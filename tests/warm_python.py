"""A Python whose processes are forked from one that has imported what training needs.

Those imports take seconds in each new process. Where a test needs a process but not how it starts, it runs
the program that `started` yields in place of `sys.executable`: `-m module` or `-c code`, with arguments, and
with `-u` before it. It passes on its standard streams, folder, environment and limits, signals, and how the
process ended. When the program is killed, its process follows a moment later.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import resource
import runpy
import selectors
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PRELOADED = (
    "mint_train.training.training",
    "mint_train.backends.local.load",
    "mint_train_dpo",
    "transformers.models.qwen3.modeling_qwen3",
)
STREAMS = (0, 1, 2)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.01
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


@contextmanager
def started(folder: Path, path: Path | None = None) -> Iterator[str]:
    """Start the process that forks the others; yield the path of a program that takes Python's arguments.

    Args:
        folder: an empty folder with a short path.
        path: a folder of packages that go before the installed ones.
    """
    variables = os.environ | ({} if path is None else {"PYTHONPATH": str(path)})
    address = folder / "socket"
    program = folder / "python"
    client = shlex.join([sys.executable, "-IS", __file__, "call", str(address), str(program)])
    program.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        server = subprocess.Popen(
            [sys.executable, __file__, "serve", str(listener.fileno())],
            pass_fds=[listener.fileno()], stdin=subprocess.PIPE, start_new_session=True, env=variables,
        )  # fmt: skip
    try:
        yield str(program)
    finally:
        server.communicate()


def call(address: str, program: str, *arguments: str) -> None:
    """Have a process forked, pass signals on to it, and end as it ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        limits = {number: resource.getrlimit(number) for number in LIMITS}
        asked = [program, arguments, os.getcwd(), dict(os.environ), list(limits.items())]
        request = json.dumps(asked).encode()
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], STREAMS)
        connection.sendall(request)
        for number in FORWARDED:
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
        status = int(connection.recv(16) or signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(status)
    if ended < 0:
        if -ended != signal.SIGKILL:
            signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    os._exit(ended)


def serve(listener: socket.socket) -> tuple[list[Any], list[int]]:
    """Fork a process for each connection until standard input ends; return in each what it is asked to be."""
    children: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(POLL_SECONDS if children else None):
                if key.fileobj == 0:
                    for pid in children:
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                if key.fileobj is not listener:
                    number = key.fileobj.recv(1)
                    os.kill(key.data, number[0] if number else signal.SIGKILL)
                    if not number:
                        selector.unregister(key.fileobj)
                    continue
                connection, _ = listener.accept()
                size, streams, _, _ = socket.recv_fds(connection, 4, len(STREAMS))
                with connection.makefile("rb") as file:
                    request = json.loads(file.read(int.from_bytes(size, "big")))
                if not (pid := os.fork()):
                    return request, streams
                for stream in streams:
                    os.close(stream)
                children[pid] = connection
                selector.register(connection, selectors.EVENT_READ, pid)
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    report(selector, children.pop(pid), status)


def report(selector: selectors.BaseSelector, connection: socket.socket, status: int) -> None:
    """Say how a process ended to the program that stands for it."""
    if connection in (key.fileobj for key in selector.get_map().values()):
        selector.unregister(connection)
        connection.sendall(str(status).encode())
    connection.close()


def become(
    program: str, arguments: list[str], folder: str, environment: dict[str, str], limits: list[Any]
) -> None:
    """Be the Python process that was asked for."""
    unbuffered = arguments[0] == "-u"  # as torchrun starts its processes
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, limit in limits:
        resource.setrlimit(number, tuple(limit))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    open_streams(unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")))
    kind, code, *rest = arguments[unbuffered:]
    sys.executable = program
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["-c" if kind == "-c" else code, *rest]
    if kind == "-m":
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    else:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def open_streams(at_once: bool) -> None:
    """Open the standard streams as a process that starts would: lines on a terminal, else blocks."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        raw = io.FileIO(number, "w", closefd=False)
        stream = io.TextIOWrapper(
            raw if at_once else io.BufferedWriter(raw), "utf-8", errors,
            line_buffering=raw.isatty() or number == 2, write_through=at_once,
        )  # fmt: skip
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def main(action: str, *given: str) -> None:
    """Be the program that tests run, or the process that forks the others."""
    if action == "call":
        call(*given)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    with socket.socket(fileno=int(given[0])) as listener:
        request, streams = serve(listener)
    for number, stream in zip(STREAMS, streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    become(*request)


if __name__ == "__main__":
    main(*sys.argv[1:])
