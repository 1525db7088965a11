"""Real servers of the Tinker API, each in an environment of its own: started on a free port, and ended.

Run as a program, this file is the guard that stands between the tests and the server:
`server.py COMMAND...` runs the command until it exits or standard input closes, then ends all its processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx
from environments import CACHE, LOG_TAIL_LINES, SKYRL, TUFT, Environment, ServerError

ADAPTERS, LARGEST_RANK = 8, 16
"""Slots for adapters, which sessions and samplers hold until they expire, and their rank; each costs time."""
SEQUENCES = 2
"""How many a server computes at once: it compiles for each number of sequences, which takes seconds."""
SAMPLED_SEQUENCES = 8
"""How many it samples at once: otherwise as many as have arrived, and each number is compiled anew."""
XLA_FLAGS = "--xla_backend_optimization_level=1"
"""An eighth less time to compile, and steps are as fast; at level 0 they take three times as long."""
XLA_FLAGS_OF_TWO_PROCESSES = (
    "--xla_force_host_platform_device_count=2",
    "--xla_backend_optimization_level=0",  # all is compiled, in both processes, for a few steps
    "--xla_llvm_disable_expensive_passes=true",
)
TUFT_KEY = "tml-tuft"
TUFT_LAUNCHER = Path(__file__).with_name("launch_tuft.py")
START_SECONDS = 300.0
STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class SkyrlServer:
    """A running server: its address, the one base model that it has, and where its output goes."""

    base_url: str
    model: str
    log: Path


@contextmanager
def running_server(
    model_folder: Path,
    work_folder: Path,
    adapters: int = ADAPTERS,
    environment: Environment = SKYRL,
    sequences: int = SEQUENCES,
) -> Iterator[SkyrlServer]:
    """Install SkyRL if need be, run it on a free port, and leave no process behind.

    Args:
        model_folder: The base model; its path is the model's name on the server.
        work_folder: An empty folder for the server's database, checkpoints and log.
        adapters: The places for adapters. Each costs time in every step, whether it is taken or not.
        environment: What it is installed from, which decides the version.
        sequences: How many it computes at once; 0 stands for all of a request.

    Raises:
        ServerError: It cannot be installed, or does not become healthy in time.
    """
    installed, port = environment.installed(), free_port()
    command = server_command(installed, model_folder, work_folder, port, adapters, sequences)
    with guarded(command, server_variables(installed), port, model_folder, work_folder) as server:
        yield server


@contextmanager
def running_on_two_processes(model_folder: Path, work_folder: Path) -> Iterator[SkyrlServer]:
    """Run SkyRL on two processes of two devices each, sharded over all four; see `running_server`.

    Its sessions never expire: the second process would not learn that an adapter is unloaded.
    """
    installed, port, coordinator = SKYRL.installed(), free_port(), f"127.0.0.1:{free_port()}"
    variables = server_variables(installed) | {"XLA_FLAGS": " ".join(XLA_FLAGS_OF_TWO_PROCESSES)}
    del variables["JAX_COMPILATION_CACHE_DIR"]  # processes of which one finds its code there wait for ever
    command = server_command(installed, model_folder, work_folder, port, ADAPTERS, SEQUENCES)
    position = command.index("--backend-config") + 1
    config = json.loads(command[position]) | {
        "coordinator_address": coordinator,
        "num_processes": 2,
        "tensor_parallel_size": 2,
        "fully_sharded_data_parallel_size": 2,
    }
    command[position] = json.dumps(config)
    command += ["--session-timeout-sec", "-1"]
    worker = [str(installed / "bin" / "python"), "-m", "skyrl.backends.jax"]
    worker += ["--coordinator-address", coordinator, "--num-processes", "2", "--process-id", "1"]
    with (
        guard(worker, variables, work_folder / "worker.log"),
        guarded(command, variables, port, model_folder, work_folder) as server,
    ):
        yield server


@contextmanager
def running_tuft(model_folder: Path, work_folder: Path) -> Iterator[SkyrlServer]:
    """Install TuFT if need be, run it on a free port, and leave no process behind; see `running_server`."""
    installed, port = TUFT.installed(), free_port()
    config = work_folder / "tuft.yaml"
    model = {"model_name": str(model_folder), "model_path": str(model_folder), "max_model_len": 4096}
    model |= {"capabilities": ["training"], "training_backend": "hf", "max_loras": 16}
    config.write_text(json.dumps({"supported_models": [model], "authorized_users": {TUFT_KEY: "tests"}}))
    launcher = [str(installed / "bin" / "python"), str(TUFT_LAUNCHER), "launch"]
    options = ["--config", config, "--checkpoint-dir", work_folder / "checkpoints", "--port", port]
    variables = server_variables(installed) | {
        "TUFT_HOME": str(work_folder),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray gives up on its own processes after 30 s, which a busy machine may take to start them
        "RAY_agent_register_timeout_ms": "300000",
        "RAY_raylet_start_wait_time_s": "300",
    }
    command = [*launcher, *map(str, options)]
    with guarded(command, variables, port, model_folder, work_folder) as server:
        yield server


@contextmanager
def guarded(
    command: list[str], variables: dict[str, str], port: int, model_folder: Path, work_folder: Path
) -> Iterator[SkyrlServer]:
    """Run a server's command behind the guard."""
    server = SkyrlServer(f"http://127.0.0.1:{port}", str(model_folder), work_folder / "server.log")
    with guard(command, variables, server.log) as process:
        wait_until_healthy(server, process)
        yield server


@contextmanager
def guard(command: list[str], variables: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command behind the guard, in the folder of its log."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, __file__, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=variables,
            start_new_session=True,  # Ctrl-C in the terminal is for the tests; they end the server
        ) as process,
    ):
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def server_command(
    environment: Path, model_folder: Path, work_folder: Path, port: int, adapters: int, sequences: int
) -> list[str]:
    """Give the command line; only `uv run` will do, since the server starts its engine with its parent's."""
    start = [str(environment / "bin" / "uv"), "run", "--no-project", "--active", "-m", "skyrl.tinker.api"]
    config = {"max_lora_adapters": adapters, "max_lora_rank": LARGEST_RANK}
    config |= {"train_micro_batch_size": sequences, "sample_max_num_sequences": SAMPLED_SEQUENCES}
    options = {
        "--base-model": str(model_folder),
        "--backend": "jax",
        "--backend-config": json.dumps(config),
        "--checkpoints-base": str(work_folder / "checkpoints"),
        "--database-url": f"sqlite:///{work_folder / 'tinker.db'}",
        "--host": "127.0.0.1",
        "--port": str(port),
    }
    return [*start, *(word for option in options.items() for word in option)]


def server_variables(environment: Path) -> dict[str, str]:
    """Give the tests' environment with the server's virtual environment active, offline, on the CPU."""
    foreign = ("MINT_", "TINKER_", "PYTHON", "UV_", "JAX_", "XLA_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "VIRTUAL_ENV": str(environment),
        "PATH": f"{environment / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        # SkyRL compiles for each shape of a batch, and its update for each adapter; here only once
        "JAX_COMPILATION_CACHE_DIR": str(CACHE / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": XLA_FLAGS,
        "UV_CACHE_DIR": str(CACHE / "uv"),
        "UV_NO_CONFIG": "1",
        "UV_OFFLINE": "1",
    }


def free_port() -> int:
    """Ask the system for a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until_healthy(server: SkyrlServer, guard: subprocess.Popen[bytes]) -> None:
    """Return once the server says that it is ready.

    Raises:
        ServerError: It exited or is not ready in time; the message ends with the tail of its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while guard.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            # a proxy from the environment must not come between us and the loopback
            if httpx.get(f"{server.base_url}/api/v1/healthz", timeout=5, trust_env=False).is_success:
                return
        time.sleep(0.25)
    ending = "is not ready in time" if guard.poll() is None else f"exited with status {guard.returncode}"
    tail = server.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    raise ServerError("\n".join([f"the server {ending}; the end of {server.log}:", *tail]))


def guard_command(command: list[str]) -> int:
    """Run a command until it exits or standard input closes, then end every process of its group.

    The tests hold the other end of standard input, so that it closes however they end, even if killed.
    """
    signal.signal(signal.SIGTERM, exit_on_signal)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        os.set_blocking(sys.stdin.fileno(), False)
        while server.poll() is None and sys.stdin.buffer.read(1) != b"":
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # ending the group is not to be interrupted
        end_group(server)
    return server.returncode


def exit_on_signal(number: int, _frame: FrameType | None) -> None:
    """Leave by way of the `finally` clauses."""
    raise SystemExit(128 + number)


def end_group(leader: subprocess.Popen[bytes]) -> None:
    """Ask every process of the leader's group to end, and kill those that have not after a while."""
    for wish in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(leader.pid, wish)
        deadline = time.monotonic() + STOP_SECONDS
        while group_exists(leader) and time.monotonic() < deadline:
            time.sleep(0.1)


def group_exists(leader: subprocess.Popen[bytes]) -> bool:
    """Say whether any process of the leader's group is left."""
    leader.poll()  # a leader that has exited counts until its status is read
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(guard_command(sys.argv[1:]))
