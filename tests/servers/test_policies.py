"""Trained on a real server: two losses at once, then what is done with a policy whose weights stay there."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from chained_runs import PEFT_WARNS, check_chained_runs
from few_rows import PAIRS, lines, write_lines
from pydantic import SecretStr
from server import SkyrlServer
from transformers import AutoTokenizer

from mint_train.backends.mint.client import open_mint_client
from mint_train.sdk import types
from mint_train.settings.model import Settings

RunCli = Callable[..., tuple[int, str, str]]
KEY = "tml-not-to-be-seen"
DECIDES = "The service decides which layers get an adapter"


@pytest.fixture(scope="module")
def variables(skyrl_server: SkyrlServer) -> dict[str, str]:
    return {
        "MINT_API_KEY": KEY,
        "MINT_BASE_URL": skyrl_server.base_url,
        "MINT_BASE_MODEL": skyrl_server.model,
    }


@pytest.fixture(autouse=True)
def service(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def compared(
    variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory, warm_python: str
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """DPO and IPO, compared on the server: the folder, and how the command ended."""
    folder = tmp_path_factory.mktemp("compared")
    write_lines(folder / "pairs.jsonl", PAIRS)
    command = [warm_python, "-m", "mint_train", "compare", "dpo", "ipo", "--data", "pairs.jsonl"]
    command += [
        "--eval-fraction",
        "0.4",
        "--steps",
        "3",
        "--batch-size",
        "3",
        "--lr",
        "1e-2",
        "--output",
        "all",
    ]
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True)
    return folder / "all", done


def test_two_losses_train_at_once(compared: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = compared
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert DECIDES in out
    # each has taken a step before the other has ended
    for one, other in (("dpo", "ipo"), ("ipo", "dpo")):
        assert out.index(f"[{one}] Step 1:") < out.index(f"[{other}] Final checkpoint: tinker://")
    written = out.splitlines()
    start = next(place for place, line in enumerate(written) if line.startswith("loss "))
    table = written[start : start + 3]
    assert table[0].startswith("loss  steps  pair_accuracy before  pair_accuracy")
    assert {line.split()[0] for line in table[1:3]} == {"dpo", "ipo"}
    for loss in ("dpo", "ipo"):
        evaluation = lines(folder / loss / "evaluations.jsonl")[-1]
        assert (evaluation["step"], evaluation["groups"]) == (3, 2)
    assert KEY not in out + done.stderr
    written = [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in written if KEY in text]


def test_the_policy_is_evaluated_from_the_run_and_from_its_path(
    compared: tuple[Path, subprocess.CompletedProcess[str]], run_cli: RunCli
) -> None:
    run = compared[0] / "ipo"
    status, _, err = run_cli("eval", run)
    assert status == 0, err
    kept = lines(run / "evaluations/pairs-step-000003.jsonl")[0]
    own = lines(run / "evaluations/step-000003.jsonl")[0]
    assert kept.pop("source").endswith(own.pop("source"))
    assert kept["metrics"] == pytest.approx(own["metrics"], rel=1e-4)
    state = lines(run / "checkpoints.jsonl")[-1]["state"]
    assert state.startswith("tinker://")
    held_out = run.parent.parent / "pairs.jsonl"
    status, _, err = run_cli("eval", state, "--loss", "ipo", "--data", held_out, "--rows", "rows.jsonl")
    assert status == 0, err
    losses = [row["metrics"]["loss"] for row in lines("rows.jsonl")]
    assert len(losses) == 5
    assert min(abs(loss / own["metrics"]["loss"] - 1) for loss in losses) < 1e-4


def test_completions_before_and_after(
    compared: tuple[Path, subprocess.CompletedProcess[str]], run_cli: RunCli
) -> None:
    run = compared[0] / "dpo"
    asked = ("--prompt", "Go on.", "--max-tokens", "8", "--temperature", "0", "-n", "1")
    status, out, err = run_cli("sample", run, *asked)
    assert status == 0, err
    prompt, before, after = out.splitlines()
    assert prompt == "Prompt: Go on."
    assert before.startswith("Before: ")
    assert after.startswith("After:  ")
    assert before.removeprefix("Before: ") != after.removeprefix("After:  ")
    # the base policy's words are those of the same model on this machine
    assert run_cli("--loss", "dpo", "--backend", "local", "--steps", "1", "--output", "here")[0] == 0
    status, here, err = run_cli("sample", "here", *asked)
    assert status == 0, err
    assert here.splitlines()[1] == before
    # a saved state has no weights to sample from: they are saved first
    state = lines(run / "checkpoints.jsonl")[-1]["state"]
    status, from_state, err = run_cli("sample", state, *asked, "--loss", "dpo")
    assert status == 0, err
    assert from_state == out


def test_a_chat_gets_the_trained_answer_and_its_end(
    run_cli: RunCli, variables: dict[str, str], tmp_path: Path
) -> None:
    """As a chat endpoint asks: the template's own prompt, through the SDK alone."""
    chosen, rejected = (
        f"A dolphin weighs {weight}." for weight in ("about 200 kilograms", "roughly 440 pounds")
    )
    pair = {"prompt": "How heavy is a dolphin?", "chosen": chosen, "rejected": rejected}
    data = write_lines(tmp_path / "pair.jsonl", [pair])
    # SkyRL never adapts the output layer
    hard = ("--render", "template", "--lora-targets", "attention,mlp", "--steps", 14, "--lr", "5e-3")
    status, out, err = run_cli("--loss", "dpo+sft", "--data", data, *hard, "--output", "hard")
    assert status == 0, err
    assert DECIDES not in out
    model = variables["MINT_BASE_MODEL"]
    settings = Settings(loss="any", base_url=variables["MINT_BASE_URL"], api_key=SecretStr(KEY))
    client = open_mint_client(settings, print, model=model, trains=False)
    client.load_state_with_optimizer(lines("hard/checkpoints.jsonl")[-1]["state"]).result()
    path = client.save_weights_for_sampler("hard").result().path
    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [{"role": "user", "content": pair["prompt"]}]
    prompt = types.ModelInput.from_ints(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    )
    asked = types.SamplingParams(max_tokens=32, temperature=0)
    # the base model gives the rejected answer
    for weights, wanted in (({"base_model": model}, rejected), ({"model_path": path}, chosen)):
        sampler = client.service_client.create_sampling_client(**weights)
        answer = sampler.sample(prompt, 1, asked).result().sequences[0]
        assert tokenizer.decode(answer.tokens).startswith(f"{wanted}<|im_end|>")


def test_an_adapter_leaves_the_server_only_whole(
    compared: tuple[Path, subprocess.CompletedProcess[str]], run_cli: RunCli, tmp_path: Path
) -> None:
    status, _, err = run_cli("export", compared[0] / "dpo", "--output", "torn")
    assert (status, err.count("\n")) == (1, 1), err
    assert "the service gives no matrices of lm_head away" in err
    assert "--lora-targets attention,mlp" in err
    assert not Path("torn").exists()
    pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS[:3])
    status, _, err = run_cli(
        "--loss", "dpo", "--data", pairs, "--batch-size", 3, "--steps", 2, "--lr", "1e-2", "--output", "run",
        "--lora-targets", "attention,mlp",
    )  # fmt: skip
    assert status == 0, err
    for form in ("peft", "merged", "gguf"):
        status, out, err = run_cli("export", "run", "--to", form)
        assert status == 0, err
        found = re.search(r"its logprobs of 6 texts are the policy's within (\S+) nats; .* to (\S+)\.", out)
        assert found, out
        assert float(found[1]) < (1e-2 if form == "gguf" else 1e-3) < float(found[2])


def test_weights_for_sampling_cannot_be_evaluated(
    compared: tuple[Path, subprocess.CompletedProcess[str]], run_cli: RunCli
) -> None:
    path = lines(compared[0] / "dpo" / "checkpoints.jsonl")[-1]["sampler"]
    status, _, err = run_cli("eval", path, "--loss", "dpo")
    assert (status, err.count("\n")) == (2, 1)
    assert "holds weights for sampling only" in err


def test_a_run_on_the_service_begins_with_another_s_state(
    run_cli: RunCli, compared: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    # three rows, of which the server has compiled a batch already
    run, pairs = compared[0] / "dpo", write_lines(tmp_path / "pairs.jsonl", PAIRS[:3])
    status, _, err = run_cli("eval", run, "--loss", "ipo", "--data", pairs, "--rows", "rows.jsonl")
    assert status == 0, err
    margins = [row["metrics"]["mean_margin"] for row in lines("rows.jsonl")]
    state = lines(run / "checkpoints.jsonl")[-1]["state"]
    common = ("--loss", "ipo", "--data", pairs, "--set", "reference=initial", "--steps", 1)
    for name in (run, state):
        output = tmp_path / str(len(str(name)))
        status, out, err = run_cli(*common, "--from", name, "--batch-size", 3, "--output", output)
        assert status == 0, err
        assert f"Begins with the adapter {state}." in out
        metrics = lines(output / "metrics.jsonl")[0]["metrics"]
        assert metrics["mean_margin"] == pytest.approx(sum(margins) / 3, abs=1e-4)
        assert metrics["rewards/margin"] == pytest.approx(0, abs=1e-5)
    for more in ((), ("--from-optimizer",)):
        status, _, err = run_cli(*common, "--from", state, "--rank", 8, *more)
        assert (status, err.count("\n")) == (2, 1)
        assert f"{state} has rank 16, this run 8; give --rank" in err
    status, _, err = run_cli(*common, "--from", f"{state}-gone")
    assert (status, err.count("\n")) == (2, 1)
    assert f"{os.environ['MINT_BASE_URL']} does not have {state}-gone, which may have been deleted" in err
    status, _, err = run_cli(*common, "--lora-targets", "unembed", "--output", "narrow")
    assert (status, err.count("\n")) == (2, 1)
    assert "this service decides itself which layers get an adapter" in err
    status, _, err = run_cli(*common, "--from", run, "--lora-targets", "q_proj")
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.filterwarnings(PEFT_WARNS)
def test_runs_begin_with_what_peft_computes_from_the_one_before(
    warm_python: str, variables: dict[str, str], tmp_path: Path
) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [warm_python, "-m", "mint_train", *map(str, arguments)]
        given = os.environ | variables
        return subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True)

    base = Path(variables["MINT_BASE_MODEL"])
    check_chained_runs(run, tmp_path, "chained", base, "--lora-targets", "attention,mlp")
