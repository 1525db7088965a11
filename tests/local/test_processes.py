"""Training in several processes, as `torchrun` starts them, has the figures of one and ends as one does."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import checkpoints, description, metrics
from safetensors.torch import load_file
from several_processes import Ended, run, started
from transformers import AutoConfig, AutoModelForCausalLM

import mint_train
from mint_train.backends.local.packing import TokenSequence, divide_sequences, plan_packs
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import STATE_FILE

RunCli = Callable[..., tuple[int, str, str]]

SMALL = ("--lr", 1e-4, "--eval-fraction", 0.1)
RUNS = {
    "dpo": ("--set", "reference=initial", "--accumulate", 2, "--batch-size", 4, "--grad-clip", 0.5),
    "aot": ("--set", "reference=initial"),  # it sorts the margins of the batch
    "tdpo": (),  # it asks for a KL over the vocabulary, with its reference
    "sft": (),  # its gradients are known before its logprobs
    "plackett-luce": ("--batch-size", 1),  # a ranking is one group, which two processes divide
}


@pytest.fixture(scope="module")
def untrained_model(starter_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with small logits: float32 rounds those of a trained one to more than 1e-6."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(starter_model_folder))
    folder = tmp_path_factory.mktemp("untrained") / "model"
    shutil.copytree(starter_model_folder, folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def assert_same(folder: str, other: str) -> None:
    """Compare figures and weights of two runs within what roundings do."""
    for lines, others in (
        (metrics(folder), metrics(other)),
        (RunFolder(Path(folder)).evaluations(), RunFolder(Path(other)).evaluations()),
    ):
        assert [line["step"] for line in lines] == [line["step"] for line in others]
        for line, one in zip(lines, others, strict=True):
            assert line["metrics"] == pytest.approx(one["metrics"], rel=1e-6, abs=1e-6)
    state, other_state = (
        load_file(Path(name, checkpoints(name)[-1]["state"], STATE_FILE)) for name in (folder, other)
    )
    for name, tensor in other_state.items():
        difference = state[name] - tensor
        if name.startswith("weight/"):
            # AdamW divides a gradient by its own size: one that is 0 but for rounding makes a step of that.
            assert float(difference.square().mean().sqrt()) <= 1e-6, name
        else:  # it takes the same steps with gradients of another scale, so their moments are compared too
            assert float(difference.abs().max()) <= 1e-3 * float(tensor.abs().max()), name


@pytest.mark.parametrize("loss", RUNS)
def test_two_processes_have_the_figures_of_one(
    loss: str, untrained_model: Path, run_cli: RunCli, warm_python: str
) -> None:
    command = ("--loss", loss, "--model", untrained_model, *SMALL, *RUNS[loss], "--steps", 3)
    ended = run(warm_python, 2, *command, "--output", "two")
    assert ended.statuses == [0, 0], ended.err
    assert run_cli(*command, "--output", "one")[0] == 0
    assert_same("two", "one")
    before, *_, after = RunFolder(Path("one")).evaluations()
    assert before["metrics"] != pytest.approx(after["metrics"], abs=1e-5), "too little is learned to compare"
    assert description("two")["processes"] == 2
    assert description("one")["processes"] == 1


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_a_run_is_resumed_with_another_number_of_processes(
    before: int, after: int, untrained_model: Path, run_cli: RunCli, warm_python: str
) -> None:
    command = ("--loss", "dpo", "--model", untrained_model, *SMALL, *RUNS["dpo"], "--schedule", "constant")
    assert run_cli(*command, "--steps", 4, "--eval-every", 2, "--output", "whole")[0] == 0
    for count, asked in (
        (before, (*command, "--steps", 2, "--output", "parts")),
        (after, ("resume", "parts", "--steps", 4, "--quiet")),
    ):
        statuses = [run_cli(*asked)[0]] if count == 1 else run(warm_python, count, *asked).statuses
        assert statuses == [0] * count
    assert_same("parts", "whole")
    assert description("parts")["processes"] == after
    card = Path("parts", "adapter", "README.md").read_text()
    assert ("| processes |" in card) == (after > 1)


def test_one_process_knows_nothing_of_others(warm_python: str, short_pairs: Path) -> None:
    code = (
        "import sys, torch.distributed as dist\n"
        "import mint_train\n"
        f"mint_train.train('dpo', data={str(short_pairs)!r}, steps=1, output='run', progress='quiet')\n"
        "assert not dist.is_initialized()\n"
        "assert not [name for name in sys.modules if name.startswith('mint_train.backends.local.') and\n"
        "            name.endswith(('.group', '.part', '.leading', '.serving'))]\n"
    )
    assert subprocess.run([warm_python, "-c", code], timeout=120).returncode == 0


def only_line(ended: Ended) -> str:
    """The one line on standard error, of all processes together."""
    (line,) = ended.err.splitlines()
    return line


WATCHED = """
import os
import torch.distributed as dist
from mint_train.cli.main import main
try:
    main()
finally:
    if dist.is_initialized():
        os.write(2, b"torch's threads outlive Python, which aborts the process now and then")
"""
"""A process that says if it keeps its connections to the end."""


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_process_ends_all_and_the_run_goes_on_from_its_last_step(
    killed: int, run_cli: RunCli, warm_python: str
) -> None:
    command = ("--loss", "dpo", *SMALL, "--steps", 500, "--schedule", "constant", "--json")
    with started(warm_python, 3, *command, "--output", "run", last=("-c", WATCHED)) as several:
        several.wait_for('"step": 2,')
        several.processes[killed].kill()
        ended = several.end()
    assert ended.statuses[killed] == -9
    assert [status for rank, status in enumerate(ended.statuses) if rank != killed] == [1, 1], ended.err
    if killed == 0:  # nobody is left to say anything
        assert ended.err == ""
        return
    assert "another process of this run has ended" in only_line(ended)
    assert description("run")["status"] == "failed"
    saved = checkpoints("run")[-1]["step"]
    assert saved == metrics("run")[-1]["step"] >= 2
    assert run_cli("resume", "run", "--steps", saved + 1, "--quiet")[0] == 0


FORGETFUL = """
import resource
from mint_train.backends.local.part import Part
compute = Part.forward_backward
def limited(*given):
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    return compute(*given)
Part.forward_backward = limited
from mint_train.cli.main import main
main()
"""
"""A process that gets no more memory once it trains."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_runs_out_in_one_process_ends_all(warm_python: str, write_rows: Any) -> None:
    long = " ".join(f"word {number}" for number in range(1000))
    rows = [{"prompt": "Say it.", "chosen": f"{n} {long}", "rejected": f"no {n} {long}"} for n in range(8)]
    command = ("--loss", "dpo", "--data", write_rows(rows), "--max-length", 100_000, "--output", "run")
    ended = run(warm_python, 2, *command, last=("-c", FORGETFUL))
    assert ended.statuses == [1, 0], ended.err
    assert "step 1: process 1: not enough memory" in only_line(ended)


DRIFTING = """
import torch
from mint_train.backends.local.client import LocalTrainingClient
update = LocalTrainingClient.optim_step
def drifting(self, params):
    with torch.no_grad():
        next(iter(self.parameters.values()))[0, 0] += 1e-6
    return update(self, params)
LocalTrainingClient.optim_step = drifting
from mint_train.cli.main import main
main()
"""
"""A process whose weights become others."""


def test_weights_that_differ_are_not_saved(warm_python: str) -> None:
    command = ("--loss", "dpo", *SMALL, "--output", "run")
    ended = run(warm_python, 2, *command, last=("-c", DRIFTING))
    assert ended.statuses == [1, 0]
    assert "the weights of process 1 are not those of process 0" in only_line(ended)
    assert not Path("run", "checkpoints.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_after_the_step(
    number: signal.Signals, run_cli: RunCli, warm_python: str
) -> None:
    command = ("--loss", "dpo", *SMALL, "--steps", 500, "--schedule", "constant", "--json")
    with started(warm_python, 2, *command, "--output", "run") as several:
        several.wait_for('"step": 2,')
        several.send(number)
        ended = several.end()
    assert ended.statuses == [130, 0]
    assert "Stopping after this step" in only_line(ended)
    saved = checkpoints("run")[-1]["step"]
    assert saved == metrics("run")[-1]["step"]
    assert run(warm_python, 2, "resume", "run", "--steps", saved + 1, "--quiet").statuses == [0, 0]


def test_a_second_interrupt_ends_all_at_once(warm_python: str) -> None:
    command = ("--loss", "dpo", *SMALL, "--steps", 500, "--json", "--output", "run")
    with started(warm_python, 2, *command) as several:
        several.wait_for('"step": 2,')
        several.send(signal.SIGINT)
        several.send(signal.SIGINT)
        ended = several.end()
    assert ended.statuses[0] == 130
    assert json.loads(Path("run", "run.json").read_text())["status"] == "interrupted"


ALONE = "runs in one process: start it without torchrun"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("eval", "run"), f"mint-train eval {ALONE}"),
        (("compare", "dpo", "ipo"), f"mint-train compare {ALONE}"),
        (
            ("--loss", "dpo", "--rounds", 2, "--prompts", "rows.jsonl", "--judge", "length"),
            f"--rounds {ALONE}",
        ),
        (("--loss", "dpo", "--backend", "mint"), f"Training on a service (--backend mint) {ALONE}"),
        (("--loss", "dpo", "--steps", 0), "--steps"),
        (("--loss", "dpo", "--model", "./nowhere"), "this folder does not exist"),
    ],
)
def test_what_is_wrong_is_said_once(arguments: tuple[Any, ...], problem: str, warm_python: str) -> None:
    ended = run(warm_python, 2, *arguments)
    assert ended.statuses == [2, 0]
    assert problem in only_line(ended)
    assert not list(Path.cwd().glob("runs/*"))


def test_a_python_program_trains_in_one_process(monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(mint_train.MintTrainError, match=f"A Python program {ALONE}"):
        train()


def test_processes_of_several_machines_are_refused(warm_python: str) -> None:
    ended = run(warm_python, 2, "--loss", "dpo", LOCAL_WORLD_SIZE="1")
    assert ended.statuses == [2, 2]
    assert "several machines" in only_line(ended)


def sequence(tokens: list[int]) -> TokenSequence:
    inputs = torch.tensor(tokens)
    return TokenSequence(inputs, inputs, torch.tensor([token != 0 for token in tokens]))


def rows(sequences: list[TokenSequence]) -> int:
    return sum(pack.rows for pack in plan_packs(sequences, 10**6, min_shared=1))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=12), st.integers(1, 5))
@settings(deadline=None)
def test_each_sequence_is_in_one_part_and_no_part_is_too_large(tokens: list[list[int]], parts: int) -> None:
    sequences = [sequence(each) for each in tokens]
    divided = divide_sequences(sequences, parts, min_shared=1)
    assert len(divided) == parts
    assert sorted(index for part in divided for index in part) == list(range(len(sequences)))
    largest = max(rows([sequences[index] for index in part]) for part in divided)
    longest = max(map(len, tokens), default=0)
    assert largest <= rows(sequences) / parts + longest


def test_sequences_of_one_prompt_stay_together() -> None:
    prompts = [[number] * 20 for number in (1, 2, 3, 4)]
    sequences = [sequence([*prompt, end]) for end in (5, 6) for prompt in prompts]
    divided = divide_sequences(sequences, 2)
    assert sorted(sorted(index % 4 for index in part) for part in divided) == [[0, 0, 1, 1], [2, 2, 3, 3]]
