"""Base weights in 8 or 4 bits: runs are those on the dequantised weights, and say what they are on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import (
    assert_same_gradients,
    entangled_loss,
    gradients_of,
    make_model,
    make_sequences,
    plain_gradients,
    random_tokens,
)
from run_files import checkpoints, description, metrics
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import mint_train
from mint_train.backends.local.engine import Engine
from mint_train.backends.local.memory import counted_saved_bytes
from mint_train.backends.local.quantized import QuantizedLinear
from mint_train.backends.local.scoring import ScoringMode
from mint_train.run_folder.records import STATE_FILE

INSTALLED = Path(sys.prefix, "quantize")
"""Where `make` installs bitsandbytes: beside the other packages, PEFT would import it in every process."""
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The values of NF4, as appendix E of QLoRA (arXiv 2305.14314) lists them."""
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RUNS: dict[str, dict[str, Any]] = {
    "int8": {"options": {"reference": "initial"}},
    "nf4": {"options": {"reference": "initial"}},
    "int8-attention": {"lora_targets": ["attention"]},
    "nf4-in-parts": {"max_tokens_in_flight": 20},
    "nf4-checkpointing": {"gradient_checkpointing": True},
    "int8-bfloat16": {"dtype": "bfloat16"},
}
RunCli = Callable[..., tuple[int, str, str]]
Train = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def with_bitsandbytes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        if INSTALLED.is_dir():
            monkeypatch.syspath_prepend(INSTALLED)
        if find_spec("bitsandbytes") is None:
            assert os.environ.get("CI") != "true", "bitsandbytes is not installed"
            pytest.skip("bitsandbytes is not installed")
        yield


def dequantized(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """Quantise and dequantise a weight by definition, independently of any library."""
    if kind == "int8":
        rows = weight.half().float()
        largest = rows.abs().amax(1, keepdim=True)
        return (rows * (127 / largest)).round() * (largest / 127)
    blocks = weight.float().reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = (blocks / scale).unsqueeze(-1).sub(values).abs().argmin(-1)
    return (values[nearest] * scale).reshape(weight.shape)


def dequantized_model(model: Path, folder: Path, kind: str, dtype: torch.dtype) -> Path:
    """Copy a model, with the weights in float32 that quantisation leaves."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.split(".")[-2] in LAYERS:
            weights[name] = dequantized(weight.to(dtype), kind).to(dtype).float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights_of(folder: str) -> dict[str, torch.Tensor]:
    state = load_file(Path(folder, checkpoints(folder)[-1]["state"], STATE_FILE))
    return {name: tensor for name, tensor in state.items() if name.startswith("weight/")}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_on_the_dequantised_weights(
    name: str, train: Train, run_cli: RunCli, starter_model_folder: Path, tmp_path: Path
) -> None:
    kind, given = name.partition("-")[0], {"steps": 3} | RUNS[name]
    dtype = torch.bfloat16 if "dtype" in given else torch.float32
    same = dequantized_model(starter_model_folder, tmp_path / "dequantised", kind, dtype)
    train(output="quantised", quantize=kind, **given)
    train(output="plain", model=str(same), **given)

    for line, one in zip(metrics("quantised"), metrics("plain"), strict=True):
        assert line["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-5)
    ours, theirs = weights_of("quantised"), weights_of("plain")
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=2e-5)
    if name == kind:
        asked = ("--prompt", "Say one.", "--temperature", 0)
        ours, theirs = (run_cli("sample", run, *asked) for run in ("quantised", "plain"))
        assert ours == theirs
        assert ours[0] == 0


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("shape", [(7, 5), (64, 64), (96, 40)], ids=str)
def test_a_layer_keeps_nothing_for_its_backward(kind: Any, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(*shape)
    layer = QuantizedLinear(plain, kind, torch.device("cpu"), torch.float32)
    x = torch.randn(2, 3, shape[0], requires_grad=True)
    with counted_saved_bytes() as saved:
        out = layer(x)
    assert saved.without(iter(())) == 0
    out.square().sum().backward()
    weight = layer.weight
    expected = x.detach() @ weight.T + plain.bias
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x.grad, 2 * expected @ weight)
    assert (weight - plain.weight).abs().max() < 0.2 * plain.weight.abs().max()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_gradients_are_those_of_the_dequantised_weights(kind: Any) -> None:
    quantised, plain = make_model("qwen3"), make_model("qwen3")
    for path, layer in list(plain.named_modules()):
        if path.endswith(".base_layer"):
            packed = QuantizedLinear(layer, kind, torch.device("cpu"), torch.float32)
            quantised.set_submodule(path, packed)
            layer.weight.data = packed.weight
    engine = Engine(quantised, max_tokens_in_flight=1000, min_shared_tokens=2)
    sequences = make_sequences(random_tokens([9, 17, 5]))
    assert engine.mode is ScoringMode.PACKED
    found = gradients_of(quantised, lambda: engine.forward_backward(sequences, entangled_loss))
    assert_same_gradients(found, plain_gradients(plain, sequences))


def test_the_run_says_how_far_logprobs_are_off(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train(quantize="nf4", steps=2)
    out = capsys.readouterr().out
    recorded = description("run")
    off = recorded["quantization"]
    assert recorded["settings"]["quantize"] == "nf4"
    assert (
        f"Weights in nf4: the logprobs of {off['tokens']} tokens of {off['texts']} texts are "
        f"{off['mean']:.2g} nats off on average, {off['largest']:.2g} at most."
    ) in out
    assert 0 < off["mean"] < off["largest"] < 2
    card = Path("run/adapter/README.md").read_text()
    assert f"| base model in training | nf4 weights; that moved logprobs by {off['mean']:.2g} nats" in card

    train(output="plain", steps=2)
    assert description("plain")["quantization"] is None
    assert abs(metrics("run")[0]["metrics"]["loss"] / metrics("plain")[0]["metrics"]["loss"] - 1) > 1e-3
    assert "in training" not in Path("plain/adapter/README.md").read_text()


def test_the_difference_is_that_of_the_logprobs(
    starter_model_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    from mint_train.backends.local.adapter import LoraShape
    from mint_train.backends.local.load import open_local_client
    from mint_train.batches.datums import build_datum

    model, shape = str(starter_model_folder), LoraShape(4)
    plain = open_local_client(model, shape, 0, tmp_path)
    quantised = open_local_client(model, shape, 0, tmp_path, quantize="nf4")
    data = [build_datum([5, 6, 7], [8, 9], None), build_datum([5], list(range(10, 40)), None)]
    mask = torch.cat([torch.tensor(datum.loss_fn_inputs["weights"].tolist()) != 0 for datum in data])

    def logprobs(client: Any) -> torch.Tensor:
        outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
        return torch.cat([output["logprobs"].to_torch() for output in outputs])[mask]

    before = logprobs(quantised)
    apart = (before - logprobs(plain)).abs()
    found = quantised.quantization(data)
    assert (found.texts, found.tokens) == (2, len(apart))
    assert found.mean == pytest.approx(float(apart.mean()), rel=1e-3)
    assert found.largest == pytest.approx(float(apart.max()), rel=1e-3)
    assert plain.quantization(data) is None
    assert torch.equal(logprobs(quantised), before), "it must go on with the quantised weights"


def test_a_resume_goes_on_with_the_same_weights(train: Train, run_cli: RunCli, tmp_path: Path) -> None:
    train(output="whole", quantize="int8", steps=3)
    train(output="parted", quantize="int8", steps=2)
    off = description("parted")["quantization"]
    status, out, err = run_cli("resume", "parted", "--steps", 3)
    assert status == 0, err
    assert "nats off" not in out, "it is said once"
    assert description("parted")["quantization"] == off
    assert metrics("parted") == metrics("whole")

    status, _, err = run_cli("resume", "parted", "--steps", 4, "--quantize", "nf4")
    assert (status, err.count("\n")) == (2, 1)
    assert "--quantize nf4: this run was started with int8" in err


def test_a_quantised_reference_is_another_one(train: Train) -> None:
    def paid(**settings: Any) -> int:
        result = train(options={"reference": "initial"}, steps=1, overwrite=True, **settings)
        return int(result.tokens.get("reference", 0))

    assert paid() > 0
    assert paid(quantize="int8") > 0
    assert paid(quantize="nf4") > 0
    assert paid(quantize="int8") == 0
    assert paid() == 0


def test_an_adapter_is_merged_into_the_weights_of_the_files(
    train: Train, run_cli: RunCli, starter_model_folder: Path
) -> None:
    train(quantize="nf4", lr=1e-2)
    status, out, err = run_cli("export", "run", "--to", "merged", "--output", "merged")
    assert status == 0, err
    assert "Checked: its logprobs" in out
    base, merged = (load_file(Path(f, "model.safetensors")) for f in (starter_model_folder, "merged"))
    adapter = load_file("run/adapter/adapter_model.safetensors")
    config = json.loads(Path("run/adapter/adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    changed = 0
    for name, weight in base.items():
        parts = [f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight" for part in "BA"]
        if parts[0] in adapter:
            change = scale * adapter[parts[0]] @ adapter[parts[1]]
            torch.testing.assert_close(merged[name], weight + change, rtol=0, atol=1e-5)
            changed += 1
    assert changed


def test_a_run_begins_with_an_adapter_on_quantised_weights(train: Train) -> None:
    train(output="first", lr=1e-2)
    train(output="second", from_checkpoint="first", quantize="int8", steps=1, lr=1e-9)
    began = weights_of("second")
    for name, weight in weights_of("first").items():
        torch.testing.assert_close(began[name], weight, rtol=0, atol=1e-6)
    assert description("second")["settings"]["quantize"] == "int8"


def gpt2(starter: Path, folder: Path) -> Path:
    """A model whose layers are no `nn.Linear`."""
    shutil.copytree(starter, folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quantize", "int4"), "'--quantize': 'int4' is not one of 'int8', 'nf4'"),
        (("--quantize", "int8", "--rank", 0), "this asks for full training"),
        (("--quantize", "int8", "--backend", "mint"), "--quantize int8: a service decides how it keeps"),
        (("--quantize", "nf4", "--backend", "mint", "--dry-run"), "--quantize nf4: a service decides how"),
        (("--load-in-4bit",), "here it is --quantize nf4"),
        (("--quantize", "int8", "--model", "gpt2"), "GPT2LMHeadModel has no linear layers that can be"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_quantised_is_one_line(
    options: tuple[object, ...], message: str, run_cli: RunCli, starter_model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MINT_API_KEY", "tml-of-a-test")
    gpt2(starter_model_folder, tmp_path / "gpt2")
    options = tuple("./gpt2" if option == "gpt2" else option for option in options)
    backend = () if "--backend" in options else ("--backend", "local")
    status, _, err = run_cli("--loss", "dpo", *backend, *options)
    assert status == 2
    assert err.strip().count("\n") == 0
    assert message in err


@pytest.mark.parametrize("asked", [(), ("--dry-run",)])
def test_without_bitsandbytes_it_says_what_to_install(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    status, _, err = run_cli("--loss", "dpo", "--backend", "local", "--quantize", "nf4", *asked)
    assert status == 2
    assert err == "mint-train: --quantize nf4 needs the package bitsandbytes: pip install bitsandbytes\n"


def test_a_program_takes_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = mint_train.train("dpo", backend="local", quantize="int8", steps=1, progress="quiet")
    assert result.status == "done"
