"""What is done with a trained policy: evaluating it, sampling from it, publishing it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from few_rows import HELD_OUT, PAIRS, lines, write_lines

import mint_train
from mint_train.backends.peft_folder import PeftConfig

RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with a reference, on the model made on the spot, with two saved states."""
    folder = tmp_path_factory.mktemp("trained")
    mint_train.train(
        "dpo",
        options={"reference": "initial", "beta": 0.1},
        data=write_lines(folder / "pairs.jsonl", PAIRS),
        eval_data=write_lines(folder / "held_out.jsonl", HELD_OUT),
        batch_size=2,
        lr=1e-2,
        steps=4,
        eval_every=2,
        save_every=2,
        output=folder / "run",
    )
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to write to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


# eval


def test_a_run_is_evaluated_as_it_was_at_its_end(run_cli: RunCli, run: Path) -> None:
    status, out, err = run_cli("eval", run)
    assert status == 0, err
    last = lines(run / "evaluations.jsonl")[-1]
    low, high = last["intervals"]["pair_accuracy"]
    assert f"Eval of {run} after step 4 on " in out
    assert f"loss={last['metrics']['loss']:.4g} [" in out
    assert f"pair_accuracy={last['metrics']['pair_accuracy']:.2f} [{low:.2f}, {high:.2f}]" in out
    assert f"Rows: {run}/evaluations/held_out-step-000004.jsonl" in out
    kept = (run / "evaluations/step-000004.jsonl").read_bytes()
    assert (run / "evaluations/held_out-step-000004.jsonl").read_bytes() == kept


@pytest.mark.parametrize("name", ["run --step 2", "run/checkpoints/step-000002"])
def test_an_earlier_checkpoint_is_evaluated(run_cli: RunCli, run: Path, name: str) -> None:
    path, *more = name.split()
    status, out, err = run_cli("eval", path, *more, "--rows", "rows.jsonl")
    assert status == 0, err
    assert "after step 2 on" in out
    assert Path("rows.jsonl").read_bytes() == (run / "evaluations/step-000002.jsonl").read_bytes()
    assert Path("rows.jsonl").read_bytes() != (run / "evaluations/step-000004.jsonl").read_bytes()


def test_other_rows_and_another_loss(run_cli: RunCli, run: Path, short_pairs: Path) -> None:
    status, out, err = run_cli("eval", run, "--data", short_pairs, "--loss", "ipo", "--rows", "rows.jsonl")
    assert status == 0, err
    assert f"on {short_pairs}, 5 groups:" in out
    rows = lines("rows.jsonl")
    assert [row["source"] for row in rows] == [f"{short_pairs}:{line}" for line in range(1, 6)]
    # IPO's loss is (h - 1 / (2 beta))^2, its default beta 0.1, and h the margin of the log-ratios
    for row in rows:
        own = row["metrics"]
        assert own["loss"] == pytest.approx((own["rewards/margin"] / 0.1 - 5) ** 2, rel=1e-3)


def test_an_evaluation_does_not_touch_the_run(run_cli: RunCli, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status, _, err = run_cli("eval", run, "--rows", "rows.jsonl")
    assert status == 0, err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_rows_replace_only_those_of_an_earlier_evaluation(
    run_cli: RunCli, run: Path, short_pairs: Path
) -> None:
    """`--rows pairs.jsonl` reads as if it named the rows to evaluate on."""
    before = short_pairs.read_bytes()
    status, out, err = run_cli("eval", run, "--rows", short_pairs)
    assert (status, out) == (2, "")
    assert err == (
        f"mint-train: --rows {short_pairs} exists, and no evaluation wrote it; name another file. "
        "--data gives held-out rows\n"
    )
    assert short_pairs.read_bytes() == before
    for _ in range(2):
        assert run_cli("eval", run, "--rows", "rows.jsonl").status == 0


def test_figures_are_shown_though_their_rows_cannot_be_written(run_cli: RunCli, run: Path) -> None:
    Path("file").touch()
    status, out, err = run_cli("eval", run, "--rows", "file/rows.jsonl")
    assert status == 1
    assert "pair_accuracy=" in out
    assert err == "mint-train: file/rows.jsonl cannot be written: File exists\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("missing",),
            "missing is neither a run folder nor a checkpoint in one, nor a path on the service",
        ),
        (("run", "--step", "3"), "run has no checkpoint after step 3; it has those after the steps 2, 4"),
        (("run@3",), "run has no checkpoint after step 3; it has those after the steps 2, 4"),
        (("run/checkpoints/step-000009",), "run has no checkpoint at run/checkpoints/step-000009"),
        (("tinker://a/weights/b",), "no loss is chosen: give --loss NAME"),
        (("tinker://a/weights/b", "--loss", "dpo", "--step", "2"), "--step 2 is for a run folder"),
        (("tinker://a/weights/b", "--loss", "dpo", "--data", "pairs.jsonl"), "no key for MinT"),
        (("run", "--data", "missing.jsonl"), "missing.jsonl"),
        (("run", "--batch-size", "0"), "--batch-size=0: input should be greater than or equal to 1"),
        (("run", "--set", "gamma=2"), "gamma"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    run_cli: RunCli, run: Path, short_pairs: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, _, err = run_cli("eval", *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_rows_that_the_run_was_trained_on_are_named(run_cli: RunCli, run: Path, tmp_path: Path) -> None:
    """The file itself by its fingerprint; else row by row, by the tokens."""
    copied = write_lines(tmp_path / "copied.jsonl", [*reversed(PAIRS), *HELD_OUT])
    trained_on = json.loads((run / "run.json").read_text())["data"]["sources"][0]["path"]
    same = run_cli("eval", run, "--data", trained_on)
    assert f"{len(PAIRS)} of {len(PAIRS)} held-out groups are in the training data too" in same.err
    some = run_cli("eval", run, "--data", f"mixed={copied}")
    assert some.err == (
        f"mint-train: {len(PAIRS)} of {len(PAIRS) + len(HELD_OUT)} held-out groups of mixed are in the "
        "training data too: their figures do not show how the policy does on new rows.\n"
    )
    assert run_cli("eval", run).err == ""


def test_held_out_rows_that_are_trained_on_are_counted_before_the_first_step(
    train: Callable[..., Any], write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    trained_on = {"prompt": "Say one.", "chosen": "one", "rejected": "no"}
    fresh = {"prompt": "Say six.", "chosen": "six", "rejected": "no"}
    train(steps=1, eval_data={"mixed": write_rows([trained_on, fresh, trained_on], "mixed.jsonl")})
    assert "2 of 3 held-out groups of mixed are in the training data too: " in capsys.readouterr().out


def test_a_run_without_held_out_rows_needs_some(run_cli: RunCli) -> None:
    assert run_cli("--loss", "dpo", "--steps", "1", "--output", "bare")[0] == 0
    status, _, err = run_cli("eval", "bare")
    assert (status, err) == (
        2,
        "mint-train: bare was trained without held-out rows; give --data\n",
    )


# sample


def test_completions_before_and_after_side_by_side(run_cli: RunCli, run: Path) -> None:
    status, out, err = run_cli("sample", run, "--prompt", "Go on.", "-n", "2", "--max-tokens", "8")
    assert status == 0, err
    shown = out.splitlines()
    assert shown[0] == "Prompt: Go on."
    assert [line.partition(":")[0] for line in shown[1:]] == ["Before", "After", "Before", "After"]
    before, after = shown[1::2], shown[2::2]
    assert before[0] != before[1]
    assert [text.removeprefix("Before: ") for text in before] != [
        text.removeprefix("After:  ") for text in after
    ]
    again = run_cli("sample", run, "--prompt", "Go on.", "-n", "2", "--max-tokens", "8")
    assert again[1] == out
    other = run_cli("sample", run, "--prompt", "Go on.", "-n", "2", "--max-tokens", "8", "--seed", "1")
    assert other[1] != out


def test_before_training_is_the_adapter_that_the_run_began_with(run_cli: RunCli, run: Path) -> None:
    """A run whose one step moves nothing shows what the run before it had reached, twice."""
    given = {"data": PAIRS, "steps": 1, "lr": 1e-12, "batch_size": 2, "progress": "quiet"}
    mint_train.train("dpo", from_checkpoint=run, output=run.with_name("next"), **given)
    shown = {}
    for name in ("run", "next"):
        status, out, err = run_cli("sample", run.with_name(name), "--prompt", "Go on.", "--max-tokens", "8")
        assert status == 0, err
        shown[name] = [line.partition(": ")[2].strip() for line in out.splitlines()[1:]]
    base, reached = shown["run"]
    assert base != reached
    assert shown["next"] == [reached, reached]


@pytest.mark.parametrize("change", ["another", "gone"])
def test_a_start_that_is_not_that_any_more_is_not_shown_as_before(
    run_cli: RunCli, run: Path, change: str
) -> None:
    given = {"data": PAIRS, "steps": 1, "lr": 1e-12, "batch_size": 2, "progress": "quiet"}
    mint_train.train(
        "dpo", from_checkpoint=run, output=run.with_name("next"), model=run / "base_model", **given
    )
    state, problem = run / "checkpoints/step-000004", "cannot be read: No such file or directory"
    shutil.rmtree(state)
    if change == "another":
        shutil.copytree(run / "checkpoints/step-000002", state)
        problem = "has changed since this run began with it; restore it"
    status, out, err = run_cli("sample", run.with_name("next"), "--prompt", "Go on.", "--max-tokens", "8")
    assert status == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == ["Prompt", "After"]
    assert "Nothing is shown from before training, which began with " in err
    assert problem in err


def test_greedy_completions_are_the_models_own(run_cli: RunCli, trained: Path, run: Path) -> None:
    """Both policies taken step by step with transformers alone, the adapter loaded by PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mint_train.rendering.renderer import Renderer

    tokenizer = AutoTokenizer.from_pretrained(run / "base_model")
    base = AutoModelForCausalLM.from_pretrained(run / "base_model")

    def greedy(model: Any) -> str:
        tokens = Renderer(tokenizer).prompt_tokens("Say two.")
        start = len(tokens)
        with torch.no_grad():
            while len(tokens) < start + 6:
                following = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
                if following == tokenizer.eos_token_id:
                    break
                tokens.append(following)
        return tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()

    before = greedy(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        after = greedy(PeftModel.from_pretrained(base, run / "adapter"))
    asked = ("--prompt", "Say two.", "--max-tokens", "6", "--temperature", "0", "-n", "1")
    status, out, err = run_cli("sample", run, *asked)
    assert status == 0, err
    from mint_train.trained.sample import printable

    assert out == f"Prompt: Say two.\nBefore: {printable(before)}\nAfter:  {printable(after)}\n"


def test_the_prompts_of_the_held_out_rows_are_the_default(run_cli: RunCli, run: Path) -> None:
    status, out, err = run_cli("sample", run, "--rows", "2", "--max-tokens", "2", "--step", "2")
    assert status == 0, err
    assert out.count("Prompt: ") == 2
    assert "Say six." in out
    assert "Say seven." in out
    assert "Say eight." not in out


def test_a_terminal_gets_a_table_and_no_control_characters(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mint_train.cli.sample import print_side_by_side
    from mint_train.trained.sample import Completed, printable

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    print_side_by_side([Completed("a prompt", ["[bold]old[/bold]"], [printable("new\x1b[2J\x07")])])
    shown = capsys.readouterr().out
    assert "before" in shown
    assert "[bold]old[/bold]" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown


def test_rows_of_prompts_alone_are_completed(
    run_cli: RunCli, run: Path, write_rows: Callable[..., Path]
) -> None:
    prompts = write_rows(
        [{"prompt": "Name a river."}, {"messages": [{"role": "user", "content": "Name a metal."}]}]
    )
    status, out, err = run_cli("sample", run, "--data", prompts, "--max-tokens", 4)
    assert (status, err) == (0, "")
    for prompt in ("Name a river.", "Name a metal."):
        alone = run_cli("sample", run, "--prompt", prompt, "--max-tokens", 4, "--temperature", 0).out
        assert prompt in alone
        assert prompt in out
    for rows, bad in (([{"size": 3}], 1), ([{"prompt": "Name a river."}, {"size": 3}], 2)):
        wrong = run_cli("sample", run, "--data", write_rows(rows, "sizes.jsonl"))
        assert wrong.status == 2
        assert wrong.err.count("\n") == 1
        assert f"sizes.jsonl:{bad}: " in wrong.err


def test_rows_whose_prompts_are_not_completed_are_named(
    run_cli: RunCli, run: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    trained = run_cli("--loss", "dpo", "--steps", 1, "--on-bad-row", "skip", "--output", "skipping")
    assert trained.status == 0, trained.err
    pair = {"prompt": "Name a river.", "chosen": "The Po.", "rejected": "Ice."}
    for rows in ([pair, {"size": 3}], [{"prompt": "Name a river."}, {"size": 3}]):
        data = write_rows(rows, "sizes.jsonl")
        ended = run_cli("sample", "skipping", "--data", data, "--max-tokens", 4)
        assert ended.status == 0
        assert "Prompt: " in ended.out
        assert f"Skipped: {data}:2: " in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--prompt", "a", "--data", "pairs.jsonl"), "--prompt and --data are both given; give one"),
        (("missing", "--prompt", "a"), "missing is neither a run folder nor a checkpoint in one"),
        (("tinker://a/sampler_weights/b", "--prompt", "a", "--loss", "dpo"), "no key for MinT"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(
    run_cli: RunCli, run: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, _, err = run_cli("sample", *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


# export


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(1, 60)[None]).logits


def test_the_exported_adapter_loads_with_peft_from_anywhere_with_its_base_model(
    run_cli: RunCli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(run.parent)
    status, out, err = run_cli("export", "run")
    assert status == 0, err
    assert out == "The adapter after step 4: run-adapter\n"
    exported = Path("run-adapter").resolve()
    monkeypatch.chdir("/")
    base = AutoModelForCausalLM.from_pretrained(run / "base_model")
    plain = logits(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        own = logits(PeftModel.from_pretrained(base, run / "adapter"))
        travelled = AutoModelForCausalLM.from_pretrained(exported / "base_model")
        loaded = logits(PeftModel.from_pretrained(travelled, exported))
    assert torch.equal(own, loaded)
    assert not torch.allclose(plain, loaded, atol=1e-3)


def test_nothing_that_leaves_the_machine_names_a_path_of_it_or_is_kept_from_others(
    run_cli: RunCli, run: Path
) -> None:
    assert run_cli("export", run, "--output", "exported")[0] == 0
    for folder in (run / "adapter", run / "base_model", Path("exported")):
        for path in folder.rglob("*"):
            assert str(run.parent).encode() not in (path.read_bytes() if path.is_file() else b"")
            assert path.stat().st_mode & 0o666 == run.stat().st_mode & 0o666
    for folder in (run / "adapter", Path("exported")):
        config = PeftConfig.read(folder)
        assert config.base_model == "base_model"
        assert Path(config.find_base(folder), "config.json").exists()


def test_an_earlier_checkpoint_is_exported(run_cli: RunCli, run: Path) -> None:
    from safetensors.torch import load_file

    status, out, err = run_cli("export", run, "--step", "2")
    assert (status, out) == (0, f"The adapter after step 2: {run}-step-000002-adapter\n"), err
    earlier = load_file(f"{run}-step-000002-adapter/adapter_model.safetensors")
    state = load_file(run / "checkpoints/step-000002/state.safetensors")
    for name, tensor in earlier.items():
        assert tensor.equal(state[f"weight/{name.removesuffix('.weight')}.default.weight"])
    assert "| steps | 2 of 4 |" in Path(f"{run}-step-000002-adapter/README.md").read_text()
    status, _, err = run_cli("export", run, "--step", "3")
    assert (status, "has no checkpoint after step 3; it has those after the steps 2, 4" in err) == (2, True)


def test_the_merged_model_loads_with_transformers_and_gives_the_adapter_s_logits(
    run_cli: RunCli, run: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    status, out, err = run_cli("export", run, "--to", "merged", "--output", "merged")
    assert status == 0, err
    told, checked, serve = out.splitlines()
    assert told == "The merged model after step 4: merged"
    assert serve == "vLLM: vllm serve merged"
    found = re.fullmatch(
        r"Checked: its logprobs of \d+ texts are the policy's within (\S+) nats; .*", checked
    )
    assert found, checked
    assert float(found[1]) < 1e-3
    assert not [path for path in Path("merged").iterdir() if path.name.startswith("adapter")]
    merged = AutoModelForCausalLM.from_pretrained("merged")
    base = AutoModelForCausalLM.from_pretrained(run / "base_model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted = PeftModel.from_pretrained(base, run / "adapter")
    assert float((logits(merged) - logits(adapted)).abs().max()) < 1e-4
    tokenizer = AutoTokenizer.from_pretrained("merged")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).count("<|im_")
    assert not list(Path().glob("merged.*"))


def test_a_gguf_file_is_the_policy_and_names_no_path(run_cli: RunCli, run: Path) -> None:
    from gguf import GGUFReader

    status, out, err = run_cli("export", run, "--to", "gguf", "--output", "My Model")
    assert (status, err) == (0, ""), err
    told, checked, *serve = out.splitlines()
    assert told == "The GGUF file after step 4: My Model"
    found = re.fullmatch(
        r"Checked: its logprobs of \d+ texts are the policy's within (\S+) nats; .*", checked
    )
    assert found, checked
    assert float(found[1]) < 1e-2
    assert serve == [
        "llama.cpp: llama-server --model 'My Model/model-f16.gguf'",
        "Ollama: ollama create my-model --file 'My Model/Modelfile'",
    ]
    fields = GGUFReader("My Model/model-f16.gguf").fields
    assert fields["general.name"].contents() == "dpo on base_model"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert Path("My Model/Modelfile").read_text() == "FROM ./model-f16.gguf\n"
    assert str(run.parent).encode() not in Path("My Model/model-f16.gguf").read_bytes()


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_the_chat_template_of_the_run_goes_along(
    run_cli: RunCli, short_pairs: Path, form: str, tmp_path: Path
) -> None:
    template = "{% for message in messages %}[{{ message.role }}]{{ message.content }}<|im_end|>{% endfor %}"
    path = tmp_path / "own.jinja"
    path.write_text(template)
    given = ("--data", short_pairs, "--render", "template", "--chat-template", path)
    status, _, err = run_cli("--loss", "dpo", *given, "--steps", 1, "--output", "own")
    assert status == 0, err
    status, _, err = run_cli("export", "own", "--to", form, "--no-check", "--output", "written")
    assert status == 0, err
    if form == "merged":
        assert Path("written/chat_template.jinja").read_text() == template
    else:
        assert template.encode() in Path("written/model-f16.gguf").read_bytes()
    path.write_text(template + " ")
    status, _, err = run_cli("export", "own", "--to", form, "--output", "other")
    assert (status, "own.jinja has changed since this run began" in err, err.count("\n")) == (2, True, 1), err
    assert not Path("other").exists()


@pytest.mark.attacks
@pytest.mark.parametrize("form", ["peft", "merged", "gguf"])
def test_what_does_not_fit_on_the_disk_is_not_begun(
    run_cli: RunCli, run: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    status, out, err = run_cli("export", run, "--to", form, "--output", "written")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(r"has 0.1 MB free, and the (adapter|merged model|GGUF file) needs \d+\.\d MB", err), err
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_without_the_package_gguf_is_one_line(
    run_cli: RunCli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gguf_file", "gguf_vocabulary"):
        monkeypatch.delitem(sys.modules, f"mint_train.backends.local.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "gguf", None)
    status, _, err = run_cli("export", run, "--to", "gguf")
    assert (status, err) == (
        2,
        "mint-train: --to gguf needs the package gguf: pip install gguf\n",
    )


def test_a_bfloat16_base_stays_bfloat16(run_cli: RunCli, run: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(run / "base_model", "half")
    AutoModelForCausalLM.from_pretrained("half").to(torch.bfloat16).save_pretrained("half")
    assert run_cli("--loss", "dpo", "--steps", 1, "--model", "half", "--output", "of-half").status == 0
    status, _, err = run_cli("export", "of-half", "--to", "merged", "--output", "merged")
    assert status == 0, err
    assert AutoModelForCausalLM.from_pretrained("merged").dtype == torch.bfloat16


@pytest.mark.parametrize("place", ["run", "exported", "merged", "gguf"])
def test_the_model_card_says_what_the_weights_are(run_cli: RunCli, run: Path, place: str) -> None:
    from huggingface_hub import ModelCard

    folder = run / "adapter"
    if place != "run":
        folder = Path(place)
        form = "peft" if place == "exported" else place
        assert run_cli("export", run, "--output", folder, "--to", form)[0] == 0
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == {"merged": "transformers", "gguf": "gguf"}.get(place, "peft")
    assert card.data.pipeline_tag == "text-generation"
    assert {"mint-train", "dpo"} <= set(card.data.tags)
    assert ("lora" in card.data.tags) is (place in ("run", "exported"))
    assert card.data.base_model is None  # a folder on this machine is nothing to the hub
    described = json.loads((run / "run.json").read_text())
    step, evaluation = lines(run / "metrics.jsonl")[-1], lines(run / "evaluations.jsonl")[-1]
    low, high = evaluation["intervals"]["pair_accuracy"]
    for said in (
        "arXiv 2305.18290",
        "| its options | beta=0.1, reference=initial |",
        f"| data | `pairs.jsonl`, SHA-256 `{described['data']['sha256']}` |",
        "| trained groups | 5, and 0 left out |",
        "| steps | 4 of 4 |",
        "| lr | 0.01 |",
        f"| loss | {step['metrics']['loss']:.6g} |",
        f"| {evaluation['metrics']['pair_accuracy']:.4g} [{low:.4g}, {high:.4g}] |",
        "3 held-out groups of `held_out.jsonl`",
        f"mint-train {described['versions']['mint-train']}",
        f"peft {described['versions']['peft']}",
    ):
        assert said in card.text, said
    assert str(run.parent) not in card.content


def test_the_card_s_own_lines_load_the_model(run_cli: RunCli, run: Path) -> None:
    """What the card shows is run as it stands, with its two placeholders filled in."""
    import re

    for form in ("peft", "merged"):
        folder = Path(form)
        assert run_cli("export", run, "--output", folder, "--to", form)[0] == 0
        code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert code
        filled = code[1].replace("THIS_FOLDER", str(folder))
        names: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            exec(filled, names)
        assert logits(names["model"]).shape[1] == 59
        assert names["tokenizer"].encode("Hi")


def test_a_hub_model_is_named_in_the_card_s_metadata(run: Path) -> None:
    from mint_train.observers.model_card import model_card
    from mint_train.run_folder.folder import RunFolder

    folder = RunFolder(run)
    folder.update_description(settings=folder.read_description().settings | {"model": "Qwen/Qwen3-0.6B"})
    text = model_card(folder, 4)
    assert "base_model: Qwen/Qwen3-0.6B" in text
    assert 'from_pretrained("Qwen/Qwen3-0.6B")' in text


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mint_train.backends.local.adapter import LoraShape
    from mint_train.backends.local.load import open_local_client
    from mint_train.errors import MintTrainError

    client = open_local_client(str(run / "base_model"), LoraShape(16), 0, run)
    before = {path.name: path.read_bytes() for path in (run / "adapter").iterdir()}

    def full(folder: str, **_: Any) -> None:
        Path(folder, "adapter_config.json").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(client.model, "save_pretrained", full)
    with pytest.raises(MintTrainError, match="adapter cannot be written: No space left on device"):
        client.save_weights_for_sampler("final")
    assert {path.name: path.read_bytes() for path in (run / "adapter").iterdir()} == before
    assert not list(run.glob("adapter.*"))


def test_what_cannot_be_exported_is_one_line(run_cli: RunCli, run: Path) -> None:
    Path("full").mkdir()
    Path("full/something").touch()
    shutil.copytree(run, "bare")
    first = Path("bare/checkpoints.jsonl").read_text().splitlines()[0]
    Path("bare/checkpoints.jsonl").write_text(first + "\n")
    shutil.copytree(run, "gone")
    shutil.rmtree("gone/adapter")
    shutil.copytree(run, "torn")
    Path("torn/adapter/adapter_model.safetensors").write_bytes(b"torn")
    for arguments, expected, message in (
        (
            (run, "--to", "ggml"),
            2,
            '--to ggml: it is none of peft, merged, gguf, hub:ORG/NAME; did you mean "gguf"?',
        ),
        (("missing",), 2, "missing is neither a run folder nor a checkpoint in one"),
        ((run / "adapter",), 2, "adapter is not a run folder; name the folder that holds its run.json"),
        ((run, "--output", "full"), 2, "--output full exists and is not empty; name another folder"),
        (("bare",), 2, "bare has no adapter yet: `mint-train resume bare` continues it to its end"),
        (("gone",), 2, "adapter is gone: `mint-train resume gone` writes it again"),
        (("torn", "--to", "merged"), 1, "the adapter torn/adapter cannot be merged into torn/base_model"),
    ):
        status, _, err = run_cli("export", *arguments)
        assert (status, message in err, err.count("\n")) == (expected, True, 1), err
    assert not Path("torn-merged").exists()


def test_weights_that_are_not_the_policy_are_not_exported(
    run_cli: RunCli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mint_train.backends.local import merging

    merge = merging.merge_adapter

    def merge_half(model: str, adapter: Path) -> Any:
        half = Path(shutil.copytree(adapter, "half", dirs_exist_ok=True))
        config = json.loads((half / "adapter_config.json").read_text())
        (half / "adapter_config.json").write_text(
            json.dumps(config | {"lora_alpha": config["lora_alpha"] / 2})
        )
        return merge(model, half)

    monkeypatch.setattr(merging, "merge_adapter", merge_half)
    for form in ("merged", "gguf"):
        status, _, err = run_cli("export", run, "--to", form, "--output", "written")
        assert (status, err.count("\n")) == (1, 1)
        assert "the exported weights are not the policy" in err
        assert not Path("written").exists()


def test_what_cannot_be_checked_is_said(run_cli: RunCli, run: Path) -> None:
    from mint_train.run_folder.folder import RunFolder

    recorded = RunFolder(run).read_description().settings
    RunFolder(run).update_description(settings=recorded | {"data": "gone.jsonl", "eval_data": {}})
    status, out, err = run_cli("export", run, "--to", "merged", "--output", "merged")
    assert status == 0, err
    assert "Not checked against the policy: gone.jsonl" in out


def test_the_key_does_not_go_where_only_the_run_folder_says(
    run_cli: RunCli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mint_train.run_folder.folder import RunFolder

    folder = RunFolder(run)
    recorded = folder.read_description().settings
    folder.update_description(backend="mint", settings=recorded | {"base_url": "http://127.0.0.1:9"})
    saved = lines(run / "checkpoints.jsonl")
    path = "tinker://model_1/sampler_weights/dpo-final"
    Path(run / "checkpoints.jsonl").write_text(json.dumps(saved[-1] | {"sampler": path}) + "\n")
    monkeypatch.setenv("MINT_API_KEY", "tml-x")
    status, _, err = run_cli("export", run)
    assert (status, err.count("\n")) == (2, 1)
    assert "MINT_BASE_URL" in err
