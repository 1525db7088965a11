"""A model or datum that cannot be used gives one line that names it and says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import VOCABULARY, make_model
from transformers import AutoModelForCausalLM
from transformers.models.bloom import BloomConfig

from mint_train.backends.local.client import LocalTrainingClient
from mint_train.backends.local.engine import Engine
from mint_train.backends.local.load import load_base
from mint_train.backends.local.scoring import Scorer
from mint_train.backends.local.starter_model import save_starter_model
from mint_train.cli.main import main, show_warning
from mint_train.errors import BackendError, LossError, UserError
from mint_train.sdk import Datum, types


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_starter_model(tmp_path / "model")
    return tmp_path / "model"


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def remove_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def resize(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))


def keep_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def make_adapter(folder: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/base"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "the model cannot be loaded.*model.safetensors",
        ),
        (keep_pickle, "has no safetensors, and pytorch_model.bin is not loaded; save the model again"),
        (make_adapter, r"is an adapter of org/base; to begin with it, give --from \S+ --model org/base"),
        (
            lambda folder: (folder / "run.json").touch(),
            r"is a run; to begin with what .*give --from \S+model$",
        ),
        (truncate, "the model cannot be loaded"),
        (resize, "the model cannot be loaded"),
        (remove_tokenizer, "the tokenizer (has no vocabulary|cannot be loaded)"),
        (shutil.rmtree, "this folder does not exist"),
    ],
    ids=[
        "no-weights",
        "pickle",
        "adapter",
        "run",
        "broken-weights",
        "other-shapes",
        "no-tokenizer",
        "no-folder",
    ],
)
def test_a_folder_that_cannot_be_loaded_is_named(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_base(str(folder), "auto")
    assert str(caught.value).startswith(f"--model {folder}: ")
    assert "\n" not in str(caught.value)


def test_the_command_line_reports_it_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (folder / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["mint-train", "--loss", "dpo", "--backend", "local", "--model", str(folder)]
    )
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main())
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"mint-train: --model {folder}: the model cannot be loaded")


def client_of(name: str, folder: Path) -> LocalTrainingClient:
    model: Any = make_model(name)
    return LocalTrainingClient(model, None, Engine(model, max_tokens_in_flight=1000), folder)  # type: ignore[arg-type]


def datum(tokens: list[int], targets: list[int], weights: list[float] | None = None) -> Datum:
    return Datum(
        model_input=types.ModelInput.from_ints(tokens),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_torch(torch.tensor(targets)),
            "weights": types.TensorData.from_torch(torch.tensor(weights or [1.0] * len(targets))),
        },
    )


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        (datum([1, VOCABULARY], [2, 3]), "datum 1 .*input token 61 is not in the model's vocabulary of 61"),
        (datum([1, 2], [2, VOCABULARY + 4]), "datum 1 .*target token 65 is not in"),
        (datum([1, 2], [-1, 2]), "datum 1 .*target token -1 is not in"),
        (
            datum([1] * 129, [1] * 129),
            "datum 1 .*129 tokens.*only 128 positions; set --max-length to at most 128",
        ),
        (datum([1, 2, 3], [1, 2]), "datum 1 .*do not fit together"),
    ],
    ids=["input", "target", "negative", "positions", "lengths"],
)
def test_a_datum_that_does_not_fit_the_model_is_named(strange: Datum, message: str, tmp_path: Path) -> None:
    client = client_of("gpt2-absolute", tmp_path)
    data = [datum([1, 2], [2, 3]), strange]
    with pytest.raises(UserError, match=message):
        client.forward(data, "cross_entropy")
    with pytest.raises(UserError, match=message):
        client.forward_backward_custom(data, lambda *_: pytest.fail("the loss was called"))
    assert all(parameter.grad is None for parameter in client.model.parameters())


def test_a_learned_position_table_can_be_used_in_full(tmp_path: Path) -> None:
    client = client_of("gpt2-absolute", tmp_path)
    # A masked target may be anything, as padding often is.
    whole = datum([1] * 128, [-100] + [1] * 127, [0.0] + [1.0] * 127)
    (output,) = client.forward([whole], "cross_entropy").result().loss_fn_outputs
    assert output["logprobs"].to_torch()[1:].lt(0).all()


def test_computed_positions_are_not_limited(tmp_path: Path) -> None:
    client = client_of("qwen3", tmp_path)
    client.forward([datum([1] * 129, [1] * 129)], "cross_entropy").result()


def test_a_models_error_becomes_one_line_and_a_losss_error_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of("qwen3", tmp_path)
    data = [datum([1, 2], [2, 3])]
    for error in (RuntimeError("mine"), LossError("mine")):

        def fail(*_: Any, error: Exception = error) -> Any:
            raise error

        with pytest.raises(type(error), match=r"^mine$"):
            client.forward_backward_custom(data, fail)

    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes\ncannot be multiplied (2x3 and 4x5)")

    monkeypatch.setattr(Scorer, "score", broken)
    line = r"the model's computation failed \(RuntimeError: mat1 and mat2 shapes cannot be multiplied .*\)"
    with pytest.raises(BackendError, match=line):
        client.forward(data, "cross_entropy")
    with pytest.raises(BackendError, match=line):
        client.forward_backward_custom(data, fail)


@pytest.mark.filterwarnings("default")
def test_a_model_that_trains_slowly_is_told_in_a_line_without_source_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_starter_model(tmp_path / "model")
    config = BloomConfig(vocab_size=1024, hidden_size=32, n_layer=1, n_head=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(
        "sys.argv",
        [
            "mint-train",
            "--loss",
            "dpo",
            "--model",
            str(tmp_path / "model"),
            "--output",
            str(tmp_path / "run"),
        ],
    )

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 0
    told = [line for line in capfd.readouterr().err.splitlines() if "packed" in line]
    assert len(told) == 1
    assert told[0].startswith("mint-train: BloomForCausalLM does not support packed sequences")


def test_other_peoples_warnings_keep_their_file_and_line() -> None:
    shown: list[tuple[Any, ...]] = []
    odd = UserWarning("odd")

    show_warning(lambda *given: shown.append(given), odd, UserWarning, __file__, 7)

    assert shown == [(odd, UserWarning, __file__, 7)]
