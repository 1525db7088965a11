"""The pairing contract: what breaks it is refused, by name, before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from listed_groups import ListedGroups

from mint_train import hookimpl
from mint_train.backends.choose import choose_backend
from mint_train.batches.batch import Batch
from mint_train.batches.datums import build_datum
from mint_train.batches.groups import Group
from mint_train.errors import ContractError, Source
from mint_train.groups.build import Dataset
from mint_train.groups.expected_tokens import ExpectedTokens
from mint_train.groups.order import Order
from mint_train.losses.loss import Loss
from mint_train.observers.registry import Observers
from mint_train.plugins.discovery import load_plugin
from mint_train.run_folder.folder import RunFolder
from mint_train.sdk import Datum, types
from mint_train.settings.merge import load_settings
from mint_train.training.preparing import Prepared
from mint_train.training.run import Run
from mint_train.training.runner import Runner

EOS = 2
PROMPT = [10, 11, 12]


class Silent:
    """A training client that fails the test when anything is sent."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


@pytest.fixture(scope="module")
def dpo() -> Loss:
    return Loss.of(load_plugin("dpo"))


def datum(completion: list[int], prompt: list[int] = PROMPT) -> Datum:
    return build_datum(prompt, [*completion, EOS], None)


def untrained(completion: list[int]) -> Datum:
    whole = datum(completion)
    weights = types.TensorData(data=[0.0] * whole.model_input.length, dtype="float32", shape=None)
    return Datum(
        model_input=whole.model_input,
        loss_fn_inputs={"target_tokens": whole.loss_fn_inputs["target_tokens"], "weights": weights},
    )


def pair(line: int, *datums: Datum) -> Group:
    return Group.of(datums, Source("pairs.jsonl", line))


GOOD = [datum([20]), datum([30])]
BROKEN = {
    "one datum": (GOOD[:1], "has 1 datum; a pair is \\[chosen, rejected\\]"),
    "three datums": ([*GOOD, datum([40])], "has 3 datums; a pair is \\[chosen, rejected\\]"),
    "no datum": ([], "has 0 datums; a pair is \\[chosen, rejected\\]"),
    "another prompt": ([datum([20]), datum([30], [10, 99, 12])], "do not share their prompt"),
    "a longer prompt": ([datum([20]), datum([30], [*PROMPT, 13])], "do not share their prompt"),
    "another last prompt token": ([datum([20]), datum([30], [10, 11, 13])], "do not share their prompt"),
    "equal": ([datum([20, 21]), datum([20, 21])], "rejected is equal to chosen"),
    "untrained chosen": ([untrained([20]), datum([30])], "its chosen completion has no trained token"),
    "untrained rejected": ([datum([20]), untrained([30])], "its rejected completion has no trained token"),
}


def test_good_pairs_pass(dpo: Loss) -> None:
    dpo.check_batch(Batch([pair(1, *GOOD), pair(2, datum([20, 21]), datum([20, 22]))]))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_pair_is_refused_before_anything_is_sent(dpo: Loss, tmp_path: Path, kind: str) -> None:
    datums, problem = BROKEN[kind]
    settings = load_settings({"loss": "dpo", "batch_size": 3, "backend": "local"})
    folder = RunFolder(tmp_path)
    rows: Any = None
    run = Run(settings, dpo, Observers(), choose_backend(settings), folder, rows, None)
    dataset = Dataset(ListedGroups([pair(1, *GOOD), pair(7, *datums), pair(9, *GOOD)]), [])
    client: Any = Silent()
    expected = ExpectedTokens(settings, 1, Order(3, 3, 0), [0, 0, 0], 0, [], referenced=False)
    runner = Runner(run, Prepared(client, dataset, {}, expected))
    with pytest.raises(ContractError, match=rf"^step 1: pairs\.jsonl:7: pair 1.*{problem}") as refused:
        runner.train()
    assert refused.value.group == 1
    assert refused.value.exit_status == 2
    assert runner.finished == 0


def test_an_odd_number_of_datums_is_refused_even_if_groups_hide_it(dpo: Loss) -> None:
    """Two groups, three datums: the total is odd, and the group that makes it so is named."""
    with pytest.raises(ContractError, match=r"pairs\.jsonl:2: pair 1 has 1 datum"):
        dpo.check_batch(Batch([pair(1, *GOOD), pair(2, GOOD[0])]))


def test_three_and_one_datums_are_refused_though_their_sum_is_even(dpo: Loss) -> None:
    """An even total with every later pair shifted: the silent failure that the contract is there for."""
    with pytest.raises(ContractError, match=r"pairs\.jsonl:1: pair 0 has 3 datums"):
        dpo.check_batch(Batch([pair(1, *GOOD, datum([40])), pair(2, GOOD[0])]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), pairs=st.integers(2, 5))
def test_any_permutation_that_breaks_pairing_is_refused(dpo: Loss, data: st.DataObject, pairs: int) -> None:
    """Each pair has its own prompt, so a group that mixes two of them is caught wherever it stands."""
    flat = [(n, datum([side], [100 + n, 11, 12])) for n in range(pairs) for side in (20, 30)]
    order = data.draw(st.permutations(range(len(flat))))
    shuffled = [flat[place] for place in order]
    grouped = [shuffled[start : start + 2] for start in range(0, len(flat), 2)]
    mixed = [first[0] != second[0] for first, second in grouped]
    assume(any(mixed))
    batch = Batch([pair(n + 1, first[1], second[1]) for n, (first, second) in enumerate(grouped)])
    with pytest.raises(ContractError) as refused:
        dpo.check_batch(batch)
    assert refused.value.group == mixed.index(True)
    assert f"pairs.jsonl:{mixed.index(True) + 1}: " in str(refused.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_only_groups_of_two_pass(dpo: Loss, sizes: list[int]) -> None:
    groups = [pair(n + 1, *(datum([20 + n]) for n in range(size))) for n, size in enumerate(sizes)]
    if all(size == 2 for size in sizes):
        dpo.check_batch(Batch(groups))
        return
    with pytest.raises(ContractError) as refused:
        dpo.check_batch(Batch(groups))
    assert refused.value.group == next(place for place, size in enumerate(sizes) if size != 2)


class OneDatumPerRow:
    """The mistake of a dataset builder that gives one datum per row."""

    EXTENDS = "dpo"

    @hookimpl
    def flatten(self, example: Any, renderer: Any) -> list[Datum]:
        return [build_datum([5], renderer.tokenizer.encode(example.chosen), None)]


class SwappedPrompts:
    """A flattener that gives the rejected completion another prompt."""

    EXTENDS = "dpo"

    @hookimpl
    def flatten(self, example: Any, renderer: Any) -> list[Datum]:
        prompts = renderer.tokenizer.encode("one prompt"), renderer.tokenizer.encode("two prompts")
        texts = example.chosen, example.rejected
        return [
            build_datum(prompt, renderer.tokenizer.encode(text), None)
            for prompt, text in zip(prompts, texts, strict=True)
        ]


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [(OneDatumPerRow, "pair 0 has 1 datum"), (SwappedPrompts, "pair 0: chosen and rejected do not share")],
)
def test_a_plugin_that_breaks_the_pairing_is_refused_on_the_command_line(
    run_cli: Callable[..., Any],
    install_loss: Callable[..., None],
    starter_model_folder: Path,
    short_pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    plugin: type,
    problem: str,
) -> None:
    install_loss("broken", plugin())
    for call in ("forward", "forward_backward_custom", "optim_step", "save_state"):
        monkeypatch.setattr(f"mint_train.backends.local.client.LocalTrainingClient.{call}", Silent())
    status, _, err = run_cli("--loss", "broken", "--data", short_pairs, "--model", starter_model_folder)
    assert status == 2
    assert err.startswith(f"mint-train: {short_pairs}:1: {problem}")
    assert err.count("\n") == 1


def test_a_row_with_equal_completions_is_refused(
    run_cli: Callable[..., Any], tmp_path: Path, starter_model_folder: Path
) -> None:
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    status, _, err = run_cli("--loss", "dpo", "--data", path, "--model", starter_model_folder)
    assert (status, err) == (
        2,
        f'mint-train: {path}:2: field "rejected": is equal to chosen, so there is nothing to prefer; '
        "remove the row\n",
    )


def test_every_pair_of_the_data_is_checked_before_the_first_step(
    run_cli: Callable[..., Any],
    write_rows: Callable[..., Path],
    starter_model_folder: Path,
    install_loss: Callable[..., None],
) -> None:
    """A pair that only the last step would meet stops the run before its first."""

    class LastOneBroken:
        EXTENDS = "dpo"

        @hookimpl
        def flatten(self, example: Any, renderer: Any) -> list[Datum] | None:
            if example.prompt != "last":
                return None  # falls through to DPO's own
            return [build_datum([5], renderer.tokenizer.encode(example.chosen), None)]

    install_loss("broken", LastOneBroken())
    rows = [{"prompt": p, "chosen": "b", "rejected": "c"} for p in ("first", "second", "last")]
    path = write_rows(rows)
    status, out, err = run_cli(
        "--loss", "broken", "--data", path, "--model", starter_model_folder, "--batch-size", 1
    )
    assert status == 2
    assert f"{path}:3: pair 2 has 1 datum" in err
    assert "Step 1" not in out
