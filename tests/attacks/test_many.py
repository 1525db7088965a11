"""Many cases of each kind, drawn: MINT_TRAIN_ATTACKS=long makes 500 of each."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import mutated, seeds
from hostile import Answer, Hostile, running
from pydantic import SecretStr
from run_files import run_description
from trees import tree

import mint_train
from mint_train.backends.mint import http_client, session, waiting
from mint_train.backends.mint.client import MintTrainingClient, open_mint_client
from mint_train.batches.datums import build_datum
from mint_train.errors import MintTrainError
from mint_train.settings.model import Settings

pytestmark = pytest.mark.attacks

KEY = "tml-a-key-that-nobody-may-see"


# run folders


@pytest.mark.parametrize("seed", seeds(15))
def test_a_mangled_run_folder_is_refused_in_one_line_or_read(
    tmp_path: Path, run_cli: Callable[..., Any], seed: int
) -> None:
    dice = random.Random(seed)
    run = tmp_path / "run"
    run.mkdir()
    described = json.loads(run_description(settings={"loss": "dpo", "backend": "local"}).to_json())
    if dice.random() < 0.7:
        described = mutated(described, dice)
    line = {"metrics": {"loss": 1.0}, "learning_rate": 0.1, "tokens": 1, "seconds": 1.0}
    lines = [{"step": step, **line} for step in (1, 2)]
    saved = [{"step": 2, "state": "checkpoints/step-000002", "sampler": "adapter", "loss_state": {}}]
    evaluations = [{"step": 2, "metrics": {"loss": 1.0}, "intervals": {}, "batch_means": [], "groups": 1}]
    contents: dict[str, Any] = {
        "metrics.jsonl": lines,
        "checkpoints.jsonl": saved,
        "evaluations.jsonl": evaluations,
    }
    (run / "run.json").write_text(json.dumps(described))
    for name, content in contents.items():
        given = mutated(content, dice) if dice.random() < 0.5 else content
        rows = given if isinstance(given, list) else [given]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run / name).write_text(text[: dice.randrange(len(text) + 1)] if dice.random() < 0.2 else text)
    (tmp_path / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    commands: list[tuple[str, ...]] = [
        ("resume", "run"), ("export", "run"), ("eval", "run"), ("sample", "run"),
        ("--loss", "dpo", "--output", "run"), ("plot", "run", "--output", "plot"),
    ]  # fmt: skip
    command = dice.choice(commands)
    ended = run_cli(*command)
    if ended.status:
        assert ended.err.count("\n") == 1, ended.err
        assert ended.status in (1, 2)
        assert tree(tmp_path) == before
    else:
        assert {name: content for name, content in tree(tmp_path).items() if name in before} == before


# answers of a service

ANSWERS: dict[str, Any] = {
    "create_session": {"session_id": "session_1", "type": "create_session"},
    "session_heartbeat": {"type": "session_heartbeat"},
    "get_server_capabilities": {"supported_models": [{"model_name": "small"}]},
    "create_model": {"request_id": "create_model"},
    "optim_step": {"request_id": "optim_step"},
    "save_weights": {"request_id": "save_weights"},
    "unload_model": {"request_id": "unload_model"},
    "forward": {"request_id": "forward"},
    "forward_backward": {"request_id": "forward"},
}
RESULTS: dict[str, Any] = {
    "create_model": {"model_id": "model_1", "type": "create_model"},
    "optim_step": {"metrics": {}},
    "save_weights": {"path": "tinker://model_1/weights/one", "type": "save_weights"},
    "unload_model": {"model_id": "model_1", "type": "unload_model"},
    "forward": {
        "loss_fn_output_type": "x",
        "loss_fn_outputs": [{"logprobs": {"data": [-1.0, -2.0], "dtype": "float32", "shape": [2]}}],
        "metrics": {},
    },
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for long."""
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 0.6)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(http_client, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(session, "PAUSE_SECONDS", 0.01)


def proxied(dice: random.Random) -> Callable[[str, bytes], Answer]:
    """Answer by the book, but for one request, whose answer is changed on its way."""
    target = dice.choice([*ANSWERS, *(f"result of {name}" for name in RESULTS), "healthz", "openapi.json"])
    kind = dice.choice(["value", "value", "value", "bytes", "cut", "status", "echo", "nested"])

    def changed(body: Any) -> Answer:
        text = json.dumps(body).encode()
        if kind == "value":
            return Answer(body=json.dumps(mutated(body, dice), ensure_ascii=True).encode())
        if kind == "bytes":
            return Answer(body=dice.randbytes(dice.randrange(60)))
        if kind == "cut":
            return Answer(body=text[: dice.randrange(len(text))])
        if kind == "nested":
            return Answer(body=b"[" * 50_000)
        if kind == "echo":
            return Answer(dice.choice([400, 401, 402, 403, 422]), {"detail": f"{KEY} \x1b[2J\n"})
        return Answer(
            dice.choice([204, 301, 400, 401, 402, 403, 404, 405, 410, 415, 418, 422, 500, 503]), body
        )

    def answer(path: str, sent: bytes) -> Answer:
        name = path.rpartition("/")[2]
        body: Any = ANSWERS.get(name, {})
        if name == "retrieve_future":
            name = f"result of {json.loads(sent).get('request_id')}"
            body = RESULTS.get(name.removeprefix("result of "), {})
        elif name not in ANSWERS and name not in ("healthz", "openapi.json"):
            return Answer(404, {"detail": "Not Found"})
        return changed(body) if name == target else Answer(body=body)

    return answer


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", seeds(12))
def test_whatever_a_service_answers_is_one_error_of_ours(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(seed)
    service: Hostile
    answer = proxied(dice)

    def by_path(path: str) -> Answer:
        sent = next(body for at, _, body in reversed(service.requests) if at == path)
        return answer(path, sent)

    told: list[str] = []
    problems: list[str] = []
    with running(by_path) as service:
        settings = Settings(loss="any", rank=8, base_url=service.url, api_key=SecretStr(KEY))
        client: MintTrainingClient | None = None
        try:
            client = open_mint_client(settings, told.append, model="small", trains=False)
            client.forward([build_datum([1, 2], [3], None)], "cross_entropy").result(5)
            client.optim_step(mint_train.sdk.types.AdamParams()).result(5)
            client.save_state("one").result(5)
        except MintTrainError as error:
            problems.append(str(error))
        finally:
            if client is not None:
                client.close()
    written = capfd.readouterr()
    for text in (*problems, *told, caplog.text, written.out, written.err):
        assert KEY not in text
    assert all("\n" not in line and len(line) < 1000 for line in problems)
    assert "Traceback" not in written.err
    assert not list(tmp_path.iterdir())


def test_the_key_is_in_no_file_and_no_stream(
    tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, short_pairs: Path
) -> None:
    """One search over everything that runs against a service write, which repeats the key wherever it can."""
    monkeypatch.setenv("MINT_API_KEY", KEY)

    def answer(path: str) -> Answer:
        name = path.rpartition("/")[2]
        if name in ("healthz", "create_session", "session_heartbeat"):
            return Answer(body=ANSWERS.get(name, {}) | {"note": KEY})
        return Answer(422, {"detail": f"no {KEY}"}, {"X-Echo": KEY})

    said = ""
    with running(answer) as service:
        address = service.url.replace("http://", f"http://user:{KEY}@")
        for options in ([], ["--json"], ["--quiet"], ["--dry-run"]):
            monkeypatch.setenv("MINT_BASE_URL", address)
            given = ("--loss", "dpo", "--data", short_pairs, "--output", "run", "--backend", "mint")
            ended = run_cli(*given, *options)
            said += ended.out + ended.err
        ended = run_cli("check-server")
        said += ended.out + ended.err
    assert said
    assert KEY not in said
    for folder in (tmp_path, Path(os.environ["MINT_TRAIN_CACHE"])):
        for path in folder.rglob("*"):
            assert KEY not in path.name
            assert path.is_dir() or KEY.encode() not in path.read_bytes()
