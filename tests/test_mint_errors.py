"""Every way in which the service can be missing or refuse: one clear line each, quickly, without the key."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from pydantic import SecretStr

from mint_train.backends.mint.client import MintTrainingClient, open_mint_client
from mint_train.backends.mint.server_description import (
    SKYRL,
    ServerDescription,
    check_sdk,
    describe_server,
    read_description,
)
from mint_train.backends.mint.service import Service
from mint_train.backends.mint.session import Session, open_session
from mint_train.batches.datums import build_datum
from mint_train.errors import BackendError, OptionError, ServiceError, UserError
from mint_train.observers.terminal import echo_problem
from mint_train.sdk import SDK_VERSION, types
from mint_train.settings.model import Settings

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
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
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
        (200, b"<html>a shop</html>", "text/html", 2, "is not a training service"),
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
    monkeypatch.setattr("mint_train.backends.mint.session.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, err = train_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert status == 1
    assert "did not answer" in err


def test_an_address_that_is_none(train_at: Callable[[str], tuple[int, str]]) -> None:
    status, err = train_at("mint.example")
    assert status == 2
    assert "is not an address" in err


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


ANSWERS: dict[str, Any] = {
    "config": {},
    "create_session": {"session_id": "session_1", "type": "create_session"},
    "session_heartbeat": {"type": "session_heartbeat"},
    "get_server_capabilities": {"supported_models": [{"model_name": "small"}]},
    "create_model": {"request_id": "create_model"},
    "optim_step": {"request_id": "optim_step"},
    "load_weights": {"request_id": "load_weights"},
    "unload_model": {"request_id": "unload_model"},
}
RESULTS: dict[str, Any] = {
    "create_model": {"model_id": "model_1", "type": "create_model"},
    "optim_step": {},
    "load_weights": {"path": "tinker://model_1/weights/one", "type": "load_weights"},
}


class SmallService(ThreadingHTTPServer):
    """A service of one adapter that answers by the book, but for what a test tells it to answer instead.

    Each answer is a status with a body for JSON (or bytes as they are), or None to hang up without one.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SmallServiceHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: Counter[str] = Counter()
        self.instead: dict[str, list[tuple[int, Any] | None]] = {}
        """By the last part of a path, or of a result's request, what to answer first."""

    def answer(self, name: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        key = f"result of {body['request_id']}" if name == "retrieve_future" else name
        self.requests[key] += 1
        if first := self.instead.get(key):
            return first.pop(0) if len(first) > 1 else first[0]
        if name == "retrieve_future":
            return 200, RESULTS[body["request_id"]]
        return (200, ANSWERS[name]) if name in ANSWERS else (405, {"detail": "Method Not Allowed"})


class SmallServiceHandler(BaseHTTPRequestHandler):
    server: SmallService

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = self.path.rpartition("/")[2]
        answer = (200, {}) if name == "healthz" else self.server.answer(name, json.loads(body or b"{}"))
        if answer is None:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        text = answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_DELETE = answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def small_service() -> Iterator[SmallService]:
    with SmallService() as service:
        threading.Thread(target=service.serve_forever, args=(0.02,), daemon=True).start()
        yield service
        service.shutdown()


@pytest.fixture
def client(small_service: SmallService) -> Iterator[MintTrainingClient]:
    settings = Settings(loss="any", rank=8, seed=1, base_url=small_service.url, api_key=SecretStr(KEY))
    client = open_mint_client(settings, echo_problem, model="small", trains=False)
    yield client
    client.close()


def test_a_service_that_lists_no_models_is_said(
    small_service: SmallService,
) -> None:
    small_service.instead["get_server_capabilities"] = [(200, {"supported_models": []})]
    settings = Settings(loss="any", rank=8, seed=1, base_url=small_service.url, api_key=SecretStr(KEY))
    told = list[str]()
    open_mint_client(settings, told.append, model="small", trains=False).close()
    assert "lists no models, so whether it has small is not known" in told[0]


@pytest.mark.parametrize("kept", [False, True])
def test_an_adapter_is_unloaded_unless_it_is_to_be_kept(small_service: SmallService, *, kept: bool) -> None:
    settings = Settings(
        loss="any", rank=8, seed=1, base_url=small_service.url, api_key=SecretStr(KEY), keep_adapters=kept
    )
    client = open_mint_client(settings, print, model="small", trains=False)
    client.load_state_with_optimizer("tinker://model_1/weights/one").result()
    client.load_state_with_optimizer("tinker://model_1/weights/one").result()  # into a second adapter
    client.close()
    assert small_service.requests["create_model"] == 2
    assert small_service.requests["unload_model"] == (0 if kept else 2)


OK = (200, ANSWERS["optim_step"])


@pytest.mark.parametrize("lost", [None, (500, {"detail": "broken"}), (502, {}), (504, {})])
def test_an_update_whose_answer_is_lost_is_not_sent_again(
    small_service: SmallService, client: MintTrainingClient, lost: tuple[int, Any] | None
) -> None:
    small_service.instead["optim_step"] = [lost, OK]
    with pytest.raises(ServiceError, match="may or may not have done what it was asked: to update"):
        client.optim_step(types.AdamParams()).result()
    assert small_service.requests["optim_step"] == 1


@pytest.mark.parametrize("status", [429, 503])
def test_an_update_that_was_not_taken_up_is_sent_again(
    small_service: SmallService, client: MintTrainingClient, status: int
) -> None:
    small_service.instead["optim_step"] = [(status, {"detail": "busy"}), OK]
    client.optim_step(types.AdamParams()).result()
    assert small_service.requests["optim_step"] == 2


@pytest.mark.parametrize("lost", [None, (500, {"detail": "broken"}), (408, {"detail": "not yet"})])
def test_a_result_is_asked_for_until_it_is_there(
    small_service: SmallService, client: MintTrainingClient, lost: tuple[int, Any] | None
) -> None:
    small_service.instead["result of optim_step"] = [lost, (200, {})]
    client.optim_step(types.AdamParams()).result()
    assert small_service.requests["optim_step"] == 1
    assert small_service.requests["result of optim_step"] == 2


@pytest.mark.parametrize(
    ("request_or_result", "status", "detail", "kind"),
    [
        ("optim_step", 404, "Model not found", ServiceError),
        ("result of optim_step", 404, "Future not found", ServiceError),
        ("result of optim_step", 400, "Model model_1 not loaded", ServiceError),
        ("result of optim_step", 410, "gone", ServiceError),
        ("result of optim_step", 400, "the sequence is too long", BackendError),
        ("optim_step", 422, "no such field", BackendError),
        ("optim_step", 404, "Not Found", BackendError),
        ("optim_step", 415, "not as JSON", BackendError),
        ("optim_step", 401, "who?", UserError),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(
    small_service: SmallService,
    client: MintTrainingClient,
    request_or_result: str,
    status: int,
    detail: str,
    kind: type[Exception],
) -> None:
    small_service.instead[request_or_result] = [(status, {"detail": detail})]
    with pytest.raises((BackendError, UserError)) as caught:
        client.optim_step(types.AdamParams()).result()
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("garbled", [b'{"met', b"<html>a gateway</html>", b""])
def test_an_answer_that_cannot_be_read_may_pass(
    small_service: SmallService, client: MintTrainingClient, garbled: bytes
) -> None:
    small_service.instead["result of optim_step"] = [(200, garbled)]
    with pytest.raises(ServiceError, match="cut off or garbled"):
        client.optim_step(types.AdamParams()).result()


def test_a_state_that_is_not_there_is_the_user_s_to_find(
    small_service: SmallService, client: MintTrainingClient
) -> None:
    small_service.instead["load_weights"] = [(404, {"detail": "Checkpoint not found"})]
    with pytest.raises(UserError, match="tinker://model_1/weights/one"):
        client.load_state_with_optimizer("tinker://model_1/weights/one").result()


def test_a_service_that_has_fallen_silent_is_given_up(
    small_service: SmallService, client: MintTrainingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_train.backends.mint.waiting.PATIENCE_SECONDS", 0.5)
    small_service.instead["result of optim_step"] = [(500, {"detail": "broken"})]
    with pytest.raises(ServiceError, match="has not answered for"):
        client.optim_step(types.AdamParams()).result()
    asked = small_service.requests["result of optim_step"]
    assert asked < 5, "asked again and again without a pause"


def test_a_service_that_takes_its_time_is_waited_for(
    small_service: SmallService, client: MintTrainingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_train.backends.mint.waiting.PATIENCE_SECONDS", 0.5)
    small_service.instead["result of optim_step"] = [(408, {"detail": "not yet"})] * 200 + [(200, {})]
    client.optim_step(types.AdamParams()).result()


def test_whatever_the_sdk_raises_is_one_error_of_ours(client: MintTrainingClient) -> None:
    future: Future[None] = Future()
    future.set_exception(RuntimeError(f"the loop is closed, {KEY}"))
    with (
        pytest.raises(BackendError, match=r"failed to update the adapter: the loop is closed, \*\*\*"),
        client.service.translated("update the adapter", running=True),
    ):
        client.service.wait(future)


def test_a_state_that_cannot_be_deleted_is_said_once(
    small_service: SmallService, client: MintTrainingClient, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        client.delete_state(f"tinker://model_1/weights/{name}")
    assert capsys.readouterr().err.count("old states stay on the service") == 1
    assert small_service.requests["one"] == 1
    assert small_service.requests["two"] == 0


def test_a_reference_is_shared_by_address_model_and_version_of_a_service_and_for_a_day(
    client: MintTrainingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.base_identity() is None, "it does not describe its API"
    client.session = replace(client.session, server=ServerDescription("A service", digest="1"))
    known = client.base_identity()
    assert known is not None
    assert (known["service"], known["model"]) == (client.service.url, "small")
    tomorrow = time.gmtime(time.time() + 24 * 60 * 60)
    with monkeypatch.context() as later:
        later.setattr(time, "gmtime", lambda: tomorrow)
        assert client.base_identity() not in (None, known), "its model may have got other weights"
    client.session = replace(client.session, server=ServerDescription("A service", digest="2"))
    assert client.base_identity() not in (None, known)
    client.session = replace(client.session, model="/models/small")
    assert client.base_identity() is None, "a folder may get other weights"


def test_a_state_is_deleted(small_service: SmallService, client: MintTrainingClient) -> None:
    small_service.instead["one"] = [(200, None)]
    client.delete_state("tinker://model_1/weights/one")
    assert small_service.requests["one"] == 1


def test_weights_saved_to_sample_while_training_are_deleted_if_sampling_fails(
    small_service: SmallService, client: MintTrainingClient
) -> None:
    saved = {"type": "save_weights_for_sampler", "path": "tinker://model_1/sampler_weights/any"}
    small_service.instead["save_weights_for_sampler"] = [(200, {"request_id": "saved"})]
    small_service.instead["result of saved"] = [(200, saved)]
    small_service.instead["any"] = [(200, None)]
    with pytest.raises(BackendError, match="to name its tokenizer"), client.open_sampler("any"):
        pass
    assert small_service.requests["any"] == 1


def test_a_client_that_is_closed_gives_its_place_back(
    small_service: SmallService, client: MintTrainingClient
) -> None:
    small_service.instead["result of optim_step"] = [(408, {"detail": "not yet"})]
    waiting = client.optim_step(types.AdamParams())
    client.close()
    assert small_service.requests["unload_model"] == 1
    with pytest.raises(BackendError):
        waiting.result()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["--loss", "dpo", "--trust-gradients", "--max-retries", "0"], "to name its tokenizer"),
        (
            [
                "--loss",
                "dpo",
                "--trust-gradients",
                "--max-retries",
                "0",
                "--from",
                "tinker://model_1/weights/gone",
            ],
            "gone",
        ),
        (
            ["eval", "tinker://model_1/weights/one", "--loss", "dpo", "--data", "PAIRS"],
            "to name its tokenizer",
        ),
        (["sample", "tinker://model_1/weights/gone", "--loss", "dpo", "--prompt", "Hi"], "gone"),
    ],
)
def test_what_fails_before_the_first_step_gives_its_place_back(
    small_service: SmallService,
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINT_API_KEY", KEY)
    monkeypatch.setenv("MINT_BASE_URL", small_service.url)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    if "gone" in problem:
        small_service.instead["load_weights"] = [(404, {"detail": "no such weights: gone"})]
    given = [str(tmp_path / "pairs.jsonl") if word == "PAIRS" else word for word in command]
    status, out, err = run_cli(*given, "--model", "small")
    assert status, out
    assert problem in err
    assert small_service.requests["create_model"] == small_service.requests["unload_model"] > 0


def test_a_session_is_closed_where_the_service_lacks_the_model(
    small_service: SmallService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeats would go on for as long as the program runs."""
    closed: list[Session] = []
    monkeypatch.setattr(Session, "close", lambda session: closed.append(session))
    with pytest.raises(UserError, match="has no model large"):
        open_session("large", small_service.url, SecretStr(KEY))
    assert len(closed) == 1
    monkeypatch.undo()
    closed[0].close()


def test_what_a_client_leaves_behind_is_asked_for_again(
    small_service: SmallService, client: MintTrainingClient
) -> None:
    """Gradients that no update has taken would go to whoever gets the place."""
    small_service.instead["optim_step"] = [None, (500, {}), OK]
    small_service.instead["unload_model"] = [(502, {}), OK]
    client.close()
    assert small_service.requests["optim_step"] == 3
    assert small_service.requests["unload_model"] == 2


@pytest.mark.parametrize("awaited", [True, False])
def test_an_update_without_gradients_is_in_doubt_until_they_are_awaited(
    small_service: SmallService, client: MintTrainingClient, awaited: bool
) -> None:
    """Gradients of logprobs may cancel in the adapter's weights: their norm is 0, and nothing is wrong."""
    logprobs = {"data": [-0.5, -1.5], "dtype": "float32", "shape": [2]}
    passed = {"loss_fn_output_type": "scalar", "loss_fn_outputs": [{"logprobs": logprobs}], "metrics": {}}
    for name in ("forward", "forward_backward"):
        small_service.instead[name] = [(200, {"request_id": name})]
        small_service.instead[f"result of {name}"] = [(200, passed)]
    if not awaited:
        small_service.instead["result of forward_backward"] = [(408, {"detail": "not yet"})]
    small_service.instead["result of optim_step"] = [(200, {"metrics": {"skyrl.ai/grad_norm": 0.0}})]
    datum = build_datum([1, 2], [3], None)
    backward = client.forward_backward_custom([datum], lambda _, logprobs: (logprobs[0].sum(), {}))
    if awaited:
        backward.result()
    update = client.optim_step(types.AdamParams())
    if awaited:
        update.result()
    else:
        with pytest.raises(ServiceError, match="updated the adapter before it took up the gradients"):
            update.result()


@pytest.mark.parametrize("proved", [True, False])
def test_known_gradients_need_no_logprobs_first(
    small_service: SmallService, client: MintTrainingClient, proved: bool
) -> None:
    """The loss is computed when the answer is there, once; a form that is not proved takes both requests."""
    client.takes_known_gradients = proved
    logprobs = {"data": [-0.5, -1.5], "dtype": "float32", "shape": [2]}
    passed = {"loss_fn_output_type": "scalar", "loss_fn_outputs": [{"logprobs": logprobs}], "metrics": {}}
    for name in ("forward", "forward_backward"):
        small_service.instead[name] = [(200, {"request_id": name})]
        small_service.instead[f"result of {name}"] = [(200, passed)]
    computed: list[float] = []

    def half_sum(_: object, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        value = 0.5 * logprobs[0].sum()
        computed.append(float(value.detach()))
        return value, {"loss": computed[-1]}

    known = [torch.tensor([0.5, 0.5])]
    backward = client.forward_backward_custom([build_datum([1, 2], [3], None)], half_sum, known)
    assert computed == ([] if proved else [-1.0])
    for _ in range(2):
        assert backward.result().metrics["loss"] == -1.0
    assert computed == [-1.0]
    assert small_service.requests["forward"] == (not proved)
    assert small_service.requests["forward_backward"] == 1


def test_bad_logprobs_that_come_with_gradients_are_noticed(
    small_service: SmallService, client: MintTrainingClient
) -> None:
    client.takes_known_gradients = True
    logprobs = {"data": [-0.5], "dtype": "float32", "shape": [1]}
    passed = {"loss_fn_output_type": "scalar", "loss_fn_outputs": [{"logprobs": logprobs}], "metrics": {}}
    small_service.instead["forward_backward"] = [(200, {"request_id": "forward_backward"})]
    small_service.instead["result of forward_backward"] = [(200, passed)]
    datum, known = build_datum([1, 2], [3], None), [torch.tensor([0.5, 0.5])]
    backward = client.forward_backward_custom([datum], lambda *_: pytest.fail("the loss was called"), known)
    with pytest.raises(BackendError, match="answered with 1 logprobs for the 2 target tokens of datum 1"):
        backward.result()


def test_a_missing_route_names_the_sdk(small_service: SmallService, client: MintTrainingClient) -> None:
    small_service.instead["optim_step"] = [(404, {"detail": "Not Found"})]
    with pytest.raises(BackendError, match=f"does not know what tinker {SDK_VERSION} asks for"):
        client.optim_step(types.AdamParams()).result()
    assert small_service.requests["optim_step"] == 1


def test_a_long_error_shows_its_end_and_no_terminal_codes(
    small_service: SmallService, client: MintTrainingClient
) -> None:
    trace = "\x1b[36mray::Model\x1b[39m Traceback " + "line " * 500 + "ValueError: the rank is too high"
    small_service.instead["result of optim_step"] = [(400, {"detail": trace})]
    with pytest.raises(BackendError, match="the rank is too high") as caught:
        client.optim_step(types.AdamParams()).result()
    assert len(str(caught.value)) < 500
    assert "[36m" not in str(caught.value)


def test_full_places_are_said_to_get_free_again(
    small_service: SmallService, client: MintTrainingClient
) -> None:
    small_service.instead["result of optim_step"] = [
        (400, {"detail": "Maximum number of LoRA adapters (8) reached"})
    ]
    with pytest.raises(BackendError, match="five minutes after the run has ended"):
        client.optim_step(types.AdamParams()).result()


PATHS = frozenset({"/api/v1/forward_backward"})


@pytest.mark.parametrize(
    ("sdk", "title", "paths", "needs"),
    [
        ((0, 22), "SkyRL", PATHS, "needs tinker 0.25 to 0.30"),
        ((0, 25), SKYRL, PATHS | {"/api/v1/forward"}, "needs tinker 0.22 to 0.24"),
        ((0, 29), "TuFT", PATHS, "needs tinker 0.25 to 0.28"),
        ((0, 38), "", frozenset(), "mint-train works with 0.22 to 0.30"),
    ],
)
def test_an_sdk_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, sdk: tuple[int, int], title: str, paths: frozenset[str], needs: str
) -> None:
    monkeypatch.setattr("mint_train.backends.mint.server_description.SDK_MINOR", sdk)
    with pytest.raises(UserError, match=needs) as caught:
        check_sdk(ServerDescription(title, paths), "http://service")
    assert "pip install" in str(caught.value)


def test_an_sdk_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_train.backends.mint.server_description.SDK_MINOR", (0, 25))
    check_sdk(ServerDescription("TuFT", PATHS), "http://service")
    check_sdk(ServerDescription(), "http://service")
    monkeypatch.setattr("mint_train.backends.mint.server_description.SDK_MINOR", (0, 22))
    check_sdk(ServerDescription(SKYRL, PATHS | {"/api/v1/forward"}), "http://service")


@pytest.mark.parametrize(
    ("schemas", "chooses"),
    [
        ({"LoRAConfig": {"properties": {"rank": {}, "seed": {}}}}, True),
        ({"LoraConfig": {"properties": {"rank": {}, "train_unembed": {}}}}, False),
        ({"Datum": {"properties": {"rank": {}}}}, False),
        ({"LoRAConfig": {"$ref": "#/elsewhere"}}, False),
        (None, False),
    ],
)
def test_a_service_that_asks_for_no_layers_decides_itself(schemas: Any, chooses: bool) -> None:
    described: dict[str, Any] = {"info": {"title": "A service"}, "paths": {}}
    if schemas is not None:
        described["components"] = {"schemas": schemas}
    answer = httpx.Response(200, json=described, request=httpx.Request("GET", "http://service"))
    assert read_description(answer).title == "A service"
    assert read_description(answer).chooses_layers is chooses


@pytest.mark.parametrize(
    ("title", "targets", "advice"),
    [
        (SKYRL, ("attention",), "; give attention,mlp, as it does, or leave the option out"),
        (SKYRL, ("mlp", "unembed"), "; give attention,mlp, as it does, or leave the option out"),
        (SKYRL, ("mlp", "attention"), None),
        (SKYRL, (), None),
        ("Another", ("attention", "mlp"), "; leave the option out"),
    ],
)
def test_layers_that_a_service_would_not_adapt_are_refused(
    title: str, targets: tuple[str, ...], advice: str | None
) -> None:
    decides = ServerDescription(title, adapter_options=frozenset({"rank"}))
    settings = Settings(loss="any", lora_targets=targets)
    check = Session(Any, Any, "a model", decides).check_layers
    if advice is None:
        check(settings)
        return
    with pytest.raises(OptionError, match=r"^--lora-targets ") as refused:
        check(settings)
    assert str(refused.value).endswith(f"decides itself which layers get an adapter{advice}")


def test_layers_are_given_to_a_service_that_takes_them() -> None:
    listens = ServerDescription(SKYRL, adapter_options=frozenset({"rank", "train_unembed"}))
    Session(Any, Any, "a model", listens).check_layers(Settings(loss="any", lora_targets=("attention",)))


def test_a_description_that_is_lost_is_asked_for_again() -> None:
    """Without it, a server would be taken for another one, and its gradients be proved anew."""
    answers = iter(
        [(503, b"busy"), (200, json.dumps({"info": {"title": "TuFT"}, "paths": sorted(PATHS)}).encode())]
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = next(answers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        described = describe_server(Service(f"http://127.0.0.1:{server.server_port}", SecretStr(KEY)))
        server.shutdown()
    assert described.title == "TuFT"
    assert described.digest


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "tinker",
            "the MinT SDK is not installed: run `pip install mindlab-toolkit`, or `pip install tinker`",
        ),
        ("orjson", "the MinT SDK needs orjson, which is not installed: run `pip install orjson`"),
    ],
)
def test_a_package_that_is_missing_is_named(missing: str, message: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; import mint_train.sdk"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == f"mint_train.errors.UserError: {message}"
