"""Checks of a loss's options, rows, datums and contract."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from mint_train.batches.batch import Batch
from mint_train.batches.groups import Group
from mint_train.conformance.material import Material, mutated, require_that
from mint_train.errors import ContractError, DoesNotFit, RowError, counted
from mint_train.losses.loss_options import option_rows
from mint_train.rendering.renderer import Renderer
from mint_train.run_folder.lines import is_number
from mint_train.sdk import Datum, types
from mint_train.settings.wrong_values import in_plain_words

WRONG_VALUES: tuple[tuple[str, Any], ...] = (
    ("null", None),
    ("a number", 7),
    ("empty text", ""),
    ("an empty list", []),
    ("an empty object", {}),
    ("a list of a number", [7]),
    ("an object", {"no": "such"}),
    ("true", True),
)


def options_are_valid(material: Material) -> str:
    """Check that defaults validate, unknown options are refused, and each option is documented."""
    model = material.loss.options_model
    require_that(issubclass(model, BaseModel), f"loss_options returned {model!r}, not a pydantic model")
    try:
        defaults = model()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        require_that(False, f'without options, "{name}": {in_plain_words(first)}; give it a default')
    require_that(
        model.model_config.get("extra") == "forbid",
        f'{model.__name__} accepts an unknown option; set model_config = ConfigDict(extra="forbid")',
    )
    for name, option in model.model_fields.items():
        require_that(bool(option.description), f'the option "{name}" has no description for the help')
    json.dumps(defaults.model_dump(mode="json"))
    return counted(len(option_rows(model)), "option")


def rows_become_examples(material: Material) -> str:
    """Check that every row is parsed."""
    for row in material.rows:
        require_that(material.read(row) is not None, f"parse_row returned None at {row.source}")
    return f"{len(material.examples)} rows"


def bad_rows_are_refused(material: Material) -> str:
    """Check that a bad row raises RowError with its field, and a needed field refuses wrong values."""
    require_that(refusal(material, {}, "an empty row") is not None, "an empty row was accepted")
    tried = 0
    right = right_somewhere(material)
    for row in material.rows:
        for name in row.values:
            without = {key: value for key, value in row.values.items() if key != name}
            required = refusal(material, without, f'a row without "{name}"') is not None
            for what, value in WRONG_VALUES:
                if is_alike(value, row.values[name]) or (name, what) in right:
                    continue
                tried += 1
                refused = refusal(material, mutated(row.values, name, value), f'"{name}" set to {what}')
                require_that(
                    refused is not None or not required,
                    f'{row.source}: "{name}" set to {what} was accepted; raise RowError, or give a row that '
                    "has it, if it is right",
                )
    return f"{tried} bad rows"


def is_alike(value: Any, right: Any) -> bool:
    """Return whether a value could pass for the right one: of its type, and not empty."""
    if isinstance(right, list):
        if isinstance(value, list):
            return bool(value) and bool(right) and is_alike(value[0], right[0])
        # one number may stand for a list of them
        return is_number(value) and all(is_number(item) for item in right)
    if is_number(right):
        return is_number(value) or (isinstance(value, list) and bool(value) and is_number(value[0]))
    return isinstance(right, str | bool) and type(value) is type(right) and value != ""


def right_somewhere(material: Material) -> set[tuple[str, str]]:
    """Return each field with the name of each value of WRONG_VALUES that a row which is right has in it."""
    return {
        (name, what)
        for row in material.rows
        for name, right in row.values.items()
        for what, value in WRONG_VALUES
        if type(right) is type(value) and right == value
    }


def refusal(material: Material, row: Mapping[str, Any], what: str) -> RowError | None:
    """Return the RowError of a bad row, or None where it is accepted."""
    try:
        material.loss.parse_row(row)
    except RowError as error:
        require_that(
            bool(error.field) and bool(error.problem), f"{what}: the RowError names no field or problem"
        )
        return error
    except Exception as error:
        require_that(
            False, f"{what}: reading it raised {type(error).__name__}: {error}; it must raise RowError"
        )
    return None


def examples_become_datums(material: Material) -> str:
    """Check that datums hold inputs, targets and weights of one length, and keep the contract."""
    for group in material.groups:
        require_that(len(group.datums) > 0, f"flatten gave no datum at {group.source}")
        for position, datum in enumerate(group.datums):
            problem = datum_problem(datum)
            require_that(problem is None, f"datum {position} at {group.source}: {problem}")
        for attached in group.attached:
            for name, value in attached.items():
                values = value if not isinstance(value, int | float) else [value]
                require_that(
                    all(math.isfinite(item) for item in values), f'"{name}" at {group.source} is not finite'
                )
    material.loss.check_batch(material.batch())
    return f"{len(material.groups)} groups, {sum(len(group.datums) for group in material.groups)} datums"


def datum_problem(datum: Datum) -> str | None:
    """Return what the SDK or a backend would refuse in a datum, or None."""
    inputs = datum.loss_fn_inputs
    if set(inputs) != {"target_tokens", "weights"}:
        return f"its loss_fn_inputs are {sorted(inputs)}; they must be target_tokens and weights"
    lengths = (
        len(datum.model_input.to_ints()),
        len(inputs["target_tokens"].data),
        len(inputs["weights"].data),
    )
    if len(set(lengths)) > 1 or not lengths[0]:
        return f"it has {lengths[0]} input tokens, {lengths[1]} targets and {lengths[2]} weights"
    if inputs["target_tokens"].dtype != "int64" or inputs["weights"].dtype != "float32":
        return "its targets must be int64 and its weights float32"
    if not np.isfinite(np.asarray(inputs["weights"].data)).all():
        return "a weight is not finite"
    return None


def max_length_is_kept(material: Material) -> str:
    """Check that datums stay within max_length and keep the contract, or the example does not fit."""
    longest = max(length for group in material.groups for length in group.lengths) + 1
    fitted = []
    for most in (longest - 1, longest // 2, 2):
        renderer = Renderer(material.tokenizer, most)
        for example, row in zip(material.examples, material.rows, strict=True):
            try:
                group = Group.of(material.loss.flatten(example, renderer), row.source)
            except DoesNotFit:
                continue
            require_that(
                max(group.lengths) < most,
                f"max_length {most}: {max(group.lengths) + 1} tokens at {row.source}",
            )
            material.loss.check_batch(Batch([group]))
            fitted.append(group)
    return f"{len(fitted)} cut groups"


def wrong_size_is_refused(material: Material) -> str:
    """Check that a group that has lost all datums but one, or a lone one that has gained one, is refused."""
    for number, group in enumerate(material.groups):
        positions = [0] if len(group.datums) > 1 else [0, 0]
        expect_refusal(material, number, take(group, positions), f"a group of {len(positions)} datums")
    return "a datum dropped" if len(material.groups[0].datums) > 1 else "a datum added"


def swapped_datums_are_refused(material: Material) -> str:
    """Check that two groups on different prompts that exchange their last datums are refused."""
    groups = material.groups
    if len(groups[0].datums) == 1:
        return "nothing to swap: a group is one datum"
    pairs = [
        (one, two)
        for one in range(len(groups))
        for two in range(one)
        if not np.array_equal(groups[one].prompts[0], groups[two].prompts[0])
    ]
    require_that(bool(pairs), "give rows of two different prompts to try this")
    one, two = pairs[0]
    swapped = list(groups)
    swapped[one], swapped[two] = exchange_last(groups[one], groups[two])
    try:
        material.loss.check_batch(material.batch(swapped))
    except ContractError as error:
        return str(error.problem)
    require_that(
        False, f"accepted, with the last datums of {groups[one].source} and {groups[two].source} swapped"
    )
    return ""


def untrained_datums_are_refused(material: Material) -> str:
    """Check that a datum whose weights are all zero is refused."""
    for number, group in enumerate(material.groups):
        for position in range(len(group.datums)):
            datums = list(group.datums)
            datums[position] = without_weights(datums[position])
            broken = replace(group, datums=tuple(datums))
            expect_refusal(material, number, broken, f"datum {position} without a trained token")
    return "each datum of a group tried"


def equal_datums_are_refused(material: Material) -> str:
    """Check that a group whose last datum is a copy of its first is refused."""
    if material.has_trait("DATUMS_MAY_REPEAT"):
        return "not tried: the loss says that equal datums are possible (DATUMS_MAY_REPEAT)"
    if len(material.groups[0].datums) == 1:
        return "nothing to be equal to: a group is one datum"
    for number, group in enumerate(material.groups):
        positions = [*range(len(group.datums) - 1), 0]
        expect_refusal(material, number, take(group, positions), "the last datum equal to the first")
    return "in each group"


def expect_refusal(material: Material, number: int, broken: Group, what: str) -> None:
    """Fail unless the contract refuses the batch with one broken group."""
    groups = list(material.groups)
    groups[number] = broken
    try:
        material.loss.check_batch(material.batch(groups))
    except ContractError:
        return
    require_that(False, f"{what} at {broken.source} was accepted; raise ContractError in check_batch")


def take(group: Group, positions: list[int]) -> Group:
    """Make a group of the datums at some positions of another."""
    reference = group.reference_logprobs
    return replace(
        group,
        datums=tuple(group.datums[position] for position in positions),
        attached=tuple(group.attached[position] for position in positions),
        reference_logprobs=None
        if reference is None
        else tuple(reference[position] for position in positions),
    )


def exchange_last(one: Group, two: Group) -> tuple[Group, Group]:
    """Exchange the last datums of two groups."""
    return (
        replace(one, datums=(*one.datums[:-1], two.datums[-1])),
        replace(two, datums=(*two.datums[:-1], one.datums[-1])),
    )


def without_weights(datum: Datum) -> Datum:
    """Copy a datum with all weights zero."""
    weights = datum.loss_fn_inputs["weights"]
    zeros = types.TensorData.from_numpy(np.zeros(len(weights.data), dtype=np.float32))
    return Datum(model_input=datum.model_input, loss_fn_inputs={**datum.loss_fn_inputs, "weights": zeros})
