"""No secret gets out, and no stranger's code gets in."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import Answer, running
from pydantic import SecretStr
from run_files import run_description

from mint_train.backends.mint.service import Service
from mint_train.backends.mint.session import check_key, hide_key_in_logs, open_session
from mint_train.errors import MintTrainError, OptionError, UserError
from mint_train.losses.trust import check_address, check_loss_files
from mint_train.run_folder.files import file_sha256
from mint_train.settings.fields import without_credentials
from mint_train.settings.merge import load_settings

pytestmark = pytest.mark.attacks

KEY = "tml-a-key-that-nobody-may-see"


def open_on(url: str) -> Any:
    return open_session("tiny", url, SecretStr(KEY))


# the key stays with the service


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_origin_is_not_followed(status: int) -> None:
    with running(lambda _: Answer()) as other:

        def answer(path: str) -> Answer:
            if path.endswith("healthz"):
                return Answer()
            return Answer(status, headers={"Location": f"{other.url}{path}"})

        with running(answer) as service:
            with pytest.raises(MintTrainError) as refused:
                open_on(service.url)
            assert service.url in str(refused.value)
            assert other.url in str(refused.value)
            assert KEY not in str(refused.value)
    assert other.requests == []


def test_a_redirect_within_the_service_is_followed() -> None:
    def answer(path: str) -> Answer:
        if path.startswith("/old") and not path.endswith("healthz"):
            return Answer(307, headers={"Location": path.removeprefix("/old")})
        return Answer(404)

    with running(answer) as service:
        with pytest.raises(MintTrainError, match="404"):
            open_on(f"{service.url}/old")
        assert any(not path.startswith("/old") for path, _, _ in service.requests)


def test_a_service_that_wants_to_be_paid_ends_the_run_at_once(caplog: pytest.LogCaptureFixture) -> None:
    def answer(path: str) -> Answer:
        return Answer() if path.endswith("healthz") else Answer(402, {"detail": f"no credit for {KEY}"})

    with running(answer) as service, pytest.raises(MintTrainError, match="wants to be paid") as refused:
        open_on(service.url)
    assert KEY not in str(refused.value)
    assert KEY not in caplog.text


def test_the_key_is_not_in_what_the_sdk_logs(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tinker.lib.internal_client_holder")
    hide_key_in_logs(Service("http://localhost", SecretStr(KEY)))
    logger.warning("the service says %s", f"hello {KEY}")
    assert "the service says hello ***" in caplog.text


@pytest.mark.parametrize("tail", ["\n", " ", "\u00e9", "\r\nX: y", "\t", "\x00", "\u200b", " x"])
def test_a_key_that_no_header_can_carry_is_refused_at_once(tail: str) -> None:
    with pytest.raises(UserError, match="MINT_API_KEY holds a blank") as refused:
        check_key(SecretStr(KEY + tail))
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("secret", ["word", "w/rd", "w@rd", "w:rd", "a?b#c"])
@pytest.mark.parametrize("scheme", ["https://", "http://", ""])
def test_credentials_in_the_address_reach_nothing(
    monkeypatch: pytest.MonkeyPatch, secret: str, scheme: str
) -> None:
    monkeypatch.setenv("MINT_BASE_URL", f"{scheme}user:{secret}@host.example:8000/api")
    settings = load_settings({"loss": "dpo"})
    assert settings.base_url == f"{scheme}host.example:8000/api"
    assert secret not in json.dumps(settings.public())


def test_an_address_without_credentials_is_kept() -> None:
    for address in ("http://localhost:8000", "https://host.example/a/b", "host"):
        assert without_credentials(address) == address


# a run folder from somebody else


def test_the_key_goes_only_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = load_settings({"loss": "dpo", "backend": "mint", "base_url": "http://stranger.example"})
    with_key = recorded.model_copy(update={"api_key": SecretStr(KEY)})
    with pytest.raises(OptionError, match=r"add --base-url http://stranger\.example"):
        check_address(with_key)
    monkeypatch.setenv("MINT_BASE_URL", "http://mine.example")
    with pytest.raises(OptionError, match="MINT_BASE_URL does not name"):
        check_address(with_key)
    check_address(with_key, "http://stranger.example")
    check_address(recorded)
    monkeypatch.setenv("MINT_BASE_URL", "http://stranger.example")
    check_address(with_key)


def test_a_loss_file_is_run_only_if_it_is_known_and_the_user_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, run = tmp_path / "here", tmp_path / "here" / "run"
    run.mkdir(parents=True)
    monkeypatch.chdir(here)
    for path in ("mine.py", "../theirs.py", "run/theirs.py"):
        Path(path).write_text("raise SystemExit")
        digest = file_sha256(Path(path))
        digests = {path: digest, str(Path(path).resolve()): digest}
        for name in (path if "/" in path else f"./{path}", str(Path(path).resolve())):
            known = digests | {name: digest}
            if path == "mine.py":
                check_loss_files(name, known, run)
            else:
                with pytest.raises(OptionError, match="--trust-loss"):
                    check_loss_files(name, known, run)
                check_loss_files(name, known, run, trust_loss=True)
            for wrong in ({}, {name: "0" * 64}):
                with pytest.raises(UserError, match="has changed since"):
                    check_loss_files(f"dpo+0.5*{name}", wrong, run, trust_loss=True)


def test_eval_of_a_stranger_s_folder_runs_none_of_its_files(
    tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "loss.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    settings = load_settings({"loss": "run/loss.py", "backend": "local"}).public()
    described = run_description(settings=settings, loss_files={"run/loss.py": file_sha256(run / "loss.py")})
    (run / "run.json").write_text(described.to_json())
    (run / "checkpoints.jsonl").write_text('{"step": 1, "state": "x", "sampler": null, "loss_state": {}}\n')
    for command in ("eval", "resume", "sample"):
        ended = run_cli(command, "run")
        assert ended.status == 2
        assert "--trust-loss" in ended.err
        assert ended.err.count("\n") == 1
    assert not (tmp_path / "ran").exists()


# a path that a service names


def test_a_path_that_a_service_names_is_none_on_this_machine(tmp_path: Path) -> None:
    from mint_train.backends.mint.client import ON_A_SERVICE

    assert ON_A_SERVICE.fullmatch("tinker://model/weights/step-000001")
    for path in ("/etc", "run", "../x", "", "tinker://a b", "tinker://a\n", "file", "C:\\x"):
        assert not ON_A_SERVICE.fullmatch(path)


def test_a_state_outside_the_run_folder_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mint_train.backends.local.client import LocalTrainingClient

    client = LocalTrainingClient.__new__(LocalTrainingClient)
    monkeypatch.setattr(LocalTrainingClient, "folder", tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "state.safetensors").write_text("years of work")
    for path in (tmp_path / "mine", tmp_path / "run" / "checkpoints" / ".." / ".." / "mine"):
        with pytest.raises(MintTrainError, match="is not deleted"):
            client.delete_state(str(path))
    assert (tmp_path / "mine" / "state.safetensors").exists()


# a model's own code


@pytest.mark.slow
def test_the_code_of_a_model_is_never_run(
    tmp_path: Path, starter_model_folder: Path, run_cli: Callable[..., Any], short_pairs: Path
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(starter_model_folder, model)
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (model / "own.py").write_text(code)
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (model / "config.json").write_text(json.dumps(config))
    tokens = json.loads((model / "tokenizer_config.json").read_text())
    tokens |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(tokens))
    for dry in ([], ["--dry-run"]):
        ended = run_cli("--loss", "dpo", "--model", model, "--data", short_pairs, "--backend", "local", *dry)
        assert not (tmp_path / "ran").exists()
        assert "Traceback" not in ended.err
    from transformers import AutoTokenizer

    from mint_train.sdk import without_remote_code

    with without_remote_code(), pytest.raises(ValueError, match="trust_remote_code"):
        AutoTokenizer.from_pretrained(model, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()
