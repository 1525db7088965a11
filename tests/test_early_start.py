"""Training starts when the reference logprobs of its first step are there, and no figure changes by it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from few_rows import lines, write_lines
from hypothesis import given
from hypothesis import strategies as st

from mint_train.backends.local.client import LocalTrainingClient
from mint_train.groups.order import Order
from mint_train.groups.reference_blocks import BLOCK, first_uses
from mint_train.groups.reference_store import STORE
from mint_train.training import references

Train = Callable[..., Any]
ROWS = 8 * BLOCK + 3
HELD_OUT = 3
BLOCKS = 9


@pytest.fixture
def many_pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n} it is", "rejected": f"not {n}, no"} for n in range(ROWS)]
    return write_lines(tmp_path / "many.jsonl", rows)


@pytest.fixture
def settings(many_pairs: Path, tmp_path: Path) -> dict[str, Any]:
    """A run whose policy moves far in each step, over two epochs, with held-out rows."""
    held_out = [{"prompt": f"Spell {n}.", "chosen": f"{n}", "rejected": "no"} for n in range(HELD_OUT)]
    return {
        "options": {"reference": "initial", "beta": 0.1}, "data": many_pairs, "batch_size": 4, "steps": None,
        "epochs": 2, "lr": 1e-2, "eval_data": write_lines(tmp_path / "held_out.jsonl", held_out),
        "eval_every": 15, "save_every": 5,
    }  # fmt: skip


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each block whose logprobs are computed, and each update."""
    noted: list[str] = []
    forward, update = LocalTrainingClient.forward_reference, LocalTrainingClient.optim_step

    def noted_forward(self: LocalTrainingClient, data: list[Any]) -> Any:
        noted.append("block")
        return forward(self, data)

    def noted_update(self: LocalTrainingClient, params: Any) -> Any:
        noted.append("update")
        return update(self, params)

    monkeypatch.setattr(LocalTrainingClient, "forward_reference", noted_forward)
    monkeypatch.setattr(LocalTrainingClient, "optim_step", noted_update)
    return noted


def left(folder: str) -> tuple[Any, ...]:
    """Return what a run left: figures, evaluations, weights and reference logprobs."""
    steps = [{**line, "seconds": 0} for line in lines(f"{folder}/metrics.jsonl")]
    kept = {path.name: path.read_bytes() for path in Path(folder, "reference").iterdir()}
    weights = Path(folder, "adapter/adapter_model.safetensors").read_bytes()
    return steps, lines(f"{folder}/evaluations.jsonl"), weights, kept


@pytest.fixture
def all_first(train: Train, settings: dict[str, Any], own_cache: Path) -> Callable[..., tuple[Any, ...]]:
    """Return what a run leaves that computes all reference logprobs before its first step."""

    def run(**changed: Any) -> tuple[Any, ...]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(references, "reason_to_compute_first", lambda *_: "as a test wants it")
            train(**settings | changed, output=Path("all-first"))
        shutil.rmtree(own_cache / STORE)  # else the next run would find all there
        return left("all-first")

    return run


@pytest.mark.parametrize("begins_with", ["a fresh adapter", "a trained one"])
def test_no_bit_depends_on_when_the_reference_is_computed(
    train: Train,
    settings: dict[str, Any],
    all_first: Callable[..., tuple[Any, ...]],
    events: list[str],
    begins_with: str,
) -> None:
    changed: dict[str, Any] = {}
    if begins_with == "a trained one":
        train(data=settings["data"], lr=1e-2, output=Path("start"))
        changed = {"from_checkpoint": "start"}
    expected = all_first(**changed)
    events.clear()
    train(**settings | changed, output=Path("early"))
    before_first = events.index("update")
    assert before_first <= 4 + 1, "the blocks of four groups, and that of the held-out ones"
    assert events.count("block") == BLOCKS + 1
    last_block = len(events) - 1 - events[::-1].index("block")
    assert last_block > before_first, "or no block could have met trained weights"
    assert left("early") == expected


def test_a_killed_run_goes_on_with_the_reference_that_it_began_with(
    train: Train,
    settings: dict[str, Any],
    all_first: Callable[..., tuple[Any, ...]],
    events: list[str],
    run_cli: Callable[..., Any],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class KilledError(BaseException):
        """Stands for the end of the process."""

    train(data=settings["data"], lr=1e-2, output=Path("start"))
    expected = all_first(from_checkpoint="start")
    events.clear()
    noted_update = LocalTrainingClient.optim_step

    def dies(self: LocalTrainingClient, params: Any) -> Any:
        if events.count("update") == 2:
            raise KilledError
        return noted_update(self, params)

    killed = settings | {"save_every": 1, "from_checkpoint": "start", "output": Path("killed")}
    with monkeypatch.context() as broken:
        broken.setattr(LocalTrainingClient, "optim_step", dies)
        with pytest.raises(KilledError):
            train(**killed)
    computed = events.count("block")
    kept = len(list(Path("killed/reference").iterdir()))
    assert computed == kept == len(list((own_cache / STORE).rglob("*.arrow"))) < BLOCKS + 1
    assert run_cli("resume", "killed").status == 0
    assert events.count("block") == BLOCKS + 1
    assert left("killed") == expected
    sent = {kind: sum(line["tokens"] for line in lines("killed/tokens.jsonl") if line["kind"] == kind)
            for kind in ("reference", "forward")}  # fmt: skip
    once = sum(line["tokens"] for line in lines("all-first/tokens.jsonl") if line["kind"] == "reference")
    assert sent["reference"] == once


def test_runs_complete_each_other_s_blocks(
    train: Train, settings: dict[str, Any], all_first: Callable[..., tuple[Any, ...]], events: list[str]
) -> None:
    expected = all_first()
    events.clear()
    train(**settings | {"epochs": None, "steps": 1}, output=Path("short"))
    few = events.count("block")
    assert few < BLOCKS
    train(**settings | {"seed": 3}, output=Path("other-seed"))
    assert events.count("block") == BLOCKS + 1, "what the short run computed is taken from the store"
    train(**settings, output=Path("again"))
    assert events.count("block") == BLOCKS + 1
    assert left("again") == expected


def test_a_short_run_asks_only_for_what_its_steps_use(
    train: Train, settings: dict[str, Any], run_cli: Callable[..., Any], many_pairs: Path
) -> None:
    result = train(**settings | {"epochs": None, "steps": 1})
    arguments = ("--loss", "dpo", "--set", "reference=initial", "--data", many_pairs, "--eval-data",
                 settings["eval_data"], "--batch-size", 4, "--steps", 1, "--eval-every", 15)  # fmt: skip
    foretold = run_cli(*arguments, "--dry-run", "--json").out
    assert f'"reference": {result.tokens["reference"]}' in foretold


def test_a_token_budget_pays_for_the_reference_before_the_first_step(
    train: Train, settings: dict[str, Any], events: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    train(**settings | {"token_budget": 10**6})
    assert "Reference logprobs: all before the first step, as --token-budget counts them." in (
        capsys.readouterr().out
    )
    assert "block" not in events, "the client computes them itself, while it is untrained"


def test_the_first_step_of_a_thousand_rows_needs_at_most_eight_blocks() -> None:
    order = Order(1000, 8, seed=0)
    uses = first_uses(order, 10**6)
    assert len(uses) == 125
    assert list(uses.values()) == sorted(uses.values())
    assert sum(step == 1 for step in uses.values()) <= 8


@hypothesis.settings(deadline=None)
@given(groups=st.integers(1, 200), size=st.integers(1, 20), steps=st.integers(0, 60), by_length=st.booleans())
def test_each_block_is_first_used_by_the_first_step_with_a_group_of_it(
    groups: int, size: int, steps: int, by_length: bool
) -> None:
    order = Order(
        groups, size, seed=3, lengths=[index * 7 % 5 for index in range(groups)] * by_length or None
    )
    expected: dict[int, int] = {}
    for step in range(1, steps + 1):
        for index in order.step(step):
            expected.setdefault(index // BLOCK, step)
    assert [*first_uses(order, steps).items()] == [*expected.items()]
