"""Servers that want a newer SDK: `mint-train` with that SDK, as a user has it, from training to sampling."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import native_losses
import pytest
from adapters import adapter_on_disk, distance, load_adapter, moved
from chained_runs import PEFT_WARNS, check_chained_runs
from environments import SDKS, installed_sdk, newer_skyrl
from few_rows import write_lines
from run_files import checkpoints, description, metrics
from server import TUFT_KEY, SkyrlServer, running_server, running_tuft
from short_rows import LOSSES, write_short_rows
from warm_python import started

SDK, TOO_NEW = SDKS
DETACHED = '''
from mint_train import loss
from mint_train_dpo import Pairs, bradley_terry


@loss(extends="dpo")
def detached(batch, logprobs, options):
    """DPO whose chosen side has no gradient."""
    pairs = Pairs.of(batch, logprobs)
    margins = pairs.margins - pairs.chosen + pairs.chosen.detach()
    return batch.mean(bradley_terry(options.beta * margins)), pairs.metrics()
'''

LINEAR_STEPS = 3
HELPERS = [str(folder) for folder in Path(__file__).parents[:2]]
"""Where a process of its own finds the helpers of these tests."""

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", params=["tuft", "skyrl-0.4.0"])
def server(
    request: pytest.FixtureRequest, starter_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SkyrlServer]:
    work = tmp_path_factory.mktemp(request.param)
    if request.param == "tuft":
        with running_tuft(starter_model_folder, work) as server:
            yield server
        return
    environment = newer_skyrl()
    if environment is None:
        pytest.skip("SkyRL 0.4.0 needs Python 3.12 or newer, and there is none")
    with running_server(starter_model_folder, work, environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows to train on and others to evaluate on."""
    folder = tmp_path_factory.mktemp("runs")
    write_short_rows(folder)
    (folder / "detached.py").write_text(DETACHED)
    return folder


@pytest.fixture(scope="module")
def variables(server: SkyrlServer, folder: Path) -> dict[str, str]:
    return {
        "MINT_API_KEY": TUFT_KEY,
        "MINT_BASE_URL": server.base_url,
        "MINT_BASE_MODEL": server.model,
        "MINT_TRAIN_CACHE": str(folder / "cache"),
    }


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    """The command of a Python with the SDK that fits the servers."""
    with (
        tempfile.TemporaryDirectory(prefix="mt") as short,
        started(Path(short), installed_sdk(SDK)) as python,
    ):
        yield python


@pytest.fixture(scope="module")
def run(python: str, variables: dict[str, str], folder: Path) -> Cli:
    """Run `mint-train` in a process of its own."""

    def run_with(*arguments: object) -> subprocess.CompletedProcess[str]:
        return run_process([python, "-m", "mint_train", *map(str, arguments)], folder, variables)

    return run_with


def run_process(
    command: list[str], folder: Path, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command with variables of its own."""
    return subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def trained(run: Cli, server: SkyrlServer, folder: Path) -> str:
    """A run of DPO with its reference, checkpoints after 4 and 8 steps."""
    output = Path(server.log).parent.name
    done = run(
        "--loss", "dpo", "--data", "pairs.jsonl", "--set", "reference=initial", "--lr", "1e-3", "--steps", 8,
        "--save-every", 4, "--output", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Gradients are sent as" in done.stdout
    return output


def losses(folder: Path) -> list[float]:
    return [line["metrics"]["loss"] for line in metrics(folder)]


def test_dpo_learns(trained: str, folder: Path) -> None:
    found = losses(folder / trained)
    assert found == sorted(found, reverse=True)
    assert found[-1] <= 0.3
    assert description(folder / trained)["versions"]["tinker"] == SDK
    form = "cross_entropy" if trained.startswith("tuft") else "importance_sampling"
    assert description(folder / trained)["gradients"] == form


def test_the_gradient_of_the_chosen_side_matters(trained: str, run: Cli, folder: Path) -> None:
    output = f"{trained}-detached"
    done = run(
        "--loss", "./detached.py", "--data", "pairs.jsonl", "--set", "reference=initial", "--lr", "1e-3",
        "--steps", 4, "--save-every", 2, "--keep", 1, "--output", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    whole, detached = losses(folder / trained), losses(folder / output)
    assert detached[0] == pytest.approx(whole[0], rel=1e-5)
    assert abs(detached[3] / whole[3] - 1) > 0.01
    assert [line["step"] for line in checkpoints(folder / output)] == [4]


def test_a_run_is_resumed(trained: str, run: Cli, folder: Path) -> None:
    whole = losses(folder / trained)
    lines = (folder / trained / "checkpoints.jsonl").read_text().splitlines()
    (folder / trained / "checkpoints.jsonl").write_text(lines[0] + "\n")  # as if killed after the first
    # without them the reference is computed again, on an adapter that then may not load a state
    for kept in (folder / trained / "reference").iterdir():
        kept.unlink()
    done = run("resume", trained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(folder / trained) == pytest.approx(whole, rel=1e-3)


def test_new_rows_are_evaluated_with_their_reference(trained: str, run: Cli) -> None:
    done = run("eval", trained, "--data", "others.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rewards/margin" in done.stdout


def test_the_policy_is_sampled_from(trained: str, run: Cli, folder: Path) -> None:
    if trained.startswith("tuft"):
        pytest.skip("TuFT samples by vLLM, which is not installed")
    done = run("sample", trained, "--prompt", "Say one.", "--max-tokens", 4, "--temperature", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "After:" in done.stdout
    assert checkpoints(folder / trained)[-1]["sampler"]


@pytest.fixture(scope="module")
def start(run: Cli, server: SkyrlServer, folder: Path) -> str:
    """A run of one step, whose adapter other runs begin with there and here, without the output layer."""
    output = f"{Path(server.log).parent.name}-start"
    done = run(
        "--loss", "dpo", "--data", "pairs.jsonl", "--lora-targets", "attention,mlp", "--lr", "1e-6",
        "--steps", 1, "--output", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def first(start: str, server: SkyrlServer, folder: Path) -> Path:
    """The folder of that adapter, in PEFT's format, read from the server's disk."""
    return adapter_on_disk(server, checkpoints(folder / start)[-1]["sampler"])


@pytest.mark.parametrize("loss", LOSSES)
def test_the_server_takes_the_steps_of_the_embedded_backend(
    loss: str, start: str, first: Path, run: Cli, server: SkyrlServer, folder: Path
) -> None:
    """From one adapter, twenty steps: the losses agree, and so does the direction of the whole update."""
    outputs = {backend: f"{start}-{loss}-{backend}" for backend in ("mint", "local")}
    for backend, begin in (("mint", start), ("local", first)):
        done = run(
            "--loss", loss, "--backend", backend, "--model", server.model, "--from", begin, "--lr", "5e-5",
            *LOSSES[loss], "--batch-size", 2, "--steps", 20, "--output", outputs[backend],
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    figures = [losses(folder / output) for output in outputs.values()]
    there = adapter_on_disk(server, checkpoints(folder / outputs["mint"])[-1]["sampler"])
    ends = [load_adapter(there), load_adapter(folder / outputs["local"] / "adapter")]
    assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=1e-3)
    assert distance(*[moved(load_adapter(first), end) for end in ends]) < 1e-4


def test_an_adapter_leaves_the_server(start: str, run: Cli, server: SkyrlServer) -> None:
    done = run(
        "--loss", "dpo", "--data", "pairs.jsonl", "--from", start, "--lr", "3e-4", "--steps", 4, "--output",
        f"{start}-moved", "--model", server.model, "--lora-targets", "attention,mlp",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for form, bound in (("peft", 1e-3), ("gguf", 1e-2)):
        done = run("export", f"{start}-moved", "--to", form)
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.search(r"are the policy's within (\S+) nats; .* to (\S+)\.", done.stdout)
        assert found, done.stdout
        assert float(found[1]) < bound < float(found[2])


@pytest.mark.filterwarnings(PEFT_WARNS)
def test_runs_begin_with_what_peft_computes_from_the_one_before(
    run: Cli, server: SkyrlServer, folder: Path
) -> None:
    name = f"{Path(server.log).parent.name}-chained"
    layers = ("--lora-targets", "attention,mlp")
    check_chained_runs(run, folder, name, Path(server.model), "--keep", 1, *layers)
    last = checkpoints(folder / f"{name}-sft")[-1]["state"]
    deleted = last.replace("step-000002", "step-000001")
    refused = run("--loss", "dpo", "--from", deleted, *layers, "--output", "never")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert f"{server.base_url} does not have {deleted}, which may have been deleted" in refused.stderr


def test_losses_of_the_server_have_the_gradients_of_ours(
    python: str, server: SkyrlServer, folder: Path, variables: dict[str, str]
) -> None:
    code = f"import sys; sys.path += {HELPERS}; import native_losses; native_losses.main()"
    done = run_process([python, "-c", code], folder, variables)
    assert done.returncode == 0, done.stderr
    sums = Path(server.log).parent.name.startswith("tuft")
    # TuFT adds up all tokens; SkyRL divides by a completion's target tokens and by the completions
    factor = 1 / len(native_losses.COMPLETIONS) if sums else native_losses.TARGETS
    found = native_losses.compare_steps(
        json.loads(done.stdout), lambda path: load_adapter(adapter_on_disk(server, path)), factor
    )
    for name, (size, difference) in found.items():
        assert size > 1, name
        assert difference < 1e-3, name


def test_a_linear_loss_takes_one_request(
    start: str, python: str, folder: Path, variables: dict[str, str]
) -> None:
    """Where gradients are sent as cross_entropy, one request gives the figures of two."""
    call = f"one_request.main({start!r}, {LINEAR_STEPS})"
    code = f"import sys; sys.path += {HELPERS}; import one_request; {call}"
    done = run_process([python, "-c", code], folder, variables)
    assert done.returncode == 0, done.stderr
    needed = 0 if start.startswith("tuft") else LINEAR_STEPS  # importance_sampling takes the logprobs
    assert json.loads(done.stdout.splitlines()[-1]) == {
        form: {"forward": forwards, "forward_backward": LINEAR_STEPS}
        for form, forwards in (("two", LINEAR_STEPS), ("one", needed))
    }
    two, one = (metrics(folder / f"sft-{form}") for form in ("two", "one"))
    for before, after in zip(two, one, strict=True):
        assert after["metrics"] == pytest.approx(before["metrics"], rel=1e-6, abs=1e-6)


def test_a_second_adapter_changes_no_figure_whether_there_is_one_or_not(
    start: str, run: Cli, python: str, folder: Path, variables: dict[str, str]
) -> None:
    rows = [{"prompt": f"Say {n}.", "chosen": "one", "rejected": "no"} for n in range(10, 42)]
    write_lines(folder / "many.jsonl", rows)
    first = f"{start}-first"
    done = run(
        "--loss", "dpo", "--data", "many.jsonl", "--set", "reference=initial", "--batch-size", 2,
        "--steps", 6, "--lr", "1e-3", "--from", start, "--no-second-adapter", "--output", first,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for refused in (False, True):
        ahead = f"{start}-{'refused' if refused else 'ahead'}"
        call = f"second_adapter.main({start!r}, 'many.jsonl', {ahead!r}, {refused})"
        code = f"import sys; sys.path += {HELPERS}; import second_adapter; {call}"
        done = run_process([python, "-c", code], folder, variables)
        assert done.returncode == 0, done.stderr
        assert (json.loads(done.stdout.splitlines()[-1]) == 0) == refused
        for line, expected in zip(metrics(folder / ahead), metrics(folder / first), strict=True):
            assert line["metrics"] == pytest.approx(expected["metrics"], rel=1e-4, abs=1e-4)


def test_the_kit_trusts_the_server(run: Cli) -> None:
    done = run("check-server", "--rank", 8)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout


@pytest.mark.parametrize("sdk", [None, TOO_NEW])
def test_an_sdk_that_does_not_fit_is_refused_at_once(
    variables: dict[str, str], folder: Path, sdk: str | None
) -> None:
    path = {} if sdk is None else {"PYTHONPATH": str(installed_sdk(sdk))}
    command = [sys.executable, "-m", "mint_train", "--loss", "dpo", "--output", "never"]
    done = run_process(command, folder, variables | path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "is installed" in done.stderr
    assert "pip install" in done.stderr
