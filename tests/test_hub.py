"""Uploading to the hub: a small server that speaks the three routes of it that an upload needs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import mint_train

TOKEN = "hf_not_to_be_seen"
RunCli = Callable[..., tuple[int, str, str]]


class Hub(ThreadingHTTPServer):
    """Keeps what is uploaded, or refuses it."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = status
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.add(self.headers["Authorization"])
        answer: dict[str, Any] = {"error": "You do not have the rights to create a model under org."}
        if self.server.status == 200:
            answer = self.answered(body)
        sent = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def answered(self, body: bytes) -> dict[str, Any]:
        if self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            return {"url": f"{self.server.url}/org/name"}
        if self.path == "/api/models/org/name/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            return {
                "files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            }
        if self.path == "/api/models/org/name/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{self.server.url}/org/name/commit/1", "commitOid": "1", "success": True}
        return {}

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@contextmanager
def serving(status: int = 200) -> Iterator[Hub]:
    with Hub(status) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        hub.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("hub") / "run"
    mint_train.train("dpo", steps=1, output=run)
    return run


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub be asked, with a token; each test says where it is."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_an_adapter_is_uploaded_private_with_its_card(
    run_cli: RunCli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        status, out, err = run_cli("export", trained, "--to", "hub:org/name", "--output", "written")
    assert (status, err) == (0, "")
    assert f"Uploaded: {hub.url}/org/name\n" in out
    assert (hub.made["visibility"], hub.made["organization"], hub.made["name"]) == ("private", "org", "name")
    folder = Path("written")
    assert hub.files == {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert {"README.md", "adapter_model.safetensors"} <= set(hub.files)
    assert hub.keys == {f"Bearer {TOKEN}"}


def test_another_form_is_uploaded_from_python(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        done = mint_train.export(trained, tmp_path / "written", to=("gguf", "hub:org/name"), check=False)
    assert done.uploaded == f"{hub.url}/org/name"
    assert set(hub.files) == {"README.md", "Modelfile", "model-f16.gguf"}


@pytest.mark.attacks
@pytest.mark.parametrize(("answer", "expected"), [(401, 2), (403, 2), (500, 1)])
def test_a_hub_that_refuses_leaves_the_folder(
    run_cli: RunCli, trained: Path, answer: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answer) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        status, out, err = run_cli("export", trained, "--to", "hub:org/name", "--output", "written")
    assert (status, out, err.count("\n")) == (expected, "", 1), err
    assert "written is written, but was not uploaded to org/name" in err
    assert "`hf upload org/name written . --private` tries again" in err
    assert TOKEN not in err
    assert Path("written/README.md").exists()


@pytest.mark.attacks
def test_without_a_network_the_folder_stays(
    run_cli: RunCli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    status, _, err = run_cli("export", trained, "--to", "hub:org/name", "--output", "written")
    assert (status, err.count("\n")) == (1, 1), err
    assert "was not uploaded to org/name" in err
    assert Path("written/README.md").exists()


@pytest.mark.attacks
@pytest.mark.parametrize(
    ("to", "says"),
    [
        (("hub:name",), "name the owner too, --to hub:ORG/NAME"),
        (("hub:org/na me",), "--to hub:org/na me: "),
        (("hub:",), "--to hub:: "),
        (("hub:a/b", "hub:c/d"), "give one form and one repository at most"),
        (("merged", "gguf"), "give one form and one repository at most"),
    ],
)
def test_a_wrong_target_is_refused_before_anything_is_written(
    run_cli: RunCli, trained: Path, to: tuple[str, ...], says: str
) -> None:
    status, _, err = run_cli("export", trained, *(word for each in to for word in ("--to", each)))
    assert (status, says in err, err.count("\n")) == (2, True, 1), err
    assert [path.name for path in trained.parent.iterdir()] == ["run"]


def test_nothing_is_uploaded_without_a_token_or_offline(
    run_cli: RunCli, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    for says in ("no token was found; `hf auth login` saves one", "HF_HUB_OFFLINE is set"):
        status, _, err = run_cli("export", trained, "--to", "hub:org/name")
        assert (status, says in err, err.count("\n")) == (2, True, 1), err
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [path.name for path in trained.parent.iterdir()] == ["run"]
