"""Evaluation: its figures, its intervals, what it holds out, and that it changes nothing."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from few_rows import HELD_OUT, PAIRS, lines

import mint_train
from mint_train import hookimpl, sequence_logprobs
from mint_train.backends.local.engine import Engine
from mint_train.training.intervals import confidence_interval

RunCli = Callable[..., tuple[int, str, str]]
COMMON = ("--loss", "dpo", "--batch-size", "2", "--lr", "1e-2", "--steps", "4")


@pytest.fixture
def held_out(write_rows: Callable[..., Path]) -> Path:
    return write_rows(HELD_OUT, "held_out.jsonl")


@pytest.fixture
def train(
    run_cli: RunCli, starter_model_folder: Path, short_pairs: Path, held_out: Path
) -> Callable[..., str]:
    """Train on the short pairs and evaluate on three others; return what was printed."""

    def run(*arguments: object) -> str:
        given = ("--model", starter_model_folder, "--data", short_pairs, "--eval-data", held_out)
        common = COMMON[2:] if "--loss" in arguments else COMMON
        status, out, err = run_cli(*common, *given, *arguments)
        assert status == 0, err
        return out

    return run


def steps_of(folder: str) -> list[dict[str, Any]]:
    return [line | {"seconds": 0} for line in lines(Path(folder, "metrics.jsonl"))]


# the intervals


@pytest.mark.parametrize(
    ("ones", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_shares_have_wilson_s_interval(ones: int, count: int, low: float, high: float) -> None:
    """The examples of Newcombe (1998), table I, method 3."""
    values = [1.0] * ones + [0.0] * (count - ones)
    assert confidence_interval(values, share=True) == pytest.approx((low, high), abs=5e-5)


def test_other_means_have_the_normal_interval() -> None:
    # mean 2.5, standard deviation sqrt(5/3), standard error sqrt(5/12)
    half = 1.959964 * (5 / 12) ** 0.5
    assert confidence_interval([1.0, 2.0, 3.0, 4.0], share=False) == pytest.approx((2.5 - half, 2.5 + half))


# the figures


def test_an_evaluation_before_the_first_step_after_the_last_and_between(train: Callable[..., str]) -> None:
    out = train("--output", "run", "--eval-every", "2")
    found = lines("run/evaluations.jsonl")
    assert [line["step"] for line in found] == [0, 2, 4]
    assert [list(line)[:2] for line in found] == [["step", "metrics"]] * 3
    assert len({line["metrics"]["loss"] for line in found}) == 3
    assert "3 groups held out." in out
    for line in found:
        low, high = line["intervals"]["pair_accuracy"]
        shown = f"pair_accuracy={line['metrics']['pair_accuracy']:.2f} [{low:.2f}, {high:.2f}]"
        assert any(text.startswith(f"Eval after step {line['step']}: loss=") and shown in text
                   for text in out.splitlines())  # fmt: skip
    assert out.index("Step 2:") < out.index("Eval after step 2:") < out.index("Step 3:")


def test_each_row_has_its_own_figures_and_their_mean_is_the_line_s(
    train: Callable[..., str], held_out: Path
) -> None:
    train("--output", "run")
    last = lines("run/evaluations.jsonl")[-1]
    rows = lines("run/evaluations/step-000004.jsonl")
    assert [row["source"] for row in rows] == [f"{held_out}:{line}" for line in (1, 2, 3)]
    assert last["batch_means"] == []
    assert last["groups"] == 3
    for name in ("loss", "pair_accuracy", "mean_margin", "mean_chosen_score"):
        values = [row["metrics"][name] for row in rows]
        assert last["metrics"][name] == pytest.approx(sum(values) / 3)
        share = name == "pair_accuracy"
        assert last["intervals"][name] == pytest.approx(list(confidence_interval(values, share=share)))


def test_the_figures_are_those_of_the_policy(
    train: Callable[..., str], starter_model_folder: Path, held_out: Path
) -> None:
    """Computed again: with PEFT's own forward of the adapter in float64, and the loss by its formula."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mint_train.rendering.recipe import build_completion_tokens
    from mint_train.rendering.renderer import Renderer

    train("--output", "run")
    tokenizer = AutoTokenizer.from_pretrained(starter_model_folder)
    base = AutoModelForCausalLM.from_pretrained(starter_model_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads an attribute that transformers renamed
        model = PeftModel.from_pretrained(base, "run/adapter").double()

    def score(prompt: str, completion: str) -> torch.Tensor:
        before = Renderer(tokenizer).prompt_tokens(prompt)
        tokens = torch.tensor([[*before, *build_completion_tokens(completion, tokenizer)]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(tokens).logits[0, :-1], -1)
        return logprobs.gather(1, tokens[0, 1:, None])[len(before) - 1 :].sum()

    margins = [
        score(row["prompt"], row["chosen"]) - score(row["prompt"], row["rejected"]) for row in HELD_OUT
    ]
    assert margins[0].dtype is torch.float64
    found = lines("run/evaluations/step-000004.jsonl")
    for margin, row in zip(margins, found, strict=True):
        own = row["metrics"]
        assert own["mean_margin"] == pytest.approx(float(margin), abs=1e-5)
        assert own["pair_accuracy"] == float(margin > 0)
        assert own["loss"] == pytest.approx(
            float(-torch.nn.functional.logsigmoid(margin)), rel=1e-4, abs=1e-6
        )


def test_what_couples_a_batch_is_averaged_over_batches_and_said(train: Callable[..., str]) -> None:
    """SFT's loss is a mean over tokens: not the mean of the pairs' losses, while its accuracy is."""
    out = train("--output", "run", "--loss", "sft")
    last = lines("run/evaluations.jsonl")[-1]
    assert "loss" in last["batch_means"]
    assert "pair_accuracy" not in last["batch_means"]
    assert set(last["intervals"]).isdisjoint(last["batch_means"])
    rows = [row["metrics"] for row in lines("run/evaluations/step-000004.jsonl")]
    assert all("loss" not in row and "pair_accuracy" in row for row in rows)
    assert out.count("Means over batches, without an interval") == 1


def test_kto_s_baseline_couples_its_loss(run_cli: RunCli) -> None:
    status, _, err = run_cli("--loss", "kto", "--eval-fraction", "0.5", "--lr", "1e-2", "--output", "run")
    assert status == 0, err
    for evaluation in lines("run/evaluations.jsonl"):  # before the first step all groups have the same loss
        assert {"loss", "accuracy", "kl"} <= set(evaluation["batch_means"])
        assert not {"rewards/desirable", "rewards/undesirable"} & set(evaluation["batch_means"])


def test_a_loss_that_refuses_a_single_group_is_averaged_over_batches(
    starter_model_folder: Path, short_pairs: Path, held_out: Path, tmp_path: Path
) -> None:
    seen: list[float] = []

    @mint_train.loss(extends="dpo")
    def spread(batch, logprobs):
        scores = sequence_logprobs(logprobs, batch)
        margins = scores[::2] - scores[1::2]
        if len(margins) < 2:
            raise ValueError("one pair has no spread")
        seen.append(float(margins.std().detach()))
        return margins.std(), {"spread": seen[-1]}

    mint_train.train(
        spread, data=short_pairs, eval_data=held_out, model=str(starter_model_folder), batch_size=3, steps=1,
        output=tmp_path / "run",
    )  # fmt: skip
    first = lines(tmp_path / "run/evaluations.jsonl")[0]
    assert first["batch_means"] == ["loss", "spread"]
    assert first["intervals"] == {}
    assert first["metrics"]["spread"] == pytest.approx(seen[0])
    assert all(row["metrics"] == {} for row in lines(tmp_path / "run/evaluations/step-000000.jsonl"))


# it changes nothing


def test_training_is_the_same_with_and_without(train: Callable[..., str], run_cli: RunCli) -> None:
    """beta-DPO keeps a running mean, which an evaluation must not move either."""
    train("--output", "with", "--eval-every", "1", "--loss", "beta-dpo")
    given = json.loads(Path("with/run.json").read_text())["settings"]
    same = ("--loss", "beta-dpo", "--data", given["data"], "--model", given["model"])
    status, _, err = run_cli(*COMMON[2:], *same, "--output", "without")
    assert status == 0, err
    assert steps_of("with") == steps_of("without")
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-000004/state.safetensors"):
        assert Path("with", name).read_bytes() == Path("without", name).read_bytes()
    states = [lines(Path(folder, "checkpoints.jsonl"))[-1]["loss_state"] for folder in ("with", "without")]
    assert states[0] == states[1] != {}


@pytest.mark.parametrize("crashed", ["before the evaluation", "after it"])
def test_a_resumed_run_has_the_unbroken_run_s_evaluations(
    train: Callable[..., str], run_cli: RunCli, crashed: str
) -> None:
    reference = ("--set", "reference=initial")
    train("--output", "whole", "--eval-every", "1", "--save-every", "2", *reference)
    shutil.copytree("whole", "broken")
    # as a crash soon after the second step's checkpoint leaves it; what it did later is there and torn
    saved = Path("broken/checkpoints.jsonl")
    saved.write_text(saved.read_text().splitlines()[0] + "\n")
    evaluations = Path("broken/evaluations.jsonl")
    kept = evaluations.read_text().splitlines(keepends=True)
    keep = 2 if crashed == "before the evaluation" else 4
    evaluations.write_text("".join(kept[:keep]) + '{"step": 4, "lo')
    status, out, err = run_cli("resume", "broken")
    assert status == 0, err
    assert lines("broken/evaluations.jsonl") == lines("whole/evaluations.jsonl")
    assert out.count("Eval after step 2:") == (crashed == "before the evaluation")
    rows = {path.name: path.read_bytes() for path in Path("whole/evaluations").iterdir()}
    assert rows == {path.name: path.read_bytes() for path in Path("broken/evaluations").iterdir()}
    assert len(rows) == 5
    assert steps_of("broken") == steps_of("whole")


def test_the_reference_is_asked_for_once(train: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    forward = Engine.forward

    def counted(self: Engine, sequences: Sequence[Any], **options: Any) -> Any:
        asked.append(len(sequences))
        return forward(self, sequences, **options)

    monkeypatch.setattr(Engine, "forward", counted)
    train("--output", "run", "--set", "reference=initial", "--eval-every", "2")
    # the reference of five and of three pairs, and three evaluations
    assert sum(asked) == 2 * 5 + 2 * 3 + 3 * 2 * 3
    found = lines("run/evaluations.jsonl")
    assert found[0]["metrics"]["drift"] == pytest.approx(0, abs=1e-6)
    # all 0 before the first step, yet no share of groups: nothing that an accuracy's interval would fit
    assert found[0]["metrics"]["rewards/margin"] == 0
    assert found[0]["intervals"]["rewards/margin"] == [0, 0]
    assert found[0]["intervals"]["rewards/accuracy"][1] > 0.5
    assert abs(found[-1]["metrics"]["drift"]) > 1e-4
    assert len(list(Path("run/reference").iterdir())) == 2


def test_an_observer_learns_of_each(
    install_loss: Callable[..., None], starter_model_folder: Path, short_pairs: Path, tmp_path: Path
) -> None:
    seen: list[Any] = []

    class Observing:
        EXTENDS = "dpo"

        @hookimpl
        def evaluated(self, evaluation):
            seen.append(evaluation)

    install_loss("observing", Observing())
    given = {"data": short_pairs, "eval_fraction": 0.4, "model": str(starter_model_folder)}
    mint_train.train("observing", **given, steps=2, output=tmp_path / "run")
    assert [(evaluation.step, evaluation.groups) for evaluation in seen] == [(0, 2), (2, 2)]
    assert [row["source"] for row in seen[0].rows] == [row["source"] for row in seen[1].rows]


# what is held out


def test_a_share_is_held_out_and_not_trained_on(run_cli: RunCli, write_rows: Callable[..., Path]) -> None:
    data = write_rows([row | {"prompt": f"{row['prompt']} {n}"} for n in range(4) for row in PAIRS])
    held: list[set[str]] = []
    for number, (loss, seed) in enumerate([("dpo", 0), ("ipo", 7)]):
        folder = f"run{number}"
        status, out, err = run_cli(
            "--loss", loss, "--data", data, "--eval-fraction", "0.25", "--seed", seed, "--steps", "1",
            "--output", folder,
        )  # fmt: skip
        assert status == 0, err
        assert out.index("15 groups, 1 step ") < out.index("5 groups held out.")
        held.append({row["source"] for row in lines(f"{folder}/evaluations/step-000001.jsonl")})
        described = json.loads(Path(folder, "run.json").read_text())["data"]
        assert (described["groups"], described["held_out"][0]["groups"]) == (15, 5)
        assert described["held_out"][0]["sha256"] == described["sha256"]
    assert held[0] == held[1]
    assert len(held[0]) == 5


def test_what_is_held_out_is_not_trained_on(
    starter_model_folder: Path, short_pairs: Path, tmp_path: Path
) -> None:
    trained: set[int] = set()
    evaluated: set[int] = set()

    @mint_train.loss(extends="dpo")
    def noting(batch, logprobs):
        lines_of = {group.source.line for group in batch.groups}
        evaluated.update(lines_of)
        scores = sequence_logprobs(logprobs, batch)
        # a gradient is only asked for in training: an evaluation's logprobs are leaves that nobody asks
        scores.register_hook(lambda _: trained.update(lines_of))
        return -(scores[::2] - scores[1::2]).mean()

    mint_train.train(
        noting, data=short_pairs, eval_fraction=0.4, model=str(starter_model_folder), epochs=2,
        output=tmp_path / "run",
    )  # fmt: skip
    held = {
        int(row["source"].rpartition(":")[2]) for row in lines(tmp_path / "run/evaluations/step-000000.jsonl")
    }
    assert evaluated == {1, 2, 3, 4, 5}
    assert trained == {1, 2, 3, 4, 5} - held
    assert len(held) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--eval-every", "2"), "--eval-every needs held-out rows: give --eval-data or --eval-fraction"),
        (
            ("--eval-data", "held_out.jsonl", "--eval-fraction", "0.5"),
            "--eval-data and --eval-fraction are both given; give one of them",
        ),
        (("--eval-fraction", "0.005"), "--eval-fraction 0.005: of 80 rows it holds out 0"),
        (("--eval-fraction", "0.999"), "--eval-fraction 0.999: of 80 rows it holds out 80"),
        (("--eval-fraction", "1.5"), "--eval-fraction=1.5: input should be less than 1"),
        (("--eval-data", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_a_wrong_wish_is_one_line(
    run_cli: RunCli, held_out: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, _, err = run_cli("--loss", "dpo", "--output", "run", *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("run").exists()


def test_held_out_rows_from_standard_input_have_their_own_fingerprint(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, starter_model_folder: Path, short_pairs: Path
) -> None:
    """The stream is read once; a resume must be given the same rows again."""
    rows = "".join(json.dumps(row) + "\n" for row in HELD_OUT).encode()

    def pipe(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    pipe(rows)
    given = ("--model", starter_model_folder, "--data", short_pairs, "--eval-data", "-", "--output", "run")
    status, out, err = run_cli(*COMMON, *given)
    assert (status, err) == (0, "")
    assert "3 groups held out." in out
    held = json.loads(Path("run/run.json").read_text())["data"]["held_out"][0]
    assert (held["path"], held["sha256"]) == ("standard input", hashlib.sha256(rows).hexdigest())
    pipe(rows)
    assert run_cli("resume", "run", "--steps", "5")[0] == 0
    pipe(rows.replace(b"eight", b"nine"))
    status, _, err = run_cli("resume", "run", "--steps", "6")
    assert status == 2
    assert "standard input has changed since this run began" in err


def test_a_changed_held_out_file_is_refused_at_a_resume(
    train: Callable[..., str], run_cli: RunCli, held_out: Path
) -> None:
    train("--output", "run")
    held_out.write_text(held_out.read_text().replace("eight", "nine"))
    status, _, err = run_cli("resume", "run")
    assert status == 2
    assert err == (
        f"mint-train: {held_out} has changed since this run began; restore it, or start a new run\n"
    )


def test_an_evaluation_that_fails_keeps_the_steps(
    install_loss: Callable[..., None],
    starter_model_folder: Path,
    short_pairs: Path,
    held_out: Path,
    tmp_path: Path,
) -> None:
    class Failing:
        EXTENDS = "dpo"
        failing_now = False

        @hookimpl
        def compute_loss(self, batch, logprobs):
            scores = sequence_logprobs(logprobs, batch)
            held = any("held_out" in group.source.path for group in batch.groups)
            value = -(scores[::2] - scores[1::2]).mean()
            return (value * float("nan") if held and self.failing_now else value), {}

        @hookimpl
        def step_finished(self, step):
            self.failing_now = step.step == 3

    install_loss("failing", Failing())
    given = {"data": short_pairs, "eval_data": held_out, "model": str(starter_model_folder)}
    with pytest.raises(
        mint_train.errors.LossError, match=r"evaluation after step 3: the loss is nan at .*:1"
    ):
        mint_train.train("failing", **given, steps=4, eval_every=3, output=tmp_path / "run")
    assert lines(tmp_path / "run/checkpoints.jsonl")[-1]["step"] == 3
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
