"""A base model on the hub: a run keeps to the commit that it began with, whatever the hub has later."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from few_rows import PAIRS, lines, write_lines
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import mint_train
from mint_train.backends.hub_model import commit_of
from mint_train.errors import MintTrainError, OptionError, UserError
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import STATE_FILE

NAME = "org/name"
FIRST, SECOND = "a" * 40, "b" * 40
GIVEN: dict[str, Any] = {"rank": 4, "lr": 1e-2, "progress": "quiet", "save_every": 1, "backend": "local"}


class Hub:
    """The hub's cache on this machine, which holds two commits of a model."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.repository = folder / "models--org--name"
        for commit in (FIRST, SECOND):
            shutil.copytree(model, self.repository / "snapshots" / commit)
        weights = self.snapshot(SECOND) / "model.safetensors"
        other = {name: tensor + 0.01 * torch.ones_like(tensor) for name, tensor in load_file(weights).items()}
        save_file(other, weights, metadata={"format": "pt"})
        self.move_main(FIRST)

    def snapshot(self, commit: str) -> Path:
        return self.repository / "snapshots" / commit

    def move_main(self, commit: str) -> None:
        main = self.repository / "refs" / "main"
        main.parent.mkdir(exist_ok=True)
        main.write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, starter_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return Hub(tmp_path / "hub", starter_model_folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "pairs.jsonl", PAIRS)


def train(data: Path, output: str, model: str | None = NAME, **given: Any) -> dict[str, torch.Tensor]:
    mint_train.train("dpo", data=data, output=output, **GIVEN | {"model": model, "steps": 2} | given)
    return trained(output)


def trained(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(RunFolder(Path(run)).checkpoints()[-1].state) / STATE_FILE)


def recorded(run: str) -> Any:
    return json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))["settings"]["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_goes_on_with_the_commit_that_it_began_with(hub: Hub, data: Path) -> None:
    unbroken = train(data, "unbroken", steps=4)
    train(data, "run")
    before = mint_train.evaluate("run", data=data)
    hub.move_main(SECOND)

    mint_train.resume("run", steps=4)
    assert same(trained("run"), unbroken)
    assert recorded("run") == f"{NAME}@{FIRST}"
    again = mint_train.evaluate("run", data=data, step=2)
    assert again.metrics == before.metrics
    assert not same(train(data, "other", steps=4), unbroken)


def test_a_run_that_begins_with_another_is_of_its_commit(hub: Hub, data: Path) -> None:
    train(data, "run")
    expected = train(data, "next", None, from_checkpoint="run")
    hub.move_main(SECOND)

    for output, model in (("same", None), ("named", NAME), ("pinned", f"{NAME}@{FIRST}")):
        assert same(train(data, output, model, from_checkpoint="run"), expected)
        assert recorded(output) == f"{NAME}@{FIRST}"
    with pytest.raises(OptionError, match=f"model {NAME}@{SECOND}: run has {NAME}@{FIRST}"):
        train(data, "wrong", f"{NAME}@{SECOND}", from_checkpoint="run")


def test_a_revision_may_be_named(hub: Hub, data: Path) -> None:
    second = train(data, "second", f"{NAME}@{SECOND}")
    first = train(data, "first")
    assert not same(first, second)
    hub.move_main(SECOND)
    assert same(train(data, "main"), second)
    assert same(train(data, "branch", f"{NAME}@main"), second)
    assert recorded("branch") == f"{NAME}@{SECOND}"
    with pytest.raises(UserError, match="model org/name@nowhere: the tokenizer cannot be loaded"):
        train(data, "wrong", f"{NAME}@nowhere")


def test_what_is_exported_names_the_commit(hub: Hub, data: Path) -> None:
    train(data, "run", lora_targets=("q_proj", "v_proj"))  # vLLM takes no adapter of the output layer
    hub.move_main(SECOND)

    exported = mint_train.export("run", "adapter", check=True)
    config = json.loads(Path("adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == (NAME, FIRST)
    assert exported.serve[0].startswith(f"vLLM: vllm serve {NAME} --revision {FIRST} --enable-lora ")
    card = Path("adapter/README.md").read_text(encoding="utf-8")
    assert f"base_model: {NAME}\n" in card
    assert f'AutoModelForCausalLM.from_pretrained("{NAME}", revision="{FIRST}")' in card
    for model in (None, f"{NAME}@{FIRST}"):
        assert train(data, f"of {model}".replace("/", " "), model, from_checkpoint="adapter")
    with pytest.raises(MintTrainError, match="the adapter adapter was trained on org/name@a"):
        train(data, "wrong", f"{NAME}@{SECOND}", from_checkpoint="adapter")

    mint_train.export("run", "merged", to="merged", check=True)


def test_an_adapter_in_a_run_or_exported_is_of_its_commit(hub: Hub, data: Path) -> None:
    train(data, "run")
    mint_train.export("run", "exported")
    expected = train(data, "next", None, from_checkpoint="run/adapter")
    hub.move_main(SECOND)

    for number, (start, model) in enumerate(product(("run/adapter", "exported"), (None, NAME))):
        again = train(data, f"again-{number}", model, from_checkpoint=start)
        assert same(again, expected), (start, model)
        assert recorded(f"again-{number}") == f"{NAME}@{FIRST}"


def test_losses_that_are_compared_are_of_one_commit(hub: Hub, data: Path) -> None:
    class Moving:
        @mint_train.hookimpl
        def run_finished(self) -> None:
            hub.move_main(SECOND)

    compared = mint_train.compare(
        ["dpo", "ipo"],
        data=data,
        output="both",
        model=NAME,
        steps=1,
        eval_fraction=0.4,
        observers=[Moving()],
        **GIVEN,
    )
    assert {result.status for result in compared.values()} == {"done"}
    assert (hub.repository / "refs" / "main").read_text() == SECOND
    assert {recorded("both/dpo"), recorded("both/ipo")} == {f"{NAME}@{FIRST}"}


def test_rows_of_two_commits_are_not_mixed(hub: Hub) -> None:
    def broken(prompt: str, completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    given: dict[str, Any] = {"samples": 2, "max_tokens": 4, "output": "rows.jsonl", "backend": "local"}
    with pytest.raises(KeyboardInterrupt):
        mint_train.pairs(["Say it."], policy=NAME, judge=broken, **given)
    hub.move_main(SECOND)
    with pytest.raises(UserError, match=f"{NAME}@{FIRST}, not {NAME}@{SECOND}"):
        mint_train.pairs(["Say it."], policy=NAME, judge=broken, **given)


def test_references_are_shared_by_runs_on_one_commit_alone(hub: Hub, data: Path) -> None:
    def asked(output: str, model: str = NAME) -> int:
        train(data, output, model, options={"reference": "initial"})
        return int(json.loads(Path(output, "run.json").read_text())["tokens"].get("reference", 0))

    assert asked("first") > 0
    assert asked("again") == asked("named", f"{NAME}@{FIRST}") == 0
    hub.move_main(SECOND)
    assert asked("second") > 0


REFERENCE = {"reference": NAME}


def options_of(run: str) -> Any:
    return json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))["settings"]["options"]


@pytest.mark.parametrize(
    ("loss", "given", "kept"),
    [
        ("dpo", REFERENCE | {"beta": 0.3}, {"reference": f"{NAME}@{FIRST}"}),
        (
            "dpo+0.5*ipo",
            {"dpo.beta": 0.3, **REFERENCE},
            {"dpo.beta": 0.3, "dpo.reference": f"{NAME}@{FIRST}", "ipo.reference": f"{NAME}@{FIRST}"},
        ),
    ],
)
def test_a_reference_keeps_to_its_commit(
    hub: Hub, data: Path, loss: str, given: dict[str, Any], kept: dict[str, Any]
) -> None:
    model = str(shutil.copytree(hub.snapshot(FIRST), "model"))
    run: dict[str, Any] = {"data": data, "model": model, "options": given, **GIVEN}
    mint_train.train(loss, output="unbroken", steps=4, **run)
    mint_train.train(loss, output="run", steps=2, **run)
    before = mint_train.evaluate("run", data=data)
    hub.move_main(SECOND)

    assert options_of("run").items() >= kept.items()
    again = mint_train.evaluate("run", data=data)
    assert again.metrics == before.metrics
    shutil.rmtree("run/reference")
    other_beta = {name: 0.5 for name in given if name.endswith("beta")}
    for changed in ({"reference": model}, {"reference": f"{NAME}@{SECOND}"}, other_beta):
        with pytest.raises(OptionError, match="would make it a different run"):
            mint_train.resume("run", steps=4, options=changed)
    mint_train.resume("run", steps=4, options=given)
    assert same(trained("run"), trained("unbroken"))
    mint_train.train(loss, output="other", steps=4, **run)
    assert not same(trained("other"), trained("unbroken"))


def test_references_of_compared_losses_and_of_rounds_are_of_one_commit(
    hub: Hub, tmp_path: Path, data: Path
) -> None:
    class Moving:
        @mint_train.hookimpl
        def run_finished(self) -> None:
            hub.move_main(SECOND)

    run: dict[str, Any] = {**GIVEN, "steps": 1, "observers": [Moving()]}
    mint_train.compare(
        ["dpo", "ipo"],
        data=data,
        output="both",
        eval_fraction=0.4,
        options={"dpo": REFERENCE, "ipo": REFERENCE},
        **run,
    )
    hub.move_main(FIRST)
    rounds: dict[str, Any] = {"rounds": 2, "prompts": ["Say it."], "max_tokens": 4, "output": "rounds"}
    mint_train.train("dpo", judge=length, options=REFERENCE, temperature=2.0, **rounds, **run)
    for folder in ("both/dpo", "both/ipo", "rounds/round-001", "rounds/round-002"):
        assert options_of(folder)["reference"] == f"{NAME}@{FIRST}", folder


def length(prompt: str, completions: list[str]) -> list[float]:
    """Judge by length."""
    return [float(len(completion)) for completion in completions]


def test_a_branch_is_no_commit() -> None:
    assert commit_of(f"{NAME}@{FIRST}") == FIRST
    assert commit_of(f"{NAME}@main") is commit_of(NAME) is None


def test_a_folder_may_have_an_at_sign(hub: Hub, data: Path) -> None:
    shutil.copytree(hub.snapshot(FIRST), "my@model")
    train(data, "run", "my@model")
    assert recorded("run") == str(Path("my@model").resolve())
    Path("sub/elsewhere").mkdir(parents=True)
    mint_train.export("run", "sub/exported")
    shutil.move("my@model", "sub/elsewhere/my@model")
    train(data, "next", "sub/elsewhere/my@model", from_checkpoint="sub/exported")
    assert lines(Path("run/metrics.jsonl"))
