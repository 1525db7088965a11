"""References are shared: runs on the same rows and model ask for the logprobs of a reference once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from few_rows import PAIRS, write_lines
from listed_groups import ListedGroups

import mint_train
from mint_train.backends.local.adapter import LoraShape
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.backends.local.load import open_local_client
from mint_train.batches.datums import build_datum
from mint_train.batches.groups import Group
from mint_train.errors import Source
from mint_train.groups.reference import KeptReference, Reference
from mint_train.groups.reference_store import STORE, ReferenceStore

REFERENCED = {"reference": "initial"}


def references(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder, "reference").iterdir()}


def paid(result: Any) -> int:
    return int(result.tokens.get("reference", 0))


def test_runs_on_the_same_rows_and_model_ask_once(
    train: Callable[..., Any], starter_model_folder: Path, tmp_path: Path
) -> None:
    first = train(options=REFERENCED, steps=1)
    assert paid(first) > 0
    again = train(options=REFERENCED, steps=1, seed=7, rank=4, lora_targets=["q_proj"], output=Path("again"))
    assert paid(again) == 0, "neither seed nor shape of a fresh adapter changes a logprob"
    assert references("again") == references("run")
    other_rows = write_lines(tmp_path / "other.jsonl", PAIRS[:3])
    assert paid(train(options=REFERENCED, steps=1, data=other_rows, output=Path("rows"))) > 0
    half = train(options=REFERENCED, steps=1, dtype="bfloat16", output=Path("half"))
    assert paid(half) == paid(first), "another dtype gives other logprobs"
    started = {"from_checkpoint": "run", "options": REFERENCED, "steps": 1}
    assert paid(train(**started, output=Path("started"))) == paid(first), "the start is another reference"
    assert paid(train(**started, seed=3, output=Path("once-more"))) == 0
    config = starter_model_folder / "config.json"
    before = config.read_text()
    try:
        config.write_text(json.dumps(json.loads(before) | {"rms_norm_eps": 1e-4}))
        assert paid(train(options=REFERENCED, steps=1, output=Path("model"))) == paid(first)
    finally:
        config.write_text(before)


def test_a_fresh_adapter_changes_no_bit_of_a_logprob(starter_model_folder: Path, tmp_path: Path) -> None:
    data = [build_datum([1, 2, length], list(range(5, 5 + length)), None) for length in (3, 9, 30)]
    found = []
    for shape, seed in ((LoraShape(16), 0), (LoraShape(16), 1), (LoraShape(3, 5.0, ("mlp",)), 0)):
        client = open_local_client(str(starter_model_folder), shape, seed, tmp_path)
        outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
        found.append([output["logprobs"].tolist() for output in outputs])
    assert found[0] == found[1] == found[2]


def test_a_comparison_of_four_losses_asks_once(
    short_pairs: Path, starter_model_folder: Path, tmp_path: Path
) -> None:
    losses = ("dpo", "ipo", "robust", "hinge")
    compared = mint_train.compare(
        losses, options=dict.fromkeys(losses, REFERENCED), data=short_pairs, model=str(starter_model_folder),
        steps=1, eval_fraction=0.4, output=tmp_path / "all", progress="quiet",
    )  # fmt: skip
    asked = [paid(compared[loss]) > 0 for loss in losses]
    assert asked == [True, False, False, False]
    assert len({tuple(sorted(references(f"{tmp_path}/all/{loss}").items())) for loss in losses}) == 1


def test_a_broken_file_is_asked_for_again_and_a_run_needs_no_store(
    train: Callable[..., Any], own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(options=REFERENCED, steps=1, progress="quiet")
    (kept,) = (own_cache / STORE).rglob("*.arrow")
    kept.write_bytes(kept.read_bytes()[:50])
    capsys.readouterr()
    again = train(options=REFERENCED, steps=1, output=Path("again"))
    assert paid(again) == paid(whole)
    assert f"The reference logprobs in {kept} were broken, and are replaced." in capsys.readouterr().err
    assert kept.read_bytes() == (Path("again") / "reference" / kept.name).read_bytes()
    assert references("again") == references("run")


class Slow:
    """A client that lets another process begin before it answers."""

    def __init__(self, client: LocalTrainingClient) -> None:
        self.client, self.asked, self.began = client, 0, threading.Event()

    def forward(self, data: Any, loss_fn: str) -> Any:
        self.asked += 1
        self.began.set()
        return self.client.forward(data, loss_fn)


def test_who_comes_while_another_one_asks_waits_and_copies(
    starter_model_folder: Path, tmp_path: Path
) -> None:
    datums = tuple(build_datum([1, number], [3, 4], None) for number in (5, 6))
    groups = ListedGroups([Group(datums, Source("rows.jsonl", 1))])
    client = Slow(open_local_client(str(starter_model_folder), LoraShape(2), 0, tmp_path))
    store = ReferenceStore(tmp_path / "store")
    told: list[str] = []

    def ask(name: str) -> None:
        kept = KeptReference(tmp_path / name, lambda: store)
        Reference("initial", client, kept, told.append).of(groups).require_all()

    first = threading.Thread(target=ask, args=("first",))
    with store.asked_once(next_file(groups, tmp_path), told.append):
        first.start()
        assert not client.began.wait(0.3)
    first.join()
    ask("second")
    assert client.asked == 1
    assert told == ["Another run computes these reference logprobs; waiting for them."]
    assert [path.name for path in (tmp_path / "second").iterdir()] == [
        path.name for path in (tmp_path / "first").iterdir()
    ]


def next_file(groups: ListedGroups, tmp_path: Path) -> Path:
    from mint_train.groups.reference import digest

    return tmp_path / f"{digest('initial', groups[0:1])}.arrow"


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    path = tmp_path / "a.arrow"
    path.write_bytes(b"logprobs")
    told: list[str] = []
    store = ReferenceStore(blocked / "store")
    with store.asked_once(path, told.append):
        assert not store.fetch(path, told.append)
        store.keep(path, told.append)
    assert [line.partition(":")[0] for line in told] == ["Other runs cannot share these reference logprobs"]


def test_what_is_not_known_is_not_shared(tmp_path: Path) -> None:
    store = ReferenceStore()
    store.keep(tmp_path / "nowhere.arrow", print)
    assert not store.fetch(tmp_path / "nowhere.arrow", print)
