"""Runs that begin with an adapter: of another run, or in PEFT's format."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chained_runs import PEFT_WARNS, check_chained_runs, plain_scores
from few_rows import PAIRS, lines, write_lines
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mint_train
from mint_train.backends.peft_folder import PeftConfig
from mint_train.errors import MintTrainError, UserError
from mint_train.run_folder.folder import RunFolder

pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)
RunCli = Callable[..., tuple[int, str, str]]
ALL_ROWS: dict[str, Any] = {"batch_size": len(PAIRS), "lr": 1e-2, "progress": "quiet"}
"""Each step takes all rows, so that it does not matter which step it is."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("rows") / "pairs.jsonl", PAIRS)


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    """A run of two steps with a state after each."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    mint_train.train("sft", data=pairs, steps=2, save_every=1, rank=4, output=folder, **ALL_ROWS)
    return folder


@pytest.fixture(scope="module")
def foreign(
    tmp_path_factory: pytest.TempPathFactory, starter_model_folder: Path
) -> tuple[Path, torch.nn.Module]:
    """An adapter that PEFT made: other layers, another rank and alpha, rank-stabilised, and not fresh."""
    config = LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "down_proj"], lora_dropout=0.1
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(starter_model_folder), config)
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=dice)
    folder = tmp_path_factory.mktemp("foreign")
    model.save_pretrained(folder)
    return folder, model.eval()


def test_a_run_that_renders_in_another_way_than_the_one_it_begins_with_says_so(
    run_cli: RunCli, sft: Path, pairs: Path
) -> None:
    given = ("--loss", "dpo", "--data", pairs, "--from", sft, "--steps", "1", "--progress", "plain")
    said = "Its run rendered rows with --render recipe, and this one does with --render template."
    _, out, err = run_cli(*given, "--output", "other", "--render", "template")
    assert said in out, err
    assert "Its run rendered rows" not in run_cli("resume", "other", "--steps", "2").out
    assert "Its run rendered rows" not in run_cli(*given, "--output", "same").out


def first_step(folder: Path) -> dict[str, float]:
    metrics: dict[str, float] = lines(folder / "metrics.jsonl")[0]["metrics"]
    return metrics


def evaluated(run_cli: RunCli, run: Path, pairs: Path, step: int, name: str = "mean_margin") -> float:
    """Evaluate a checkpoint by DPO, and average a metric over the rows."""
    rows = run.parent / "rows.jsonl"
    status, _, err = run_cli("eval", run, "--loss", "dpo", "--data", pairs, "--step", step, "--rows", rows)
    assert status == 0, err
    values = [row["metrics"][name] for row in lines(rows)]
    return float(sum(values) / len(values))


def margin(model: torch.nn.Module, tokenizer: Any, pairs: Path) -> float:
    """Compute the mean margin of the pairs by a plain forward of each sequence."""
    chosen, rejected = plain_scores(model, tokenizer, pairs)
    return chosen - rejected


@pytest.mark.parametrize(("name", "step"), [("", 2), ("@2", 2), ("@1", 1)])
def test_a_run_begins_with_the_policy_of_a_checkpoint(
    run_cli: RunCli, sft: Path, pairs: Path, tmp_path: Path, name: str, step: int
) -> None:
    output = tmp_path / "dpo"
    arguments = ("--data", pairs, "--batch-size", 5, "--steps", 1, "--set", "reference=initial")
    status, out, err = run_cli("--loss", "dpo", "--from", f"{sft}{name}", *arguments, "--output", output)
    assert status == 0, err
    assert f"Begins with the adapter {sft}/checkpoints/step-{step:06d}." in out
    metrics = first_step(output)
    assert metrics["mean_margin"] == pytest.approx(evaluated(run_cli, sft, pairs, step), abs=1e-4)
    assert metrics["rewards/margin"] == 0  # the reference is the adapter that the run begins with
    recorded = RunFolder(output).read_description()
    assert recorded.settings["rank"] == 4
    assert recorded.settings["model"] == str((sft / "base_model").resolve())
    assert recorded.start is not None
    assert recorded.start.name == f"{sft}{name}"


def test_one_run_follows_another(run_cli: RunCli, sft: Path, pairs: Path, tmp_path: Path) -> None:
    dpo, ipo = tmp_path / "dpo", tmp_path / "ipo"
    options = {"reference": "initial"}
    mint_train.train("dpo", options=options, data=pairs, from_checkpoint=sft, steps=2, output=dpo, **ALL_ROWS)
    mint_train.train("ipo", options=options, data=pairs, from_checkpoint=dpo, steps=1, output=ipo, **ALL_ROWS)
    after = evaluated(run_cli, dpo, pairs, 2)
    assert first_step(ipo)["mean_margin"] == pytest.approx(after, abs=1e-4)
    assert abs(after - first_step(dpo)["mean_margin"]) > 1
    # the evaluation's reference on other rows is the adapter that the run began with, too
    others = write_lines(tmp_path / "others.jsonl", PAIRS[:2])
    rewards = evaluated(run_cli, dpo, others, 2, "rewards/margin")
    moved = [evaluated(run_cli, run, others, 2) for run in (dpo, sft)]
    assert rewards == pytest.approx(moved[0] - moved[1], rel=1e-4)


def test_runs_begin_with_what_peft_computes_from_the_one_before(
    warm_python: str, tmp_path: Path, starter_model_folder: Path
) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [warm_python, "-m", "mint_train", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    check_chained_runs(run, tmp_path, "here", starter_model_folder, "--model", starter_model_folder)


def test_moments_are_taken_only_when_asked(sft: Path, pairs: Path, tmp_path: Path) -> None:
    weights = {}
    for asked in (True, False):
        output = tmp_path / str(asked)
        mint_train.train(
            "sft",
            data=pairs,
            from_checkpoint=f"{sft}@1",
            from_optimizer=asked,
            steps=1,
            output=output,
            **ALL_ROWS,
        )
        weights[asked] = load_file(output / "adapter/adapter_model.safetensors")
    unbroken = load_file(sft / "adapter/adapter_model.safetensors")
    for name, tensor in unbroken.items():
        torch.testing.assert_close(weights[True][name], tensor, rtol=1e-3, atol=1e-5)
    assert any((weights[False][name] - tensor).abs().max() > 1e-3 for name, tensor in unbroken.items())


def test_an_adapter_of_peft_s_keeps_its_function(
    foreign: tuple[Path, torch.nn.Module],
    tokenizer: Any,
    pairs: Path,
    starter_model_folder: Path,
    tmp_path: Path,
) -> None:
    folder, model = foreign
    mint_train.train(
        "dpo",
        data=pairs,
        model=str(starter_model_folder),
        from_checkpoint=folder,
        steps=1,
        output=tmp_path / "run",
        **ALL_ROWS,
    )
    assert first_step(tmp_path / "run")["mean_margin"] == pytest.approx(
        margin(model, tokenizer, pairs), abs=1e-4
    )
    # what was trained on is written as PEFT would read it
    base = AutoModelForCausalLM.from_pretrained(starter_model_folder)
    trained = PeftModel.from_pretrained(base, tmp_path / "run/adapter").eval()
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert (config["r"], sorted(config["target_modules"])) == (3, ["down_proj", "q_proj"])
    assert margin(trained, tokenizer, pairs) > margin(model, tokenizer, pairs)


def test_a_resumed_run_has_the_reference_that_it_began_with(
    sft: Path, pairs: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    settings = {"data": pairs, "from_checkpoint": sft, **ALL_ROWS}
    options = {"reference": "initial"}
    mint_train.train("dpo", options=options, steps=3, output=tmp_path / "whole", **settings)
    mint_train.train("dpo", options=options, steps=1, output=tmp_path / "half", **settings)
    shutil.rmtree(tmp_path / "half/reference")
    status, _, err = run_cli("resume", tmp_path / "half", "--steps", 3)
    assert status == 0, err
    whole, half = (
        [line["metrics"] for line in lines(tmp_path / name / "metrics.jsonl")] for name in ("whole", "half")
    )
    assert half == whole


def test_an_adapter_that_has_changed_is_refused(
    run_cli: RunCli, sft: Path, pairs: Path, tmp_path: Path
) -> None:
    shutil.copytree(sft, tmp_path / "sft")
    state = tmp_path / "sft/checkpoints/step-000002/state.safetensors"
    mint_train.train(
        "dpo", options={"reference": "initial"}, data=pairs, from_checkpoint=tmp_path / "sft", steps=1,
        output=tmp_path / "dpo", **ALL_ROWS,
    )  # fmt: skip
    tensors = load_file(state)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, state)
    status, _, err = run_cli("resume", tmp_path / "dpo", "--steps", 2)
    assert (status, err.count("\n")) == (2, 1)
    assert f"{state.parent} has changed since this run began with it" in err
    state.unlink()
    status, _, err = run_cli("resume", tmp_path / "dpo", "--steps", 2)
    assert (status, err.count("\n")) == (2, 1)
    assert f"{state} cannot be read: No such file or directory" in err


REMOTE = {"backend": "mint", "base_url": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"from_checkpoint": "SFT", "rank": 8}, "rank 8: SFT has 4; leave rank out"),
        ({"from_checkpoint": "SFT", "model": "FOREIGN"}, "model FOREIGN: SFT has SFT/base_model"),
        ({"from_checkpoint": "SFT", "lora_targets": "mlp"}, "lora_targets mlp: SFT has all layers"),
        ({"from_checkpoint": "SFT@7"}, "has no checkpoint after step 7; it has those after the steps 1, 2"),
        ({"from_checkpoint": "tinker://a/weights/b"}, "on the service, but this run trains on this machine"),
        ({"from_checkpoint": "./nothing"}, "from_checkpoint ./nothing: neither a run folder, nor a folder"),
        ({"from_checkpoint": "org/nothing"}, "nor can it be downloaded from the hub"),
        ({"from_checkpoint": "tinker://a/b-final"} | REMOTE, "names weights for sampling; a run begins"),
        ({"from_checkpoint": "runs/nothing"} | REMOTE, "runs/nothing: there is no run of that name here"),
        ({"options": {"reference": "SFT"}}, '{"reference": SFT}: it is a run; name a state of it, such as'),
        ({"options": {"reference": "./nothing"}}, '{"reference": ./nothing}: this folder does not exist'),
        ({"from_optimizer": True}, "takes the moments of from_checkpoint, which is not given"),
        ({"from_checkpoint": "FOREIGN", "from_optimizer": True}, "an adapter without an optimiser's moments"),
        ({"from_checkpoint": "FOREIGN", "rank": 4}, "rank 4: FOREIGN has 3"),
        ({"from_checkpoint": "FOREIGN", "model": "other/model"}, "the adapter FOREIGN was trained on"),
        ({"lora_targets": "q_proj,nose"}, "lora_targets nose: this model has no such linear layer"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_begin_with_is_refused(
    sft: Path,
    foreign: tuple[Path, torch.nn.Module],
    pairs: Path,
    given: dict[str, Any],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # the runs of whoever tests are not this test's
    names = {"SFT": str(sft), "FOREIGN": str(foreign[0])}

    def filled(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, path)
        return text

    def filled_in(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled_in(inner) for name, inner in value.items()}
        return filled(value) if isinstance(value, str) else value

    values = filled_in(given)
    monkeypatch.setenv("MINT_API_KEY", "tml-x")
    with pytest.raises(MintTrainError) as error:
        mint_train.train("dpo", data=pairs, steps=1, **ALL_ROWS | {"backend": "local"} | values)
    assert filled(problem) in str(error.value)
    assert error.value.exit_status == 2
    assert not list(Path("runs").glob("*/run.json"))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"use_dora": True}, "use_dora is true, which is more than plain LoRA"),
        ({"bias": "all"}, 'bias is "all", which is more than plain LoRA'),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save is ["lm_head"]'),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa"'),
        ({"something_new": 3}, "something_new is 3"),
        ({"peft_type": "IA3"}, "an adapter of the type IA3"),
        ({"target_modules": ".*_proj"}, "target_modules is a pattern (.*_proj)"),
        ({"r": None}, "is not a LoRA adapter's"),
        ({"target_modules": ["q_proj"]}, "belongs to another model or rank"),
    ],
)
def test_more_than_plain_lora_is_refused_by_name(
    foreign: tuple[Path, torch.nn.Module],
    pairs: Path,
    tmp_path: Path,
    starter_model_folder: Path,
    changed: dict[str, Any],
    problem: str,
) -> None:
    folder = Path(shutil.copytree(foreign[0], tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changed))
    with pytest.raises(MintTrainError) as error:
        mint_train.train(
            "dpo", data=pairs, model=str(starter_model_folder), from_checkpoint=folder, steps=1, **ALL_ROWS
        )
    assert problem in str(error.value)


def test_an_adapter_that_names_no_layers_has_those_of_its_matrices(
    foreign: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    """SkyRL names none."""
    folder = Path(shutil.copytree(foreign[0], tmp_path / "adapter"))
    expected = PeftConfig.read(folder).targets
    config = json.loads((folder / "adapter_config.json").read_text())
    for named in ({"target_modules": None}, {}):
        rest = {key: value for key, value in config.items() if key != "target_modules"}
        (folder / "adapter_config.json").write_text(json.dumps(rest | named))
        assert PeftConfig.read(folder).targets == expected
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="its weights cannot be read"):
        PeftConfig.read(folder)


def test_a_pickled_adapter_is_refused(foreign: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(foreign[0], tmp_path / "adapter"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(MintTrainError, match=r"adapter_model\.bin is a pickle, which can run code"):
        mint_train.train("dpo", from_checkpoint=folder, steps=1, progress="quiet")


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp,unembed", {"gate_proj", "up_proj", "down_proj", "lm_head"}),
        ("v_proj", {"v_proj"}),
    ],
)
def test_only_the_layers_that_are_asked_for_are_trained(
    pairs: Path, tmp_path: Path, targets: str, layers: set[str]
) -> None:
    output = tmp_path / "run"
    mint_train.train(
        "dpo", data=pairs, lora_targets=targets, lora_alpha=8, rank=2, steps=1, output=output, **ALL_ROWS
    )
    weights = load_file(output / "adapter/adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == layers
    assert json.loads((output / "adapter/adapter_config.json").read_text())["lora_alpha"] == 8
