"""What a run outlives: a second process, a full disk, a failing service; and what a resume refuses."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from run_files import adapter, checkpoints, description, flat, metrics, state
from safetensors.torch import load, save_file

from mint_train.backends.base import Gradients
from mint_train.backends.local.backend import LocalBackend
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.errors import OptionError, ServiceError
from mint_train.groups.reference import read_file
from mint_train.groups.reference_store import STORE
from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.base_model import sampled_sha256
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import STATE_FILE

Train = Callable[..., Any]
Cli = Callable[..., Any]

# accumulation


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_batches_of_a_step_add_up_to_the_batch_that_holds_them_all(train: Train, loss: str) -> None:
    """Five rows in batches of two: the last batch of an epoch is smaller and must count for less."""
    train(loss, output=Path("accumulated"), batch_size=2, accumulate=3, steps=3)
    train(loss, output=Path("whole"), batch_size=6, steps=3)
    for name in ("loss", "pair_accuracy", "mean_margin", "tokens"):
        accumulated, whole = ([flat(line)[name] for line in metrics(run)] for run in ("accumulated", "whole"))
        assert accumulated == pytest.approx(whole, rel=1e-5, abs=1e-6)
    one, other = load(adapter("accumulated")), load(adapter("whole"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in other)


def test_a_loss_over_whole_batches_is_taken_batch_by_batch(
    train: Train, install_loss: Callable[..., None]
) -> None:
    from mint_train import loss, sequence_logprobs

    @loss(extends="dpo")
    def spread(batch, logprobs):
        """Not a mean over pairs: its value depends on which of them are together."""
        scores = sequence_logprobs(logprobs, batch)
        return (scores[::2] - scores[1::2]).logsumexp(0), {"pairs": len(batch.groups)}

    install_loss("spread", spread)
    train("spread", output=Path("accumulated"), batch_size=2, accumulate=2, steps=1)
    train("spread", output=Path("whole"), batch_size=4, steps=1)
    assert metrics("accumulated")[0]["metrics"]["pairs"] == 2
    assert metrics("accumulated")[0]["tokens"] == metrics("whole")[0]["tokens"]
    assert metrics("accumulated")[0]["metrics"]["loss"] != pytest.approx(
        metrics("whole")[0]["metrics"]["loss"], rel=1e-3
    )


def test_an_epoch_counts_its_steps_in_accumulated_batches(train: Train) -> None:
    assert train(steps=None, epochs=2, batch_size=2, accumulate=2).steps == 4


# checkpoints


def test_only_the_newest_states_are_kept(train: Train, run_cli: Cli) -> None:
    train(steps=5, save_every=1, keep=2, output=Path("run"))
    assert [line["step"] for line in checkpoints("run")] == [4, 5]
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["step-000004", "step-000005"]
    assert run_cli("resume", "run", "--steps", 6, "--keep", 1).status == 0
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-000006"]


# a second process


def test_a_folder_in_use_is_refused(train: Train, run_cli: Cli) -> None:
    train(steps=2)
    before = metrics("run")
    with RunFolder(Path("run")):
        for arguments in (["resume", "run"], ["--loss", "dpo", "--output", "run", "--overwrite"]):
            status, _, err = run_cli(*arguments)
            assert (status, err.count("\n")) == (2, 1)
            assert "run is in use by another process" in err
    assert metrics("run") == before
    assert run_cli("resume", "run").status == 0


def test_a_lock_ends_with_its_process(train: Train, run_cli: Cli) -> None:
    train(steps=2)
    holder = "import sys; from pathlib import Path; from mint_train.run_folder.folder import RunFolder\n"
    holder += "with RunFolder(Path('run')): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert run_cli("resume", "run").status == 2
    process.kill()
    process.communicate()
    assert run_cli("resume", "run").status == 0


def test_resuming_what_is_no_run_makes_no_folder(run_cli: Cli) -> None:
    status, _, err = run_cli("resume", "nowhere")
    assert (status, err) == (
        2,
        "mint-train: nowhere holds no run: there is no run.json in it\n",
    )
    assert not Path("nowhere").exists()


# a program that changes its current folder


@pytest.mark.parametrize("reference", ["none", "initial"])
def test_a_run_stays_in_its_folder_when_the_program_moves(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    """Where it moves to there is a finished run of the same name."""
    given: dict[str, Any] = {"steps": 4, "save_every": 2, "options": {"reference": reference}}
    given |= {"eval_fraction": 0.4, "eval_every": 1}
    train(output=Path("unbroken"), **given)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    train("ipo", steps=1, output=elsewhere / "run")
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}

    class Moving:
        @hookimpl
        def step_finished(self, step: Any) -> None:
            if step.step == 2:
                monkeypatch.chdir(elsewhere)

    train(output=Path("run"), observers=[Moving()], **given)
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before
    monkeypatch.chdir(tmp_path)
    assert (metrics("run"), adapter("run")) == (metrics("unbroken"), adapter("unbroken"))
    assert description("run")["status"] == "done"


def test_a_path_among_options_is_found_from_another_folder(
    train: Train,
    run_cli: Cli,
    install_loss: Callable[[str, object], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mint_train_dpo.plugin import DPOOptions

    class Reading(DPOOptions):
        file: Path = Field(description="A file with a number.")

    class Plugin:
        EXTENDS = "dpo"

        @hookimpl
        def loss_options(self) -> type[Reading]:
            return Reading

        @hookimpl
        def compute_loss(self, logprobs: Any, options: Reading) -> Any:
            number = float(options.file.read_text())
            return torch.stack([one.sum() for one in logprobs]).mean(), {"number": number}

    install_loss("reading", Plugin())
    Path("number.txt").write_text("0.5")
    train("reading", steps=2, options={"file": "number.txt"}, output=tmp_path / "run")
    assert run_cli("resume", "run", "--steps", 3, "--set", "file=number.txt").status == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    Path("number.txt").write_text("3.0")
    assert run_cli("resume", "../run", "--steps", 4).status == 0
    assert [flat(line)["number"] for line in metrics("../run")] == [0.5] * 4
    status, _, err = run_cli("resume", "../run", "--steps", 5, "--set", "file=number.txt")
    assert (status, "would make it a different run" in err) == (2, True)


# what a resume may change


@pytest.mark.parametrize(
    ("given", "before"),
    [
        (["--lr", "0.5"], "0.001"),
        (["--schedule", "cosine"], "constant"),
        (["--batch-size", "3"], "2"),
        (["--accumulate", "3"], "1"),
        (["--seed", "1"], "0"),
        (["--loss", "ipo"], "dpo"),
        (["--data", "other.jsonl"], "pairs.jsonl"),
        (["--set", "beta=0.5"], "0.1"),
        (["--set", "reference=initial"], "none"),
    ],
)
def test_a_resume_refuses_what_makes_it_another_run(
    train: Train, run_cli: Cli, given: list[str], before: str
) -> None:
    train(steps=2, options={"beta": "0.1"})
    left = metrics("run"), description("run")
    status, _, err = run_cli("resume", "run", *given)
    assert (status, err.count("\n")) == (2, 1)
    assert given[0] in err
    assert given[1] in err
    assert f"{before}; changing it would make it a different run" in err
    assert (metrics("run"), description("run")) == left


def test_a_resume_takes_what_changes_nothing_of_the_training(
    train: Train, run_cli: Cli, short_pairs: Path
) -> None:
    train(steps=4, save_every=2)
    unbroken = metrics("run"), adapter("run")
    Path("run/checkpoints.jsonl").write_text(json.dumps(checkpoints("run")[0]) + "\n")
    same = ["--lr", "0.001", "--data", short_pairs.name, "--set", "beta=1.0", "--seed", 0]
    ended = run_cli("resume", "run", *same, "--save-every", 1, "--no-pipeline", "--max-tokens-in-flight", 64)
    assert ended.err == ""
    assert ended.out.startswith("Backend local (as when the run began), model: ")
    assert [line["step"] for line in checkpoints("run")] == [2, 3, 4]
    assert description("run")["settings"]["save_every"] == 1
    assert [flat(line) for line in metrics("run")] == [
        pytest.approx(flat(line), rel=1e-5) for line in unbroken[0]
    ]


def test_a_resume_may_repeat_a_reference_as_it_was_typed(
    train: Train, run_cli: Cli, starter_model_folder: Path
) -> None:
    for folder in ("ref", "other"):
        shutil.copytree(starter_model_folder, folder)
    train(steps=3, options={"reference": "ref"}, output=Path("unbroken"))
    train(steps=2, options={"reference": "ref"})
    assert run_cli("resume", "run", "--steps", 3, "--set", "reference=ref").status == 0
    assert (metrics("run"), adapter("run")) == (metrics("unbroken"), adapter("unbroken"))
    status, _, err = run_cli("resume", "run", "--set", "reference=other")
    assert (status, "would make it a different run" in err) == (2, True)


@pytest.mark.parametrize("loss", ["mine", "mine+0.5*dpo"])
def test_a_plugin_with_other_defaults_does_not_go_on_without_a_word(
    train: Train, run_cli: Cli, install_loss: Callable[[str, object], None], loss: str
) -> None:
    from mint_train_dpo.plugin import DPOOptions

    class Mine(DPOOptions):
        beta: float = Field(default=0.1, description="A number.")

    class Later(DPOOptions):
        beta: float = Field(default=5.0, description="A number.")

    class Plugin:
        """Has one default, and later another."""

        EXTENDS = "dpo"
        options: type[DPOOptions] = Mine

        @hookimpl
        def loss_options(self) -> type[DPOOptions]:
            return self.options

    beta = "mine.beta" if "+" in loss else "beta"
    install_loss("mine", plugin := Plugin())
    train(loss, steps=3, eval_fraction=0.4, output=Path("unbroken"))
    train(loss, steps=2, eval_fraction=0.4)
    before = run_cli("eval", "run").out
    plugin.options = Later
    for command in (["resume", "run", "--steps", 3], ["eval", "run"]):
        status, _, err = run_cli(*command)
        assert status == 2
        assert err == (
            f"mint-train: option {beta} is 5.0 by default now, and the run began with 0.1: the plugin has "
            f"changed; add --set {beta}=0.1\n"
        )
    assert run_cli("eval", "run", "--set", f"{beta}=0.1").out == before
    assert run_cli("resume", "run", "--steps", 3, "--set", f"{beta}=0.1").status == 0
    assert (metrics("run"), adapter("run")) == (metrics("unbroken"), adapter("unbroken"))


OPTIONS = """
import math
from enum import Enum
from pathlib import Path
from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator
from mint_train import hookimpl
from mint_train_dpo.plugin import DPOOptions

EXTENDS = "dpo"

class Form(Enum):
    ONE = "one"

class Inner(BaseModel):
    numbers: tuple[float, ...] = (0.1, 0.2)

class Many(DPOOptions):
    model_config = ConfigDict(validate_default=True, allow_inf_nan=True)
    layers: set[int] = Field(default={7, 15}, description="A set.")
    names: frozenset[str] = Field(default=frozenset("abcdefg"), description="A set.")
    clip: float = Field(default=math.inf, description="A number.")
    none: float = Field(default=math.nan, description="A number.")
    form: Form = Field(default=Form.ONE, description="A choice.")
    inner: Inner = Field(default=Inner(), description="A table.")
    pair: tuple[int, int] = Field(default=(1, 2), description="Two numbers.")
    percent: float = Field(default=50.0, description="A share.")

    @field_validator("percent")
    @classmethod
    def as_share(cls, value: float) -> float:
        return value / 100

    @computed_field
    @property
    def twice(self) -> float:
        return 2 * self.beta

@hookimpl
def loss_options():
    return Many
"""


def test_options_of_every_kind_are_those_that_the_run_began_with(train: Train, run_cli: Cli) -> None:
    Path("options_of_a_test.py").write_text(OPTIONS)
    train("./options_of_a_test.py", steps=1, eval_fraction=0.4)
    for seed in ("1", "2"):  # a set of texts has another order
        command = [sys.executable, "-m", "mint_train", "resume", "run", "--steps", str(int(seed) + 1)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed}, check=False
        )
        assert done.returncode == 0, done.stderr
    assert run_cli("eval", "run").status == 0
    status, _, err = run_cli("resume", "run", "--set", "clip=3.0")
    assert (status, "would make it a different run" in err) == (2, True)


OWN_LOSS = '''
import torch
from factor_of_a_test import FACTOR
from mint_train import loss, sequence_logprobs

@loss(extends="dpo")
def scaled(batch, logprobs):
    """Push each chosen above its rejected."""
    scores = sequence_logprobs(logprobs, batch)
    return batch.mean(torch.nn.functional.softplus(FACTOR * (scores[1::2] - scores[::2])))
'''


def test_a_loss_file_counts_with_what_it_imports(
    train: Train, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("scaled_of_a_test.py").write_text(OWN_LOSS)
    helper = tmp_path / "factor_of_a_test.py"
    helper.write_text("FACTOR = 1.0\n")
    train("./scaled_of_a_test.py", steps=1, eval_fraction=0.4)
    assert run_cli("resume", "run", "--steps", 2).status == 0
    assert helper.name in description("run")["loss_files"], "by its name from here: both may be moved"
    helper.write_text("FACTOR = -1.0\n")
    for command in (["resume", "run", "--steps", 3], ["eval", "run"]):
        status, _, err = run_cli(*command)
        assert (status, err.count("\n")) == (2, 1)
        assert (
            f"{helper.name} has changed since run was trained with it; restore it, or start a new run" in err
        )


def test_the_function_of_a_program_is_known_by_its_code(train: Train) -> None:
    from mint_train import loss, resume, sequence_logprobs

    def signed(sign: float) -> Any:
        @loss(extends="dpo")
        def pushed(batch, logprobs):
            """Push each chosen above its rejected."""
            scores = sequence_logprobs(logprobs, batch)
            return batch.mean(torch.nn.functional.softplus(sign * (scores[1::2] - scores[::2])))

        return pushed

    train(signed(1.0), steps=1)
    with pytest.raises(OptionError, match=r"the function .*pushed has changed since this run began"):
        resume("run", loss=signed(-1.0), steps=2)
    assert resume("run", loss=signed(1.0), steps=2).status == "done"
    described = description("run")
    version, _, digest = described["function"]["code"].rpartition(" ")
    assert version == f"python {sys.version_info.major}.{sys.version_info.minor}"
    described["function"]["code"] = f"python 3.10 {digest[::-1]}"
    Path("run/run.json").write_text(json.dumps(described))
    assert resume("run", loss=signed(1.0), steps=3).status == "done"


def test_a_plugin_of_another_version_is_named(train: Train, run_cli: Cli) -> None:
    train(steps=2, eval_fraction=0.4)
    described = description("run")
    described["losses"][0]["plugins"]["dpo"] = "mint-train-dpo 0.0.1"
    Path("run/run.json").write_text(json.dumps(described))
    for command in (["eval", "run"], ["resume", "run", "--steps", 3]):
        status, _, err = run_cli(*command)
        assert status == 0
        assert 'The plugin "dpo" is mint-train-dpo ' in err
        assert "now; the run began with mint-train-dpo 0.0.1." in err


def test_a_weighted_sum_is_resumed_with_the_options_of_its_parts(train: Train, run_cli: Cli) -> None:
    train("dpo+0.2*ipo", steps=2, options={"dpo.reference": "initial"})
    status, _, err = run_cli("resume", "run", "--set", "dpo.beta=0.5")
    assert (status, "--set dpo.beta=0.5: this run was started with 1.0" in err) == (2, True)
    assert run_cli("resume", "run", "--steps", 3).status == 0


def test_a_run_may_be_made_longer_where_no_schedule_hangs_on_its_length(train: Train, run_cli: Cli) -> None:
    train(steps=6, output=Path("unbroken"))
    train(steps=3)
    assert run_cli("resume", "run", "--steps", 6).status == 0
    assert (metrics("run"), adapter("run")) == (metrics("unbroken"), adapter("unbroken"))
    status, _, err = run_cli("resume", "run", "--steps", 5)
    assert (status, "--steps 5: this run has already taken 6 steps" in err) == (2, True)
    train(steps=3, schedule="linear", output=Path("linear"))
    status, _, err = run_cli("resume", "linear", "--steps", 6)
    assert (status, "--steps 6: this run was started with 3" in err) == (2, True)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda run: run["settings"].update(lr=0.5), "has been edited"),
        (lambda run: run["data"].update(sha256="0"), "has been edited"),
        (
            lambda run: run.update(format=1),
            "written by another version of mint-train (format 1, this one reads 3); continue the run with",
        ),
        (lambda run: run.pop("format"), "written by another version of mint-train"),
        (lambda run: run.update(added="by hand"), "reads (added: extra inputs are not permitted)"),
    ],
)
def test_an_edited_description_is_refused(
    train: Train, run_cli: Cli, edit: Callable[[dict[str, Any]], Any], problem: str
) -> None:
    train(steps=1)
    run = description("run")
    edit(run)
    Path("run/run.json").write_text(json.dumps(run))
    status, _, err = run_cli("resume", "run")
    assert (status, err.count("\n")) == (2, 1)
    assert problem in err


# a disk that fills up


def limited(python: str, limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process whose files may not grow beyond a limit; it keeps no compiled module.

    Python would take one that the limit cut off for whole, and so would every process after it.
    """
    return subprocess.run(
        [python, *arguments],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_ends_the_run_and_leaves_the_last_good_checkpoint(
    train: Train, run_cli: Cli, warm_python: str
) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses the state in the middle."""
    train(steps=6, output=Path("unbroken"))
    train(steps=3)
    size = len(state("run", 3))
    ended = limited(warm_python, size // 2, "-m", "mint_train", "resume", "run", "--steps", "6")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "the state cannot be saved" in ended.stderr
    assert "mint-train resume run" in ended.stdout
    assert checkpoints("run")[-1]["step"] == 3
    assert not list(Path("run").rglob("*.part"))
    assert run_cli("resume", "run").status == 0
    assert (metrics("run"), adapter("run")) == (metrics("unbroken"), adapter("unbroken"))


def test_a_line_that_does_not_fit_leaves_no_torn_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    append = "import sys; from pathlib import Path; from mint_train.run_folder.files import append_line\n"
    append += "for step in range(100): append_line(Path('lines.jsonl'), {'step': step, 'more': 'x' * 50})"
    ended = limited(sys.executable, 1000, "-c", append)
    assert "lines.jsonl cannot be written: File too large" in ended.stderr
    text = (tmp_path / "lines.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(13))


def test_a_reference_that_does_not_fit_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write = "import torch; from pathlib import Path; from mint_train.groups.reference import write_file\n"
    write += "for size in (10, 10_000): write_file(Path(f'reference/{size}.arrow'), [torch.ones(size)], [1])"
    ended = limited(warm_python, 5000, "-c", write)
    assert "reference/10000.arrow cannot be written" in ended.stderr
    assert [path.name for path in tmp_path.rglob("*.*")] == ["10.arrow"]
    logprobs, starts = read_file(Path("reference/10.arrow"))
    assert (logprobs[0].tolist(), starts) == ([1.0] * 10, [0, 1])


def test_tokens_that_do_not_fit_are_one_line(
    short_pairs: Path,
    starter_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm_python: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINT_TRAIN_CACHE", str(tmp_path / "tokens"))
    arguments = ["--loss", "dpo", "--data", str(short_pairs), "--model", str(starter_model_folder)]
    ended = limited(warm_python, 1000, "-m", "mint_train", *arguments, "--output", "run")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "tokens, where tokenised data is kept, cannot be written to" in ended.stderr
    assert not list((tmp_path / "tokens").iterdir())
    assert not Path("run").exists()


# a service that fails


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, set[int]], None]:
    """Let numbered calls of the real client fail as a service does: `failing("optim_step", {3})`."""
    monkeypatch.setattr("mint_train.training.preparing.LONGEST_PAUSE", 0.0)

    def fail(name: str, numbers: set[int]) -> None:
        call = getattr(LocalTrainingClient, name)
        count = 0

        def counted(self: Any, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            answer = call(self, *arguments)
            if count in numbers:
                raise ServiceError("the service failed")
            return answer

        monkeypatch.setattr(LocalTrainingClient, name, counted)

    return fail


@pytest.mark.parametrize("call", ["forward_backward_custom", "optim_step", "save_state"])
def test_a_run_goes_back_to_its_last_checkpoint_when_the_service_fails(
    train: Train, failing: Callable[..., None], call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each failure comes after the service did what it was asked: no update may count twice."""
    options = {"reference": "initial"}
    train(steps=6, save_every=2, output=Path("unbroken"), options=options)
    failing(call, {1, 3, 4})
    result = train(steps=6, save_every=2, options=options)
    assert (result.status, result.steps) == ("done", 6)
    assert (metrics("run"), adapter("run")) == (metrics("unbroken"), adapter("unbroken"))
    assert [line["step"] for line in checkpoints("run")] == [2, 4, 6]
    assert "going back to step 0" in capsys.readouterr().out


def test_a_failure_while_the_reference_is_computed_is_met_with_another_client(
    train: Train, failing: Callable[..., None], own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"reference": "initial"}
    train(steps=2, output=Path("unbroken"), options=options)
    shutil.rmtree(own_cache / STORE)  # else the next run would ask for nothing
    failing("forward_reference", {1, 2})
    assert train(steps=2, options=options).status == "done"
    assert capsys.readouterr().out.count("the service failed; going back to step 0") == 2
    assert (metrics("run"), adapter("run")) == (metrics("unbroken"), adapter("unbroken"))
    shutil.rmtree(own_cache / STORE)
    failing("forward_reference", set(range(100)))
    with pytest.raises(ServiceError):
        train(steps=2, options=options, max_retries=1, output=Path("never"))
    assert not Path("never").exists()


def test_a_service_that_has_another_version_after_a_failure_is_said(
    train: Train, failing: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    open_client, forms = LocalBackend.open_client, iter(["cross_entropy", "importance_sampling"])

    def opened(backend: LocalBackend, *arguments: Any, **options: Any) -> Any:
        client, form = open_client(backend, *arguments, **options), next(forms)
        client.gradients = Gradients(form, f"Gradients are sent as {form}.")
        return client

    monkeypatch.setattr(LocalBackend, "open_client", opened)
    failing("optim_step", {3})
    assert train(steps=4, save_every=2).status == "done"
    out = capsys.readouterr().out
    assert out.index("sent as cross_entropy") < out.index("back to step 2") < out.index("sent as importance")
    assert description("run")["gradients"] == "importance_sampling"


def test_a_service_that_stays_away_ends_the_run_after_the_retries(
    train: Train, failing: Callable[..., None], run_cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    failing("optim_step", set(range(4, 100)))
    with pytest.raises(ServiceError, match=r"^step 3: the service failed \(retried 2 times\)$"):
        train(steps=6, save_every=2, max_retries=2)
    assert "The state after step 2 is saved; continue with: mint-train resume run" in capsys.readouterr().out
    assert (description("run")["status"], description("run")["finished_steps"]) == ("failed", 2)
    assert [line["step"] for line in metrics("run")] == [1, 2]


def test_other_failures_are_not_tried_again(
    train: Train, failing: Callable[..., None], tmp_path: Path
) -> None:
    calls = []

    def diverges(batch, logprobs):
        calls.append(1)
        return torch.cat(list(logprobs)).sum() * torch.inf

    from mint_train import loss
    from mint_train.errors import LossError

    with pytest.raises(LossError):
        train(loss(extends="dpo")(diverges), max_retries=5)
    assert len(calls) < 10


# a base model that changes


def change_weights(model: Path) -> str:
    weights = load((model / "model.safetensors").read_bytes())
    save_file({name: 1.1 * value for name, value in weights.items()}, model / "model.safetensors")
    return "model.safetensors"


def change_template(model: Path) -> str:
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    return template.name


@pytest.mark.parametrize("change", [change_weights, change_template])
@pytest.mark.parametrize("own", [True, False])
def test_a_base_model_that_has_changed_is_refused(
    train: Train,
    run_cli: Cli,
    starter_model_folder: Path,
    change: Callable[[Path], str],
    own: bool,
) -> None:
    model = Path("run/base_model") if own else Path("model")
    if not own:
        shutil.copytree(starter_model_folder, model)
    train(steps=1, model=None if own else str(model))
    name = change(model)
    left = metrics("run"), checkpoints("run")
    for command in (
        ["resume", "run", "--steps", 2],
        ["eval", "run", "--data", "pairs.jsonl"],
        ["sample", "run", "--prompt", "Hello"],
        ["export", "run", "--to", "merged", "--output", "merged"],
        ["--loss", "dpo", "--data", "pairs.jsonl", "--from", "run", "--output", "next"],
    ):
        status, _, err = run_cli(*command)
        assert (status, f"{name} has changed since the run began with this base model" in err) == (2, True)
        assert err.count("\n") == 1
    assert (metrics("run"), checkpoints("run")) == left
    assert not Path("merged").exists()
    assert not Path("next").exists()


@pytest.mark.parametrize("saved", [True, False])
def test_a_reference_that_has_changed_is_refused(
    train: Train, run_cli: Cli, starter_model_folder: Path, saved: bool
) -> None:
    if saved:
        train(steps=1, output="before", model=str(starter_model_folder))
        reference = Path(RunFolder(Path("before")).checkpoints()[-1].state)
        weights = reference / STATE_FILE
    else:
        reference = Path(shutil.copytree(starter_model_folder, "reference"))
        weights = reference / "model.safetensors"
    options = {"reference": str(reference)}
    train(steps=1, model=str(starter_model_folder), options=options, eval_fraction=0.4)
    card = Path("run/adapter/README.md").read_text(encoding="utf-8")
    assert f"reference={reference.name} |" in card, "its path is private"
    assert run_cli("eval", "run", "--data", "pairs.jsonl")[0] == 0
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    for command in (["resume", "run", "--steps", 2], ["eval", "run", "--data", "pairs.jsonl"]):
        status, _, err = run_cli(*command)
        assert status == 2
        assert f"{weights} has changed since the run began with this reference; put the folder back" in err
        assert err.count("\n") == 1
    others = ["--loss", "dpo", "--set", "reference=none"]
    assert run_cli("eval", "run", "--data", "pairs.jsonl", *others)[0] == 0


@pytest.mark.parametrize("link", [True, False])
def test_a_run_finds_its_reference_from_anywhere(
    train: Train, run_cli: Cli, starter_model_folder: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    """Neither a folder of that name elsewhere nor a link that has moved is taken for it."""
    shutil.copytree(starter_model_folder, "right")
    change_weights(Path(shutil.copytree(starter_model_folder, "elsewhere/right")))
    name = "latest" if link else "right"
    if link:
        Path("latest").symlink_to("right")
    train(steps=1, model=str(starter_model_folder), options={"reference": name}, eval_fraction=0.4)
    shutil.rmtree("run/reference")
    data = Path("pairs.jsonl").resolve()
    expected = figures(run_cli("eval", "run", "--data", data))
    if link:
        Path("latest").unlink()
        Path("latest").symlink_to("elsewhere/right")
    else:
        monkeypatch.chdir("elsewhere")
    run = Path("run" if link else "../run")
    shutil.rmtree(run / "reference", ignore_errors=True)
    assert figures(run_cli("eval", run, "--data", data)) == expected


def figures(ended: Any) -> str:
    """Return the line of an evaluation's figures."""
    assert ended.status == 0, ended.err
    return next(line for line in ended.out.splitlines() if "rewards/margin=" in line)


def test_an_evaluation_with_another_reference_is_of_that_as_it_is(
    train: Train, run_cli: Cli, starter_model_folder: Path
) -> None:
    train(steps=1, model=str(starter_model_folder), eval_fraction=0.4)
    shutil.copytree(starter_model_folder, "other")
    evaluate = ("eval", "run", "--data", "pairs.jsonl", "--loss", "dpo", "--set", "reference=other")
    before = figures(run_cli(*evaluate))
    assert figures(run_cli(*evaluate)) == before
    change_weights(Path("other"))
    assert figures(run_cli(*evaluate)) != before


def test_large_weights_are_sampled_over_their_whole_length(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = bytearray(40_000_000)
    path.write_bytes(content)
    before = sampled_sha256(path)
    for changed in (slice(0, 1), slice(20_000_000, 20_050_000), slice(39_950_000, 40_000_000)):
        path.write_bytes(
            content[: changed.start] + b"x" * (changed.stop - changed.start) + content[changed.stop :]
        )
        assert sampled_sha256(path) != before


@pytest.mark.parametrize("start", ["run", "run@1", "run/adapter"])
def test_a_run_does_not_replace_the_one_that_it_begins_with(train: Train, run_cli: Cli, start: str) -> None:
    train(steps=1)
    left = description("run")
    again = ["--loss", "dpo", "--data", "pairs.jsonl", "--from", start, "--output", "run", "--overwrite"]
    status, _, err = run_cli(*again)
    assert (status, f"--from {start} is in run, the folder of --output" in err) == (2, True)
    assert description("run") == left
