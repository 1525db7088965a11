"""Errors: what they say, what is added on their way up, and that they survive pickling."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

import mint_train.rendering.special_tokens  # noqa: F401 - defines an error
from mint_train.conformance.material import ConformanceError
from mint_train.errors import (
    BudgetError,
    ContractError,
    DoesNotFit,
    LossError,
    MintTrainError,
    RowError,
    ServiceError,
    Source,
)


def subclasses(error: type[Exception]) -> Iterator[type[Exception]]:
    yield error
    for derived in error.__subclasses__():
        yield from subclasses(derived)


EVERY_ERROR = sorted(
    {*subclasses(MintTrainError), DoesNotFit, ConformanceError}, key=lambda error: error.__qualname__
)


@pytest.mark.parametrize("error_class", EVERY_ERROR, ids=lambda error: error.__name__)
def test_an_error_can_be_pickled(error_class: type[Exception]) -> None:
    given = {RowError: ("a text", "another"), BudgetError: (9, 5, "a text", 8)}
    kind = next((kind for kind in given if issubclass(error_class, kind)), None)
    error = error_class(*given.get(kind, ("a text",)))
    if isinstance(error, MintTrainError):
        error.locate("step 3")
        error.retries = 2
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is error_class
    assert str(copy) == str(error)
    assert "a text" in str(copy)
    assert vars(copy) == vars(error)


def test_parts_given_by_name_survive_pickling() -> None:
    error = ContractError(problem="its label is missing", group=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.problem, copy.group) == ("its label is missing", 3)
    row_error = pickle.loads(pickle.dumps(RowError(field="prompt", problem="is empty")))
    assert (row_error.field, row_error.problem) == ("prompt", "is empty")


def test_an_error_says_where_from_the_outside_in() -> None:
    error = ContractError("its label is missing", group=3)
    error.locate(Source("rows.jsonl", 4))
    error.locate("step 3")
    assert str(error) == "step 3: rows.jsonl:4: its label is missing"
    assert error.message == "its label is missing"


def test_where_an_error_happened_is_its_own() -> None:
    LossError("nan").locate("step 3")
    assert str(LossError("nan")) == "nan"


@pytest.mark.parametrize(
    ("retries", "shown"),
    [
        (0, "the service failed"),
        (1, "the service failed (retried once)"),
        (2, "the service failed (retried 2 times)"),
    ],
)
def test_an_error_says_how_often_the_runner_retried(retries: int, shown: str) -> None:
    error = ServiceError("the service failed")
    error.retries = retries
    assert str(error) == shown
