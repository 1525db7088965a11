"""One run after another on any backend: SFT, DPO that is killed once, IPO; what each of them begins with."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from few_rows import PAIRS, write_lines
from peft import PeftModel
from run_files import description, metrics
from transformers import AutoModelForCausalLM, AutoTokenizer

from mint_train.groups.build import build_dataset
from mint_train.groups.examples import find_data, read_examples
from mint_train.losses.weighted_sum import open_loss
from mint_train.settings.model import Settings

Run = Callable[..., subprocess.CompletedProcess[str]]
PEFT_WARNS = "ignore:.is_gradient_checkpointing"
"""PEFT reads an attribute that transformers has renamed."""
WITHIN = 1e-4
"""Nats, between a policy's logprobs and those of a plain forward."""
KILLED_ONCE = '''
import os, signal
from pathlib import Path

from mint_train import loss
from mint_train_dpo import Pairs, bradley_terry

MARK = Path("{run}.killed")


@loss(extends="dpo")
def killed_once(batch, logprobs, options):
    """DPO whose process is killed in its second step, and not again."""
    if Path("{run}", "checkpoints.jsonl").exists() and not MARK.exists():
        MARK.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    pairs = Pairs.of(batch, logprobs)
    loss = batch.mean(bradley_terry(options.beta * pairs.margins))
    return loss, pairs.metrics(pairs.rewards(options.beta))
'''


def plain_scores(model: torch.nn.Module, tokenizer: Any, pairs: Path) -> tuple[float, float]:
    """Return the mean logprobs of the chosen and of the rejected completions, nats, by a forward of each."""
    loss = open_loss("dpo", {})
    examples = read_examples(find_data(str(pairs), loss), loss)
    scores = []
    for group in build_dataset(examples, loss, tokenizer, Settings(loss="any")).groups:
        for arrays in group.arrays:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor(arrays.inputs)[None].long()).logits[0].double()
            targets, weights = torch.tensor(arrays.targets).long(), torch.tensor(arrays.weights).double()
            logprobs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
            scores.append(float((logprobs * weights).sum()))
    chosen, rejected = scores[::2], scores[1::2]
    return sum(chosen) / len(chosen), sum(rejected) / len(rejected)


def check_chained_runs(run: Run, folder: Path, name: str, base: Path, *options: object) -> None:
    """Train three runs, each from the one before, and compare how they begin with PEFT's own forward.

    Args:
        run: calls `mint-train` in a process of its own, in the folder.
        folder: where they are trained, on two pairs.
        name: begins the names of the runs.
        base: the folder of the base model.
        options: of each run.
    """
    sft, dpo, ipo = (f"{name}-{loss}" for loss in ("sft", "dpo", "ipo"))
    (folder / "killed_once.py").write_text(KILLED_ONCE.format(run=dpo))
    rows = write_lines(folder / "two_pairs.jsonl", PAIRS[:2])
    given = ("--data", rows, "--batch-size", 2, "--lr", "1e-3", "--save-every", 1, *options)
    referenced = ("--set", "reference=initial", *given)

    def succeed(*arguments: object) -> str:
        done = run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    succeed("--loss", "sft", *given, "--steps", 2, "--output", sft)
    begun = run("--loss", "./killed_once.py", *referenced, "--from", sft, "--steps", 3, "--output", dpo)
    assert begun.returncode == -signal.SIGKILL, begun.stdout + begun.stderr
    shutil.rmtree(folder / dpo / "reference")  # so that it is computed again, after the kill
    assert "Resuming after step 1." in succeed("resume", dpo)
    succeed("--loss", "ipo", *referenced, "--from", dpo, "--steps", 1, "--output", ipo)
    for before in (sft, dpo):
        succeed("export", before, "--to", "peft", "--output", f"{before}-weights")
    check_beginnings(folder, [sft, dpo, ipo], rows, base)


def check_beginnings(folder: Path, runs: list[str], pairs: Path, base: Path) -> None:
    """Compare the figures of each run but the first with a forward of what the run before it reached."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    last = plain_scores(AutoModelForCausalLM.from_pretrained(base), tokenizer, pairs)
    for before, after in pairwise(runs):
        model = AutoModelForCausalLM.from_pretrained(base)
        model = PeftModel.from_pretrained(model, folder / f"{before}-weights").eval()
        scores = plain_scores(model, tokenizer, pairs)
        assert abs(scores[0] - last[0]) > 100 * WITHIN, "the run before has changed nothing"
        last = scores
        steps = [line["metrics"] for line in metrics(folder / after)]
        assert len(steps) == description(folder / after)["steps"]
        for side, score in zip(("chosen", "rejected"), scores, strict=True):
            assert steps[0][f"mean_{side}_score"] == pytest.approx(score, abs=WITHIN), (after, side)
            for number, step in enumerate(steps, start=1):  # the reference is what the run began with
                moved = step[f"mean_{side}_score"] - score
                assert step[f"rewards/{side}"] == pytest.approx(moved, abs=WITHIN), (after, side, number)
