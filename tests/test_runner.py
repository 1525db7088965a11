"""A run: its order, its files, how it stops, and that it goes on as if it had never stopped."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_files import adapter, checkpoints, description, metrics, state
from safetensors.torch import load_file

import mint_train
from mint_train import hookimpl, sequence_logprobs
from mint_train.errors import LossError, MintTrainError
from mint_train.groups.order import Order
from mint_train.groups.step_count import steps_per_epoch
from mint_train.plugins.authoring import FunctionLoss
from mint_train.rendering.renderer import Renderer
from mint_train.run_folder.names import make_unused_folder

Train = Callable[..., Any]


def margins(batch: Any, logprobs: Any) -> torch.Tensor:
    scores = sequence_logprobs(logprobs, batch)
    return scores[::2] - scores[1::2]


# the order of the data


def drawn_lengths(groups: int, seed: int) -> list[int]:
    return [random.Random(f"{seed}/{n}").randint(1, 1000) for n in range(groups)]


@given(
    groups=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 5),
    by_length=st.booleans(),
)
def test_an_epoch_has_each_group_once(
    groups: int, batch_size: int, seed: int, epoch: int, by_length: bool
) -> None:
    order = Order(groups, batch_size, seed, drawn_lengths(groups, seed) if by_length else None)
    length = steps_per_epoch(groups, batch_size)
    batches = [order.step(step) for step in range(1 + epoch * length, 1 + (epoch + 1) * length)]
    assert sorted(index for batch in batches for index in batch) == list(range(groups))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size


@given(
    step=st.integers(1, 200),
    groups=st.integers(1, 50),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 9),
    by_length=st.booleans(),
)
def test_a_step_depends_on_nothing_but_its_number_and_the_seed(
    step: int, groups: int, batch_size: int, seed: int, by_length: bool
) -> None:
    lengths = drawn_lengths(groups, seed) if by_length else None
    one, other = (Order(groups, batch_size, seed, lengths) for _ in range(2))
    assert one.step(step) == other.step(step)


@pytest.mark.parametrize("by_length", [False, True])
def test_epochs_and_seeds_have_orders_of_their_own(by_length: bool) -> None:
    lengths = drawn_lengths(20, 0) if by_length else None
    orders = {
        tuple(index for step in range(1, 11) for index in Order(20, 2, seed, lengths).step(epoch * 10 + step))
        for epoch in range(3)
        for seed in range(3)
    }
    assert len(orders) == 9


def test_steps_by_length_are_padded_little_and_come_in_no_order_of_length() -> None:
    lengths = drawn_lengths(1000, 0)

    def steps(order: Order) -> list[list[int]]:
        return [[lengths[index] for index in order.step(step)] for step in range(1, 126)]

    def padding(made: list[list[int]]) -> float:
        return sum(max(step) * len(step) for step in made) / sum(lengths) - 1

    plain, grouped = steps(Order(1000, 8, 0)), steps(Order(1000, 8, 0, lengths))
    assert padding(plain) > 0.5
    assert padding(grouped) < 0.1
    longest = [max(step) for step in grouped]
    rises = sum(one < other for one, other in pairwise(longest))
    assert 40 < rises < 85
    # the composition of steps differs from epoch to epoch
    again = Order(1000, 8, 0, lengths)
    assert len({frozenset(again.step(n)) for n in range(1, 251)}) > 240


def test_a_run_by_length_is_the_same_run_after_a_resume(
    run_cli: Callable[..., Any], write_rows: Callable[..., Path]
) -> None:
    path = write_rows(
        [{"prompt": f"Say {n}.", "chosen": "word " * (1 + n % 7), "rejected": "no " * n} for n in range(1, 9)]
    )
    run = ("--loss", "dpo", "--data", path, "--batch-size", 2, "--group-by-length", "--save-every", 2)
    assert run_cli(*run, "--epochs", 2, "--output", "whole").status == 0
    assert run_cli(*run, "--steps", 4, "--output", "broken").status == 0
    status, _, err = run_cli("resume", "broken", "--steps", 8)
    assert (status, err) == (0, "")
    figures = [
        [{**json.loads(line), "seconds": 0} for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 8
    assert run_cli("--loss", "dpo", "--data", path, "--steps", 1, "--output", "plain").status == 0
    status, _, err = run_cli("resume", "plain", "--steps", 2, "--group-by-length")
    assert status == 2
    assert "this run was started with False" in err


def test_a_run_trains_each_row_once_an_epoch(train: Train) -> None:
    seen: list[list[int]] = []

    @mint_train.loss(extends="dpo")
    def noting(batch, logprobs):
        seen.append([group.source.line for group in batch.groups])
        return -margins(batch, logprobs).mean()

    result = train(noting, steps=None, epochs=2)
    assert result.steps == 6
    assert [len(lines) for lines in seen] == [2, 2, 1] * 2
    for epoch in (seen[:3], seen[3:]):
        assert sorted(line for lines in epoch for line in lines) == [1, 2, 3, 4, 5]
    assert seen[:3] != seen[3:]


# what a run leaves


def test_run_folder(train: Train, short_pairs: Path, starter_model_folder: Path) -> None:
    result = train(save_every=3, seed=5, options={"beta": "0.5"})
    assert (result.status, result.steps, result.folder) == ("done", 4, Path("run"))
    run = description("run")
    assert (run["status"], run["finished_steps"], run["problem"]) == ("done", 4, None)
    assert (run["loss"], run["backend"], run["model"], run["steps"]) == (
        "dpo", "local", str(starter_model_folder), 4,
    )  # fmt: skip
    (loss,) = run["losses"]
    assert loss["options"] == {"beta": 0.5, "reference": "none"}
    assert loss["plugins"]["dpo"].startswith("mint-train-dpo ")
    assert run["data"]["path"] == str(short_pairs)
    assert run["data"]["groups"] == 5
    assert run["data"]["left_out"] == []
    assert len(run["data"]["sha256"]) == 64
    assert {"python", "mint-train", "torch", "transformers", "peft", "mindlab-toolkit", "tinker"} <= set(
        run["versions"]
    )
    settings = run["settings"]
    assert (settings["seed"], settings["lr"], settings["batch_size"], settings["rank"]) == (5, 1e-3, 2, 16)
    assert "api_key" not in settings

    lines = metrics("run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert list(line) == ["step", "metrics", "learning_rate", "tokens"]
        own = line["metrics"]
        assert next(iter(own)) == "loss"
        assert {"pair_accuracy", "mean_margin", "mean_chosen_score", "mean_rejected_score"} <= set(own)
        assert line["tokens"] > 0
        assert own["mean_margin"] == pytest.approx(
            own["mean_chosen_score"] - own["mean_rejected_score"], abs=1e-4
        )
    assert result.metrics == lines[-1]["metrics"]

    saved = checkpoints("run")
    assert [checkpoint["step"] for checkpoint in saved] == [3, 4]
    assert [checkpoint["sampler"] is None for checkpoint in saved] == [True, False]
    assert [checkpoint["state"] for checkpoint in saved] == [
        "checkpoints/step-000003",
        "checkpoints/step-000004",
    ]
    assert saved[-1]["sampler"] == "adapter"
    assert all(load_file(Path("run", checkpoint["state"], "state.safetensors")) for checkpoint in saved)
    config = json.loads(Path("run/adapter/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 16, 32)
    assert not list(Path("run").rglob("*.part"))


def test_the_adapter_loads_with_peft_and_gives_the_trained_logprobs(
    train: Train, starter_model_folder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mint_train.backends.local.adapter import LoraShape
    from mint_train.backends.local.load import open_local_client
    from mint_train.losses.loss import Loss
    from mint_train.plugins.discovery import load_plugin
    from mint_train_dpo.rows import PreferencePair

    result = train(lr=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(starter_model_folder)
    dpo = Loss.of(load_plugin("dpo"))
    data = dpo.flatten(PreferencePair("Say one.", "one", "no"), Renderer(tokenizer))
    client = open_local_client(str(starter_model_folder), LoraShape(16), 0, Path("other"))

    def service_logprobs() -> list[torch.Tensor]:
        outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
        return [output["logprobs"].to_torch() for output in outputs]

    untrained = service_logprobs()
    client.load_state_with_optimizer(result.checkpoint.state).result()
    trained = service_logprobs()

    base = AutoModelForCausalLM.from_pretrained(starter_model_folder)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # PEFT reads an attribute that transformers has renamed
        model = PeftModel.from_pretrained(base, "run/adapter").eval()
    for datum, expected, before in zip(data, trained, untrained, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([datum.model_input.to_ints()])).logits[0]
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        logprobs = torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]
        counts = datum.loss_fn_inputs["weights"].to_torch() != 0
        torch.testing.assert_close(logprobs[counts], expected[counts], rtol=1e-4, atol=1e-4)
        assert (expected[counts] - before[counts]).abs().max() > 0.01, "the training changed nothing"


def test_the_same_seed_gives_the_same_bits(train: Train) -> None:
    train(output=Path("a"))
    train(output=Path("b"))
    assert metrics("a") == metrics("b")
    assert adapter("a") == adapter("b")
    assert state("a", 4) == state("b", 4)


def test_another_seed_gives_another_run(train: Train) -> None:
    train(output=Path("a"))
    train(output=Path("b"), seed=1)
    assert metrics("a") != metrics("b")
    assert adapter("a") != adapter("b")


def test_training_leaves_the_random_state_of_the_program_alone(train: Train) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(steps=1)
    assert torch.equal(torch.rand(4), expected)


def test_the_loss_falls(train: Train) -> None:
    train(steps=10, batch_size=5, lr=1e-3)
    losses = [line["metrics"]["loss"] for line in metrics("run")]
    assert all(after < before for before, after in pairwise(losses))


# output folders


def test_a_folder_with_a_run_is_refused_and_left_alone(train: Train) -> None:
    train()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    with pytest.raises(
        MintTrainError, match=r"^output run already holds a run: .*mint-train resume run.*overwrite=True"
    ) as refused:
        train()
    assert refused.value.exit_status == 2
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_overwrite_replaces_the_run(train: Train) -> None:
    train(steps=4, save_every=1)
    train(steps=2, overwrite=True)
    assert len(metrics("run")) == 2
    assert [checkpoint["step"] for checkpoint in checkpoints("run")] == [2]
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_with_other_files_is_never_touched(train: Train, overwrite: bool) -> None:
    Path("run/deep").mkdir(parents=True)
    Path("run/deep/thesis.txt").write_text("years of work")
    with pytest.raises(MintTrainError, match=r"^output run exists and is not a run folder"):
        train(overwrite=overwrite)
    assert Path("run/deep/thesis.txt").read_text() == "years of work"
    assert [path.name for path in Path("run").iterdir()] == ["deep"]


def test_overwrite_keeps_what_is_no_part_of_a_run(train: Train) -> None:
    train(steps=1)
    Path("run/thesis.txt").write_text("years of work")
    train(steps=1, overwrite=True, seed=1)
    assert description("run")["settings"]["seed"] == 1
    assert Path("run/thesis.txt").read_text() == "years of work"


def test_what_a_run_writes_is_what_overwrite_replaces(train: Train, short_pairs: Path) -> None:
    from mint_train.run_folder.parts import PARTS
    from mint_train.run_folder.replacing import LOCK_FILE

    short_pairs.write_text(short_pairs.read_text() + "{}\n")
    prompts = Path("prompts.jsonl")
    prompts.write_text('{"prompt": "Say it."}\n')
    everything = {"model": None, "options": {"reference": "initial"}, "on_bad_row": "skip"}
    train(steps=1, eval_fraction=0.4, sample_prompts=prompts, sample_tokens=2, **everything)
    # the first four are other commands', the rows a Python program's, the last one of a run that never began
    of_others = {"observers", "report.html", "report.png", "win_rates.jsonl", "rows", ".starting"}
    assert written("run") == {*PARTS, LOCK_FILE} - of_others
    others = ("observers/figures", "report.html", "report.png", "win_rates.jsonl")
    for part in (*others, ".adapter.0123456789ab.part/README.md"):
        Path("run", part).parent.mkdir(exist_ok=True)
        Path("run", part).write_text("")
    train(steps=1, overwrite=True, on_bad_row="skip")
    plain = {"adapter", "checkpoints", "checkpoints.jsonl", "metrics.jsonl", "run.json", "run.toml"}
    assert written("run") == plain | {LOCK_FILE, "skipped_rows.jsonl", "tokens.jsonl"}


def written(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_a_file_as_output_is_refused(train: Train) -> None:
    Path("run").write_text("a file")
    with pytest.raises(MintTrainError, match=r"^output run exists and is not a run folder"):
        train()
    Path("file").write_text("a file")
    with pytest.raises(MintTrainError, match=r"^output file/run: "):
        train(output=Path("file/run"))


def test_an_empty_folder_is_taken(train: Train) -> None:
    Path("run").mkdir()
    assert train(steps=1).status == "done"


def test_a_folder_stays_when_what_is_given_turns_out_wrong(train: Train) -> None:
    """An overwrite that fails before its first step must not have cost the run that was there."""
    train(steps=1)
    Path("run/thesis.txt").write_text("years of work")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    with pytest.raises(MintTrainError, match="nothing is left to train"):
        train(steps=1, overwrite=True, max_length=2)
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


# losses that would break the model or train nothing


def turning(value: float, at: int) -> FunctionLoss:
    """DPO that turns to a value at one step, for the pair of the third row alone."""

    @mint_train.loss(extends="dpo")
    def broken(batch, logprobs, state):
        state["step"] = state.get("step", 0) + 1
        factor = [value if state["step"] >= at and group.source.line == 3 else 1.0 for group in batch.groups]
        return -(margins(batch, logprobs) * torch.tensor(factor)).mean()

    return broken


def first_step_with(line: int) -> int:
    return next(step for step in range(1, 9) if line - 1 in Order(5, 2, 0).step(step))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_its_step(
    train: Train, short_pairs: Path, value: float
) -> None:
    step = first_step_with(3) + 3  # in the second epoch, or later
    step = next(n for n in range(step, 20) if 2 in Order(5, 2, 0).step(n))
    with pytest.raises(
        LossError, match=rf"^step {step}: the loss is -?(nan|inf) at {short_pairs}:3$"
    ) as stopped:
        train(turning(value, at=step), steps=12)
    assert stopped.value.exit_status == 1
    assert [line["step"] for line in metrics("run")] == list(range(1, step))
    run = description("run")
    assert (run["status"], run["finished_steps"]) == ("failed", step - 1)
    assert run["problem"] == str(stopped.value)
    assert checkpoints("run")[-1]["step"] == step - 1
    # the very state of a run that was to end there
    train(turning(value, at=99), steps=step - 1, output=Path("good"))
    assert state("run", step - 1) == state("good", step - 1)
    assert metrics("run") == metrics("good")


def test_a_loss_that_is_nan_at_once_leaves_no_step(train: Train) -> None:
    @mint_train.loss(extends="dpo")
    def broken(batch, logprobs):
        return margins(batch, logprobs).mean() * math.nan

    with pytest.raises(LossError, match=r"^step 1: the loss is nan at .*pairs\.jsonl:\d$"):
        train(broken)
    assert not Path("run/metrics.jsonl").exists()
    assert not Path("run/checkpoints.jsonl").exists()
    assert description("run")["status"] == "failed"


def test_a_run_that_fails_ends_with_exit_status_one_and_says_how_to_go_on(
    run_cli: Callable[..., Any],
    install_loss: Callable[..., None],
    short_pairs: Path,
    starter_model_folder: Path,
) -> None:
    install_loss("broken", turning(math.nan, at=2))
    status, out, err = run_cli(
        "--loss", "broken", "--data", short_pairs, "--model", starter_model_folder, "--output", "run",
        "--steps", 9, "--batch-size", 5,
    )  # fmt: skip
    assert status == 1
    assert err == f"mint-train: step 2: the loss is nan at {short_pairs}:3\n"
    assert "Step 1: loss=" in out
    assert "Step 2: " not in out
    assert "The state after step 1 is saved; continue with: mint-train resume run" in out


def test_a_model_that_its_settings_have_broken_stops_the_run(train: Train) -> None:
    with pytest.raises(
        LossError, match=r"^step \d: the .* not finite at .*pairs\.jsonl:\d$|^step \d: the loss is"
    ):
        train(lr=1, weight_decay=1e30, steps=9)
    assert all(math.isfinite(value) for line in metrics("run") for value in line["metrics"].values())


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_step(train: Train, short_pairs: Path) -> None:
    @mint_train.loss(extends="dpo")
    def steep(batch, logprobs):
        value = margins(batch, logprobs).mean()
        return value + (value - value).sqrt()

    with pytest.raises(LossError, match=r'^step 1: the gradient of the loss "steep" is not finite at .*:\d$'):
        train(steep)


def python_lists(batch, logprobs):
    values = [torch.tensor(logprob.tolist()).sum() for logprob in logprobs]
    return -torch.stack(values).mean()


def a_number(batch, logprobs):
    return float(margins(batch, logprobs).mean().detach())


def detached(batch, logprobs):
    return -margins(batch, [logprob.detach() for logprob in logprobs]).mean()


def half_detached(batch, logprobs):
    kept = [logprob if place % 2 == 0 else logprob.detach() for place, logprob in enumerate(logprobs)]
    return -margins(batch, kept).mean()


def one_left_out(batch, logprobs):
    return -torch.stack([logprob.sum() for logprob in logprobs[:-1]]).mean()


def one_per_pair(batch, logprobs):
    return -margins(batch, logprobs)


def nothing(batch, logprobs):
    return None


def division_by_zero(batch, logprobs):
    return margins(batch, logprobs).mean() / 0 * (1 / 0)


def metric_nan(batch, logprobs):
    return -margins(batch, logprobs).mean(), {"mine": math.nan}


def metric_text(batch, logprobs):
    return -margins(batch, logprobs).mean(), {"mine": "high"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            python_lists,
            r'"python_lists" is detached from the logprobs, so nothing would be trained: .*\.tolist\(\)',
        ),
        (detached, r'"detached" is detached from the logprobs'),
        (a_number, r'"a_number" returned a float where a scalar tensor is needed'),
        (
            half_detached,
            r"does not depend on the logprobs of datum 1 \(.*pairs\.jsonl:\d\): they were detached",
        ),
        (one_left_out, r"does not depend on the logprobs of datum 3 \(.*pairs\.jsonl:\d\)"),
        (one_per_pair, r'"one_per_pair" returned a tensor of shape \[2\] where a scalar is needed'),
        (nothing, r'the loss "nothing" returned nothing: it must return the loss'),
        (division_by_zero, r"raised ZeroDivisionError at test_runner\.py:\d+: division by zero"),
        (metric_nan, r'the metric "mine" of the loss "metric_nan" is nan'),
        (
            metric_text,
            r"the metric \"mine\" of the loss \"metric_text\" is not a number but a str \('high'\)",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_loss_that_would_train_nothing_is_refused_with_its_reason(
    train: Train, monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], message: str
) -> None:
    def sent(*_: object) -> None:
        raise AssertionError("the optimiser was called")

    monkeypatch.setattr("mint_train.backends.local.client.LocalTrainingClient.optim_step", sent)
    with pytest.raises(MintTrainError, match=message) as refused:
        train(mint_train.loss(extends="dpo")(function))
    assert str(refused.value).startswith("step 1: ")
    assert "\n" not in str(refused.value)


# interrupts and resuming


class Interrupting:
    """DPO, with an observer that sends the program a signal after a step."""

    EXTENDS = "dpo"

    def __init__(self, step: int, *signals: signal.Signals) -> None:
        self.step, self.signals = step, signals

    @hookimpl
    def step_finished(self, step: Any) -> None:
        if step.step == self.step:
            for number in self.signals:
                signal.raise_signal(number)


@pytest.fixture
def command(run_cli: Callable[..., Any], short_pairs: Path, starter_model_folder: Path) -> Callable[..., Any]:
    """Train on the command line: `command(loss, output, *more)`."""

    def run(loss: str, output: str, *more: object) -> Any:
        return run_cli(
            "--loss", loss, "--data", short_pairs, "--model", starter_model_folder, "--output", output,
            "--steps", 8, "--batch-size", 2, "--lr", 1e-3, *more,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_to_the_very_same_end(
    command: Callable[..., Any],
    run_cli: Callable[..., Any],
    install_loss: Callable[..., None],
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    interrupting = Interrupting(3, number)
    install_loss("stopping", interrupting)
    status, out, err = command("stopping", "run")
    assert status == 130
    assert signal.getsignal(number) is before
    assert "Stopping after this step to save a checkpoint" in err
    run = description("run")
    done = run["finished_steps"]
    assert (run["status"], done < 8) == ("interrupted", True)
    assert [line["step"] for line in metrics("run")] == list(range(1, done + 1))
    assert checkpoints("run")[-1]["step"] == done
    assert f"The state after step {done} is saved; continue with: mint-train resume run" in out
    assert not list(Path("run").rglob("*.part"))

    status, out, err = run_cli("resume", "run")
    assert (status, err) == (0, "")
    assert f"Resuming after step {done}." in out
    interrupting.step = 0
    assert command("stopping", "unbroken").status == 0
    assert metrics("run") == metrics("unbroken")
    assert adapter("run") == adapter("unbroken")
    assert state("run", 8) == state("unbroken", 8)
    assert description("run")["status"] == "done"


def test_a_second_interrupt_stops_at_once_and_the_last_checkpoint_holds(
    command: Callable[..., Any], run_cli: Callable[..., Any], install_loss: Callable[..., None]
) -> None:
    interrupting = Interrupting(5, signal.SIGINT, signal.SIGINT)
    install_loss("stopping", interrupting)
    status, _, err = command("stopping", "run", "--save-every", 2)
    assert status == 130
    assert "mint-train: interrupted" in err
    assert checkpoints("run")[-1]["step"] == 4
    interrupting.step = 0
    assert run_cli("resume", "run").status == 0
    assert command("stopping", "unbroken", "--save-every", 2).status == 0
    assert metrics("run") == metrics("unbroken")
    assert adapter("run") == adapter("unbroken")


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(
    command: Callable[..., Any], run_cli: Callable[..., Any]
) -> None:
    """As a power cut leaves it: lines after the checkpoint, a torn line, no final status."""
    assert command("dpo", "run", "--save-every", 3).status == 0
    unbroken = metrics("run"), adapter("run")
    lines = Path("run/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("run/metrics.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    saved = Path("run/checkpoints.jsonl").read_text().splitlines(keepends=True)
    Path("run/checkpoints.jsonl").write_text(saved[0] + saved[1][:30])
    Path("run/run.json").write_text(json.dumps(description("run") | {"status": "running"}))
    status, out, err = run_cli("resume", "run")
    assert (status, err) == (0, "")
    assert "Resuming after step 3." in out
    assert (metrics("run"), adapter("run")) == unbroken
    assert [checkpoint["step"] for checkpoint in checkpoints("run")] == [3, 6, 8]


def test_the_state_that_a_loss_keeps_is_resumed_too(
    train: Train, run_cli: Callable[..., Any], install_loss: Callable[..., None], command: Callable[..., Any]
) -> None:
    class Counting(Interrupting):
        @hookimpl
        def compute_loss(self, batch: Any, logprobs: Any, state: Any) -> Any:
            state["calls"] = state.get("calls", 0.0) + 1.0
            return -margins(batch, logprobs).mean(), {"calls": state["calls"]}

    counting = Counting(3, signal.SIGINT)
    install_loss("counting", counting)
    assert command("counting", "run").status == 130
    assert run_cli("resume", "run").status == 0
    assert [line["metrics"]["calls"] for line in metrics("run")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_resuming_a_run_that_is_done_changes_nothing(
    command: Callable[..., Any], run_cli: Callable[..., Any]
) -> None:
    command("dpo", "run")
    before = metrics("run"), adapter("run")
    status, out, err = run_cli("resume", "run")
    assert (status, err) == (0, "")
    assert "Step " not in out.replace("after step", "")
    assert (metrics("run"), adapter("run")) == before


def test_resuming_on_changed_data_is_refused(
    command: Callable[..., Any], run_cli: Callable[..., Any], short_pairs: Path
) -> None:
    command("dpo", "run")
    with short_pairs.open("a") as file:
        file.write('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    status, _, err = run_cli("resume", "run")
    assert status == 2
    assert "has changed since this run began" in err


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", "{}"),
        ("run.json", "[]"),
        ("checkpoints.jsonl", "{}\n"),
        ("checkpoints.jsonl", "[]\n"),
        ("checkpoints.jsonl", "{]\n"),
        ("checkpoints.jsonl", ""),
        ("checkpoints/step-000008/state.safetensors", "broken"),
        ("checkpoints/step-000008/state.safetensors", None),
    ],
)
def test_resuming_a_damaged_folder_is_one_line(
    command: Callable[..., Any], run_cli: Callable[..., Any], file: str, content: str | None
) -> None:
    command("dpo", "run")
    Path("run", file).unlink()
    if content is not None:
        Path("run", file).write_text(content)
    status, _, err = run_cli("resume", "run")
    assert status in (1, 2)
    assert err.startswith("mint-train: ")
    assert err.count("\n") == 1


def test_a_run_folder_may_move(
    command: Callable[..., Any],
    run_cli: Callable[..., Any],
    install_loss: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupting = Interrupting(3, signal.SIGINT)
    install_loss("stopping", interrupting)
    command("stopping", "run")
    Path("elsewhere").mkdir()
    Path("run").rename("elsewhere/moved")
    monkeypatch.chdir("elsewhere")
    interrupting.step = 0
    status, _, err = run_cli("resume", "moved")
    assert (status, err) == (0, "")
    assert len(metrics("moved")) == 8
    assert not Path("run").exists()


@pytest.fixture
def started(
    short_pairs: Path, starter_model_folder: Path, tmp_path: Path, warm_python: str
) -> Iterator[subprocess.Popen[str]]:
    """A long run in a process of its own."""
    process = subprocess.Popen(
        [
            warm_python, "-m", "mint_train", "--loss", "dpo", "--data", str(short_pairs), "--model",
            str(starter_model_folder), "--output", "run", "--steps", "2000", "--batch-size", "2",
        ],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_in_a_terminal(
    started: subprocess.Popen[str], run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("Step 2: "):
            started.send_signal(signal.SIGINT)
            break
    out, err = started.communicate(timeout=600)
    assert started.returncode == 130
    assert "Traceback" not in err
    assert "continue with: mint-train resume run" in out
    run = description("run")
    done = run["finished_steps"]
    assert (run["status"], done >= 2) == ("interrupted", True)
    assert len(metrics("run")) == done
    assert load_file(f"run/checkpoints/step-{done:06d}/state.safetensors")
    assert load_file("run/adapter/adapter_model.safetensors")


def test_a_run_is_made_once_and_what_follows_from_its_settings_is_derived_once(
    train: Train, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, short_pairs: Path
) -> None:
    counts: Counter[str] = Counter()

    def counted(module: str, name: str) -> None:
        original = getattr(import_module(f"mint_train.training.{module}"), name)

        def call(*arguments: Any, **more: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **more)

        monkeypatch.setattr(f"mint_train.training.{module}.{name}", call)

    once = [
        ("run", "choose_backend"), ("run", "find_data"), ("run", "find_held_out"), ("run", "open_observers"),
        ("preparing", "count_steps"), ("preparing", "ExpectedTokens"), ("description", "recorded_settings"),
    ]  # fmt: skip
    for module, name in once:
        counted(module, name)
    train(steps=2, eval_data=short_pairs)
    assert counts == Counter({name: 1 for _, name in once})
    counts.clear()
    assert run_cli("resume", "run", "--steps", 3).status == 0
    assert counts == Counter({name: 1 for _, name in once})


def test_observers_hear_of_everything_in_order(train: Train, install_loss: Callable[..., None]) -> None:
    heard: list[str] = []

    class Listening:
        EXTENDS = "dpo"

        @hookimpl
        def run_started(self, run: Any) -> None:
            heard.append(f"started {run.steps} {run.groups} {run.loss}")

        @hookimpl
        def step_finished(self, step: Any) -> None:
            heard.append(f"step {step.step}")

        @hookimpl
        def checkpoint_saved(self, checkpoint: Any) -> None:
            heard.append(f"saved {checkpoint.step}")

        @hookimpl
        def run_finished(self, result: Any) -> None:
            heard.append(f"finished {result.status}")

    install_loss("listening", Listening())
    train("listening", steps=3, save_every=2)
    assert heard == [
        "started 3 5 listening", "step 1", "step 2", "saved 2", "step 3", "saved 3", "finished done",
    ]  # fmt: skip


# the whole way


@pytest.mark.slow
def test_a_hundred_steps_on_the_bundled_pairs(
    run_cli: Callable[..., Any], starter_model_folder: Path
) -> None:
    status, _, err = run_cli(
        "--loss", "dpo", "--model", starter_model_folder, "--steps", 100, "--lr", 1e-3, "--output", "run"
    )
    assert (status, err) == (0, "")
    losses = [line["metrics"]["loss"] for line in metrics("run")]
    assert sum(losses[-10:]) <= 0.1 * sum(losses[:10])


@pytest.mark.slow
def test_an_epoch_of_dialogues(
    run_cli: Callable[..., Any], dialogues: Path, starter_model_folder: Path
) -> None:
    status, out, err = run_cli(
        "--loss", "dpo", "--data", dialogues, "--model", starter_model_folder, "--epochs", 1,
        "--batch-size", 8, "--max-length", 512, "--output", "run",
    )  # fmt: skip
    assert (status, err) == (0, "")
    data = description("run")["data"]
    assert data["groups"] + len(data["left_out"]) == len(json.loads(dialogues.read_text()))
    assert len(metrics("run")) == math.ceil(data["groups"] / 8)
    assert f"Left out, as --max-length leaves nothing to train: {len(data['left_out'])}" in out


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mint_train.run_folder.names.strftime", lambda _: "2026-01-01-000000")
    names = [make_unused_folder("dpo+0.1*sft").name for _ in range(3)]
    stem = "dpo-0-1-sft-2026-01-01-000000"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]
