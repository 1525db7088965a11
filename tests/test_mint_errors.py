"""Every way in which the service can be missing or refuse: one clear line each, quickly, without the key."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

RunCli = Callable[..., tuple[int, str, str]]
KEY = "tml-never-shown"


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Start a web server that gives one answer to everything, and return its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: bytes = b"no", kind: str = "text/plain") -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(200 if self.path.endswith("healthz") and status < 500 else status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def train_at(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], tuple[int, str]]:
    """Run against an address; return the status and the one line of the error."""

    def run(url: str, key: str = KEY) -> tuple[int, str]:
        monkeypatch.setenv("MINT_API_KEY", key)
        monkeypatch.setenv("MINT_BASE_URL", url)
        status, out, err = run_cli("--loss", "dpo", "--output", str(tmp_path / "run"))
        assert key not in out + err
        assert err.count("\n") == 1, err
        return status, err

    return run


@pytest.mark.parametrize(
    ("status", "body", "kind", "exit_status", "words"),
    [
        (401, b'{"detail": "bad key tml-never-shown"}', "application/json", 2, "does not accept the key"),
        (403, b"forbidden", "text/plain", 2, "HTTP 403"),
        (404, b"<html>" + b"not here " * 500, "text/html", 2, "check MINT_BASE_URL"),
        (200, b"<html>a shop</html>", "text/html", 2, "is no training service"),
        (500, b"broken", "text/plain", 1, "out of order (HTTP 500)"),
    ],
)
def test_an_answer_that_refuses(
    answering: Callable[..., str],
    train_at: Callable[[str], tuple[int, str]],
    status: int,
    body: bytes,
    kind: str,
    exit_status: int,
    words: str,
) -> None:
    got, err = train_at(answering(status, body, kind))
    assert got == exit_status
    assert words in err
    assert len(err) < 600


def test_nobody_listens(train_at: Callable[[str], tuple[int, str]]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    status, err = train_at(f"http://127.0.0.1:{port}")
    assert status == 1
    assert "cannot be reached" in err


def test_a_service_that_never_answers(
    train_at: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_train.backends.mint.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, err = train_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert status == 1
    assert "did not answer" in err


def test_an_address_that_is_none(train_at: Callable[[str], tuple[int, str]]) -> None:
    status, err = train_at("mint.example")
    assert status == 2
    assert "is no address" in err


def test_no_key(run_cli: RunCli, tmp_path: Path) -> None:
    status, _, err = run_cli("--loss", "dpo", "--backend", "mint", "--output", str(tmp_path / "run"))
    assert status == 2
    assert "set MINT_API_KEY" in err
    assert "--backend local" in err


def test_a_key_of_no_known_kind_is_refused_before_anything_is_sent(
    train_at: Callable[..., tuple[int, str]],
) -> None:
    status, err = train_at("http://127.0.0.1:9", key="password123")
    assert status == 2
    assert "must start with sk- or tml-" in err


def test_the_wrong_distribution_called_mint_is_named(tmp_path: Path) -> None:
    (tmp_path / "mint").mkdir()
    (tmp_path / "mint" / "__init__.py").write_text("class Template: ...\n")
    finished = subprocess.run(
        [sys.executable, "-m", "mint_train", "--loss", "dpo"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert "pip install --force-reinstall mindlab-toolkit" in finished.stderr
    assert "Traceback" not in finished.stderr
