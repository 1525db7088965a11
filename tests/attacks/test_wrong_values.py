"""Plugins whose hooks return what they must not: one line each, never a traceback, also from `check`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import seeds

import mint_train
from mint_train.batches.batch import Batch
from mint_train.errors import MintTrainError, PluginError
from mint_train.groups.build import build_dataset
from mint_train.groups.examples import find_data, read_examples
from mint_train.groups.inspection import inspect_data
from mint_train.losses.custom_loss import CustomLoss
from mint_train.losses.loss import Loss
from mint_train.plugin import AttachedDatum, Datum, Form, Forms, Metric, RowError, attach, build_datum
from mint_train.plugins.discovery import NamedPlugin, hook_arguments, make_manager
from mint_train.plugins.hookspecs import LossSpec
from mint_train.plugins.returned import RETURNED
from mint_train.sdk import types
from mint_train.settings.model import Settings
from mint_train.testing import check_loss

pytestmark = pytest.mark.attacks

ROWS = [{"prompt": f"Say {n}.", "chosen": f"{n}", "rejected": "no"} for n in range(3)]
HOOKS = sorted(hook_arguments(LossSpec))


class Hostile:
    """Raises whatever is done with it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}\nfor you")

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __len__ = __iter__ = __eq__ = __bool__ = __repr__  # type: ignore[assignment]


def raising(kind: type[BaseException] = ValueError) -> Iterator[Any]:
    yield {"a": 1}
    raise kind("one\ntwo")


def tensors(*parts: tuple[str, str, Any, list[int]]) -> dict[str, Any]:
    return {name: types.TensorData(data=data, dtype=dtype, shape=shape) for name, dtype, data, shape in parts}


def odd_datum(dice: random.Random) -> Any:
    """A datum of the SDK's class that no group can hold."""
    targets = ("target_tokens", "int64", [2, 3], [2])
    weights = ("weights", "float32", [1.0, 1.0], [2])
    fields = dice.choice(
        [{}, tensors(targets), tensors(weights), tensors(targets, ("weights", "float32", [1.0, 1.0], [2, 1])),
         tensors(targets, ("weights", "float32", [1.0], [1])), tensors(targets, weights),
         tensors(("target_tokens", "float32", [2.5, 3.0], [2]), weights),
         tensors(targets, ("weights", "int64", [1, 1], [2]))]
    )  # fmt: skip
    return Datum(
        model_input=types.ModelInput.from_ints(dice.choice([[], [1], [1, 2], [1, 2, 3]])),
        loss_fn_inputs=fields,
    )


PLAIN: list[Callable[[random.Random], Any]] = [
    lambda _: "", lambda _: "text\nof two", lambda _: 7, lambda _: -0.5, lambda _: True, lambda _: [],
    lambda _: [1, 2], lambda _: {}, lambda _: {"a": 1}, lambda _: object(), lambda _: b"x", lambda _: int,
    lambda _: lambda: 1, lambda _: raising(), lambda _: raising(SystemExit), lambda _: iter([]),
    lambda _: Hostile(), lambda _: (1, 2, 3), lambda _: torch.ones(2, 3), lambda _: [None], lambda _: {1, 2},
    lambda _: {None: None}, lambda _: float("nan"), lambda _: ["a", "b"], lambda _: [["a"]],
    lambda _: Path("/nowhere/at/all.jsonl"),
]  # fmt: skip


def read_badly(row: Any) -> Any:
    raise KeyError("x\ny")


OWN: dict[str, list[Callable[[random.Random], Any]]] = {
    "row_forms": [
        lambda _: Forms([], lambda *_: 1),
        lambda _: Forms([Form("a", ("chosen",), read_badly)], lambda *_: 1),
        lambda _: Forms([Form("a", ("chosen",), lambda *_: 7)], lambda *_: 1),  # type: ignore[arg-type, return-value]
        lambda _: Forms([Form("a", (), lambda *_: None)], lambda *_: None),  # type: ignore[arg-type, return-value]
        lambda _: Forms([1, 2], None),  # type: ignore[list-item, arg-type]
    ],
    "flatten": [
        lambda dice: [odd_datum(dice), odd_datum(dice)],
        lambda dice: [build_datum([1, 2], [3], None), odd_datum(dice)],
        lambda _: [build_datum([1], [2], None)] * 3,
        lambda dice: [attach(build_datum([1], [2, 3], None), a=dice.choice(PLAIN)(dice))] * 2,
        lambda dice: [AttachedDatum(dice.choice(PLAIN)(dice), {"a": 1.0})] * 2,
        lambda dice: [AttachedDatum(build_datum([1], [2, 3], None), dice.choice(PLAIN)(dice))] * 2,
    ],
    "metrics": [
        lambda _: {"loss": Metric("zz")}, lambda _: {"loss": Metric(7)}, lambda _: {1: Metric()},  # type: ignore[arg-type]
        lambda dice: {"loss": dice.choice(PLAIN)(dice)}, lambda _: {"loss": Metric(kind="odd", better="up")},  # type: ignore[arg-type]
    ],
    "parse_row": [lambda _: (_ for _ in ()).throw(RowError("a", "b")), lambda dice: dice.choice(PLAIN)(dice)],
    "compute_loss": [
        lambda _: torch.ones(2, requires_grad=True), lambda _: torch.tensor(1.0),
        lambda _: (torch.tensor(1.0, requires_grad=True), {"a": 1.0}), lambda _: torch.tensor(1),
        lambda _: (torch.tensor(float("nan"), requires_grad=True), {}),
        lambda _: (torch.tensor(1j, requires_grad=True), {}),
        lambda dice: (torch.tensor(1.0, requires_grad=True), dice.choice(PLAIN)(dice)),
        lambda dice: (torch.tensor(1.0, requires_grad=True), {"a": dice.choice(PLAIN)(dice)}),
        lambda _: (), lambda _: (torch.tensor(1.0, requires_grad=True),) * 3,
    ],
    "check_batch": [lambda dice: dice.choice(PLAIN)(dice)],
}  # fmt: skip


def misbehaving(seed: int) -> object:
    """Make a plugin that extends dpo, and of which one hook returns something else at each call."""
    dice, hook = random.Random(seed), HOOKS[seed % len(HOOKS)]
    function = returning(hook, lambda: dice.choice([*PLAIN, *OWN.get(hook, []) * 4])(dice))
    return SimpleNamespace(**{hook: mint_train.hookimpl(function)}, EXTENDS="dpo")


def returning(hook: str, action: Callable[[], Any]) -> Callable[..., Any]:
    """Make the implementation of a hook that returns what an action does."""
    space: dict[str, Any] = {"action": action}
    arguments = ", ".join(hook_arguments(LossSpec)[hook])
    exec(compile(f"def {hook}({arguments}):\n    return action()\n", "/x/misbehaving.py", "exec"), space)
    return space[hook]  # type: ignore[no-any-return]


def use(loss: Loss, rows: Path, tokenizer: Any) -> None:
    """Do with a loss what a run does."""
    examples = read_examples(find_data(rows, loss), loss)
    dataset = build_dataset(examples, loss, tokenizer, Settings(loss="any"))
    batch = Batch(list(dataset.groups))
    logprobs = [torch.full((length,), -1.0, requires_grad=True) for length in batch.lengths.tolist()]
    CustomLoss(loss, [batch], {})(list(batch.data), logprobs)
    for look in (loss.describe, loss.options_notes, lambda: loss.data_notes(batch), lambda: loss.metrics):
        look()
    _ = (loss.reference, loss.datum_names, loss.bundled_rows)
    inspect_data(Settings(loss="mine", data=rows), loss, tokenizer)


@pytest.mark.parametrize("seed", seeds(3 * len(HOOKS)))
def test_whatever_a_hook_returns_is_one_line_or_right(
    write_rows: Callable[..., Path], tokenizer: Any, seed: int
) -> None:
    rows = write_rows(ROWS)
    said = [""]
    try:
        use(Loss.of(NamedPlugin("mine", misbehaving(seed), "a test")), rows, tokenizer)
    except MintTrainError as error:
        said = [str(error)]
        if isinstance(error, PluginError):
            said += [] if '"mine"' in str(error) or "rows.jsonl:" in str(error) else ["names nothing\n"]
    assert "\n" not in "".join(said)


@pytest.mark.parametrize("seed", seeds(len(HOOKS)))
def test_the_kit_says_what_a_hook_returned_in_one_line(seed: int) -> None:
    try:
        said = [one.detail for one in check_loss(NamedPlugin("mine", misbehaving(seed), "a test"), rows=ROWS)]
    except MintTrainError as error:
        said = [str(error)]
    assert "\n" not in "".join(said)


@pytest.mark.parametrize("hook", RETURNED)
def test_a_wrong_value_is_refused_with_plugin_hook_file_and_line(hook: str) -> None:
    plugin = SimpleNamespace(**{hook: mint_train.hookimpl(returning(hook, lambda: 7))})
    manager = make_manager([NamedPlugin("mine", plugin, "a test")])
    with pytest.raises(PluginError) as refused:
        getattr(manager.hook, hook)(**dict.fromkeys(hook_arguments(LossSpec)[hook]))
    assert str(refused.value).startswith(f'the loss "mine": {hook} at misbehaving.py:1 must return ')
    assert str(refused.value).endswith(", not an int (7)")


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
def test_a_generator_that_fails_is_located(raised: type[BaseException]) -> None:
    function = mint_train.hookimpl(returning("link_examples", lambda: raising(raised)))
    loss = Loss.of(NamedPlugin("mine", SimpleNamespace(link_examples=function, EXTENDS="dpo"), "a test"))
    where = f"failed in link_examples at {Path(__file__).name}:.*one two$"
    with pytest.raises(PluginError, match=where):
        list(loss.link_examples([1, 2]))


@pytest.mark.parametrize(
    ("hook", "body"), [("flatten", "return [example]"), ("flatten", "example.x"), ("parse_row", "row['x']")]
)
def test_a_row_that_a_plugin_fails_on_is_named(
    write_rows: Callable[..., Path], tokenizer: Any, hook: str, body: str
) -> None:
    space: dict[str, Any] = {}
    arguments = ", ".join(hook_arguments(LossSpec)[hook])
    exec(compile(f"def {hook}({arguments}):\n    {body}\n", "/x/misbehaving.py", "exec"), space)
    plugin = SimpleNamespace(**{hook: mint_train.hookimpl(space[hook])}, EXTENDS="dpo")
    with pytest.raises(PluginError, match=rf'rows.jsonl:1: the loss "mine".*{hook} at misbehaving.py:[12]'):
        use(Loss.of(NamedPlugin("mine", plugin, "a test")), write_rows(ROWS), tokenizer)
