"""Adapters that leave a service, and archives that must not: a small server gives out each of them."""

from __future__ import annotations

import io
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from mint_train.backends.mint import archive
from mint_train.backends.mint.archive import fetch_adapter
from mint_train.backends.mint.service import Service
from mint_train.errors import BackendError, MintTrainError, ServiceError, UserError

KEY = "tml-not-to-be-seen"
PATH = "tinker://model-1/sampler_weights/dpo-final"
CONFIG, WEIGHTS = b'{"r": 8}', b"weights" * 1000
LONG = "/api/v1/training_runs/model-1/checkpoints/sampler_weights/dpo-final/archive"
SHORT = "/api/v1/training_runs/model-1/checkpoints/dpo-final/archive"
Answer = tuple[int, dict[str, str], bytes]
Answers = dict[str, list[Answer]]


def packed(members: dict[str, bytes], link: str | None = None) -> bytes:
    """Return a compressed archive of files, and of a symbolic link to a path."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo("adapter_config.json")
            member.type, member.linkname = tarfile.SYMTYPE, link
            opened.addfile(member)
    return written.getvalue()


ADAPTER = packed({"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS})


class Server(ThreadingHTTPServer):
    """Gives the answers of a path one after the other, the last one for ever, and keeps who asked."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = answers, list[tuple[str, str | None]]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["X-API-Key"]))
        answers = self.server.answers.get(self.path, [(404, {}, b"{}")])
        status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@contextmanager
def serving(answers: Answers) -> Iterator[Server]:
    with Server(answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[[Server], Path]:
    def fetched(server: Server) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir()
        fetch_adapter(Service(server.url, SecretStr(KEY)), PATH, folder)
        return folder

    return fetched


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}


def test_the_service_sends_it_itself(fetch: Callable[[Server], Path]) -> None:
    with serving({LONG: [(200, {}, ADAPTER)]}) as server:
        assert files(fetch(server)) == WHOLE
    assert server.asked == [(LONG, KEY)]


def test_another_origin_gets_no_key(fetch: Callable[[Server], Path]) -> None:
    """Tinker names a signed address in a store of its own; SkyRL knows the name of the checkpoint alone."""
    with serving({"/store": [(200, {}, ADAPTER)]}) as store:
        answers: Answers = {LONG: [(405, {}, b"")], SHORT: [(302, {"Location": "/here"}, b"")]}
        answers["/here"] = [(302, {"Location": f"{store.url}/store"}, b"")]
        with serving(answers) as server:
            assert files(fetch(server)) == WHOLE
    assert server.asked == [(LONG, KEY), (SHORT, KEY), ("/here", KEY)]
    assert store.asked == [("/store", None)]


def test_an_archive_that_is_being_made_is_waited_for(
    fetch: Callable[[Server], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "PAUSE_SECONDS", 0.0)
    with serving({LONG: [(425, {}, b""), (503, {}, b""), (200, {}, ADAPTER)]}) as server:
        assert files(fetch(server)) == WHOLE


@pytest.mark.attacks
@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        ((302, {"Location": "file:///srv/weights"}, b""), UserError, "on its own machine, at file:///srv"),
        ((403, {}, b""), UserError, "does not give away"),
        ((302, {"Location": LONG}, b""), UserError, "does not give away"),  # for ever
        ((200, {"Content-Length": "1000000"}, ADAPTER), ServiceError, "could not be downloaded"),
        ((200, {}, ADAPTER[: len(ADAPTER) // 2]), ServiceError, "breaks off or is broken"),
        ((200, {}, b"<html>"), ServiceError, "breaks off or is broken"),
        ((200, {}, packed({"../adapter_config.json": CONFIG})), BackendError, "leaves its folder"),
        ((200, {}, packed({"/tmp/adapter_config.json": CONFIG})), BackendError, "leaves its folder"),
        ((200, {}, packed({}, link="/etc/passwd")), BackendError, "does not hold adapter_config.json"),
        ((200, {}, packed({"adapter_config.json": CONFIG})), BackendError, "adapter_model.safetensors"),
        (
            (200, {}, packed({"a/adapter_config.json": CONFIG, "adapter_config.json": CONFIG})),
            BackendError,
            "as one file",
        ),
        (
            (200, {}, packed({"adapter_config.json": CONFIG, "adapter_model.bin": WEIGHTS})),
            BackendError,
            "a pickle",
        ),
    ],
)
def test_what_is_not_an_adapter_is_one_line(
    answer: Answer, kind: type[MintTrainError], says: str, fetch: Callable[[Server], Path], tmp_path: Path
) -> None:
    with serving({LONG: [answer]}) as server, pytest.raises(kind, match=says) as caught:
        fetch(server)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert set(files(tmp_path)) <= {"adapter_config.json"}


@pytest.mark.parametrize("inner", ["", "adapter"])
def test_a_folder_of_a_service_on_this_machine_is_copied(
    fetch: Callable[[Server], Path], tmp_path: Path, inner: str
) -> None:
    kept = tmp_path / "a server" / "dpo-final"
    (kept / inner).mkdir(parents=True)
    for name, content in {**WHOLE, "optimizer.pt": b"much"}.items():
        (kept / inner / name).write_bytes(content)
    with serving({LONG: [(302, {"Location": kept.as_uri()}, b"")]}) as server:
        assert files(fetch(server)) == WHOLE


@pytest.mark.attacks
def test_a_folder_of_a_service_may_not_lead_elsewhere(
    fetch: Callable[[Server], Path], tmp_path: Path
) -> None:
    kept = tmp_path / "dpo-final"
    kept.mkdir()
    (tmp_path / "secret").write_bytes(CONFIG)
    (kept / "adapter_config.json").symlink_to(tmp_path / "secret")
    with (
        serving({LONG: [(302, {"Location": kept.as_uri()}, b"")]}) as server,
        pytest.raises(BackendError, match=r"does not hold adapter_config.json as a file"),
    ):
        fetch(server)
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()


def test_nothing_is_unpacked_that_does_not_fit(
    fetch: Callable[[Server], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(CONFIG)))
    with serving({LONG: [(200, {}, ADAPTER)]}) as server, pytest.raises(UserError, match="MB free"):
        fetch(server)


@pytest.mark.parametrize(
    "path", ["tinker://../x", "tinker://model-1/weights/state", "tinker://x", "tinker://"]
)
def test_only_weights_have_an_archive(path: str) -> None:
    service = Service("http://127.0.0.1:1", SecretStr(KEY))
    with pytest.raises(UserError, match="does not name weights on the service"):
        fetch_adapter(service, path, Path())


def test_a_path_without_the_kind_is_asked_for_too(tmp_path: Path) -> None:
    with serving({SHORT: [(200, {}, ADAPTER)]}) as server:
        fetch_adapter(Service(server.url, SecretStr(KEY)), "tinker://model-1/dpo-final", tmp_path)
    assert files(tmp_path) == WHOLE
