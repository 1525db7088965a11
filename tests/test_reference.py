"""Reference logprobs: once per example, kept on disk, the policy of the first step and of no later one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from listed_groups import ListedGroups

from mint_train.backends.forward_logprobs import MOST_IN_FLIGHT
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.batches.datums import build_datum
from mint_train.batches.groups import Group
from mint_train.errors import BackendError, Source
from mint_train.groups.reference import KeptReference, Reference, ReferencedGroups
from mint_train.groups.reference_blocks import BLOCK
from mint_train.groups.reference_store import STORE
from mint_train.sdk import Datum, types

RunCli = Callable[..., tuple[int, str, str]]
REFERENCED = (
    "--loss",
    "dpo",
    "--set",
    "reference=initial",
    "--set",
    "beta=0.1",
    "--lr",
    "1e-3",
    "--batch-size",
    "40",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the datums of every forward that the reference asks for."""
    counts: list[int] = []
    forward = LocalTrainingClient.forward_reference

    def counted(self: LocalTrainingClient, data: list[Any]) -> Any:
        counts.append(len(data))
        return forward(self, data)

    monkeypatch.setattr(LocalTrainingClient, "forward_reference", counted)
    return counts


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_three_epochs_ask_once_per_example(run_cli: RunCli, asked: list[int], tmp_path: Path) -> None:
    status, _, err = run_cli(*REFERENCED, "--epochs", "3", "--output", str(tmp_path / "run"))
    assert status == 0, err
    assert sum(asked) == 2 * 80
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics) == 6
    assert metrics[0]["metrics"]["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert metrics[0]["metrics"]["rewards/margin"] == pytest.approx(0.0, abs=1e-5)
    assert metrics[-1]["metrics"]["rewards/margin"] > 0


def test_a_resumed_run_keeps_the_first_step_s_reference(
    run_cli: RunCli, asked: list[int], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = (*REFERENCED, "--steps", "4", "--save-every", "2")
    assert run_cli(*arguments, "--output", str(whole))[0] == 0
    assert run_cli(*arguments, "--output", str(broken))[0] == 0
    lines = (broken / "checkpoints.jsonl").read_text().splitlines()
    (broken / "checkpoints.jsonl").write_text(lines[0] + "\n")
    asked.clear()
    status, _, err = run_cli("resume", str(broken))
    assert status == 0, err
    assert asked == []
    expected, resumed = read_metrics(whole), read_metrics(broken)
    for one, other in zip(expected, resumed, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_lost_file_is_computed_again_from_the_fresh_adapter(
    run_cli: RunCli, tmp_path: Path, own_cache: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = (*REFERENCED, "--steps", "4", "--save-every", "2")
    assert run_cli(*arguments, "--output", str(whole))[0] == 0
    assert run_cli(*arguments, "--output", str(broken))[0] == 0
    lines = (broken / "checkpoints.jsonl").read_text().splitlines()
    (broken / "checkpoints.jsonl").write_text(lines[0] + "\n")
    kept = {path.name: path.read_bytes() for path in (broken / "reference").iterdir()}
    shutil.rmtree(broken / "reference")
    shutil.rmtree(own_cache / STORE)
    assert run_cli("resume", str(broken))[0] == 0
    assert read_metrics(broken)[-1]["metrics"]["loss"] == read_metrics(whole)[-1]["metrics"]["loss"]
    assert {path.name: path.read_bytes() for path in (broken / "reference").iterdir()} == kept


def test_a_broken_file_is_made_anew(run_cli: RunCli, tmp_path: Path, own_cache: Path) -> None:
    run = tmp_path / "run"
    assert run_cli(*REFERENCED, "--steps", "1", "--output", str(run))[0] == 0
    kept = next((run / "reference").iterdir())
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    shutil.rmtree(own_cache / STORE)
    status, _, err = run_cli("resume", str(run))
    assert status == 0
    assert err == f"mint-train: The reference logprobs in {kept} were broken, and are replaced.\n"
    assert kept.read_bytes() == whole


def test_another_model_by_name_is_the_reference(
    run_cli: RunCli, starter_model_folder: Path, tmp_path: Path
) -> None:
    status, _, err = run_cli(
        "--loss", "dpo", "--set", f"reference={starter_model_folder}", "--steps", "1",
        "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert status == 0, err
    # the starter model is always the same one, so it is also the initial policy
    assert read_metrics(tmp_path / "run")[0]["metrics"]["rewards/margin"] == pytest.approx(0.0, abs=1e-4)


def test_a_checkpoint_is_the_reference(run_cli: RunCli, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert run_cli("--loss", "dpo", "--steps", "3", "--lr", "1e-2", "--output", str(first))[0] == 0
    state = first / "checkpoints" / "step-000003"
    status, _, err = run_cli(
        "--loss", "dpo", "--set", f"reference={state}", "--steps", "1", "--output", str(tmp_path / "run")
    )
    assert status == 0, err
    assert abs(read_metrics(tmp_path / "run")[0]["metrics"]["rewards/margin"]) > 1


def test_a_reference_that_is_nowhere_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    status, _, err = run_cli(
        "--loss", "dpo", "--set", "reference=./no-such-model", "--output", str(tmp_path / "run")
    )
    assert status == 2
    assert "no-such-model" in err
    assert err.count("\n") == 1


class Forwarding:
    """A client whose logprobs are minus the target tokens; it counts what is in flight, and may fail."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.fail_after, self.asked, self.awaited, self.most = fail_after, 0, 0, 0

    def forward(self, data: list[Datum], _: str) -> Any:
        self.asked += 1
        self.most = max(self.most, self.asked - self.awaited)
        return SimpleNamespace(result=lambda: self.result(data))

    def result(self, data: list[Datum]) -> Any:
        self.awaited += 1
        if self.fail_after is not None and self.awaited > self.fail_after:
            raise BackendError("the service is gone")
        targets = [datum.loss_fn_inputs["target_tokens"].to_numpy() for datum in data]
        outputs = [{"logprobs": types.TensorData.from_numpy(-one.astype(np.float32))} for one in targets]
        return SimpleNamespace(loss_fn_outputs=outputs)


def many_groups(count: int) -> ListedGroups:
    datums = [[build_datum([1, n + 2], [side, 3, n + 5], None) for side in (7, 8)] for n in range(count)]
    return ListedGroups([Group(tuple(pair), Source("rows", n)) for n, pair in enumerate(datums, start=1)])


def referenced(groups: ListedGroups, client: Any, folder: Path, name: str = "initial") -> ReferencedGroups:
    return Reference(name, client, KeptReference(folder)).of(groups)


def test_each_group_is_read_from_its_block(tmp_path: Path) -> None:
    groups, client = many_groups(40 * BLOCK + 3), Forwarding()
    found = referenced(groups, client, tmp_path / "reference")
    found.require_all()
    assert len(found) == len(groups)
    assert len(list((tmp_path / "reference").iterdir())) == 41
    for index in (0, BLOCK - 1, BLOCK, 40 * BLOCK, -1):
        group = found[index]
        assert group.source == groups[index].source
        assert group.reference_logprobs is not None
        expected = [(-arrays.targets).tolist() for arrays in groups[index].arrays]
        assert [one.tolist() for one in group.reference_logprobs] == expected
    assert [group.source.line for group in found[BLOCK - 1 : BLOCK + 1]] == [BLOCK, BLOCK + 1]
    # many requests fly together, and never more than memory is meant to hold
    assert client.most == MOST_IN_FLIGHT < client.asked == 41


def test_a_block_is_computed_when_one_of_its_groups_is_read_first(tmp_path: Path) -> None:
    groups, client = many_groups(10 * BLOCK), Forwarding()
    found = referenced(groups, client, tmp_path / "reference")
    assert client.asked == 0
    found.take([9 * BLOCK, 2, 3])
    assert client.asked == 2
    found.take([1, 0, 9 * BLOCK + 1, 4 * BLOCK])
    assert client.asked == 3


def test_what_came_back_before_a_failure_is_kept(tmp_path: Path) -> None:
    groups, folder = many_groups(40 * BLOCK), tmp_path / "reference"
    with pytest.raises(BackendError, match="the service is gone"):
        referenced(groups, Forwarding(20), folder).require_all()
    assert len(list(folder.iterdir())) == 20
    again = Forwarding()
    referenced(groups, again, folder).require_all()
    assert again.asked == 20
    other = Forwarding()
    referenced(ListedGroups(groups[1:]), other, folder).require_all()
    referenced(groups, other, folder, "another").require_all()
    assert other.asked == 80  # other groups, and another reference
