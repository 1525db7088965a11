"""What is kept only as long as the code that made it: tokens by files, scores and functions by their code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mint_train.plugins.sources import function_digest, own_module, sources_digest, with_helpers


def digest_of(path: Path) -> str:
    return sources_digest(with_helpers(path))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin's package, which imports a module beside it, which imports another one."""
    package = tmp_path / "lexicon_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("import torch, numpy as np\nfrom near_helper import order\n")
    (package / "words.txt").write_text("keep")
    (tmp_path / "near_helper.py").write_text("def order():\n    import far_helper\n")
    (tmp_path / "far_helper.py").write_text("SIGN = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


@pytest.mark.parametrize(
    "changed", ["near_helper.py", "far_helper.py", "lexicon_plugin/words.txt", "lexicon_plugin/__init__.py"]
)
def test_a_plugin_changes_with_what_it_is_made_of(plugin: Path, changed: str) -> None:
    before = digest_of(plugin)
    (plugin / "__pycache__").mkdir()
    (plugin / "__pycache__" / "lexicon_plugin.pyc").write_text("written by Python")
    assert digest_of(plugin) == before
    file = plugin.parent / changed
    file.write_text(file.read_text() + "\n# another\n")
    assert digest_of(plugin) != before


def test_installed_modules_are_no_helpers(plugin: Path) -> None:
    others = ("torch", "json", "mint_train", "mint_train_dpo", "nowhere_at_all")
    assert [own_module(name, tuple(sys.path)) for name in others] == [None] * 5
    assert own_module("near_helper", tuple(sys.path)) == plugin.parent / "near_helper.py"


def test_what_is_not_there_is_never_found_again() -> None:
    assert sources_digest([None]) != sources_digest([None])


def made(source: str, **values: Any) -> Callable[..., Any]:
    """A function of a module that is made of a text."""
    module = ModuleType("made_for_a_test")
    sys.modules[module.__name__] = module
    vars(module).update(values)
    exec(compile(source, "made.py", "exec"), vars(module))
    function: Callable[..., Any] = module.score
    return function


def scaled(factor: float) -> Callable[[float], float]:
    return lambda value: factor * value


class Scorer:
    """Is called as a function is, and counts its calls."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign, self.calls = sign, 0

    def __call__(self, value: float) -> float:
        self.calls += 1
        return self.sign * value

    def turned(self, value: float) -> float:
        return -value


def decorated(sign: float) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapped(value: float) -> Any:
            return sign * function(value)

        return wrapped

    return decorate(scaled(2.0))


def calling(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value: function(value)


CALLS = "def score(x): return helped(x) * SIGN\ndef helped(x): return x + {}\n"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (made("def score(x): return x"), made("def score(x): return -x")),
        (made("def score(x): return x + 1"), made("def score(x): return x + 2")),
        (made("def score(x, *, by=1): return x * by"), made("def score(x, *, by=2): return x * by")),
        (made("def score(x): return [y + 1 for y in x]"), made("def score(x): return [y + 2 for y in x]")),
        (made(CALLS.format(1), SIGN=1), made(CALLS.format(2), SIGN=1)),
        (made(CALLS.format(1), SIGN=1), made(CALLS.format(1), SIGN=-1)),
        (scaled(1.0), scaled(2.0)),
        (partial(max, 1), partial(max, 2)),
        (Scorer(), Scorer().turned),
        (Scorer(1.0), Scorer(-1.0)),
        (Scorer(1.0).turned, Scorer(-1.0).turned),
        (decorated(1.0), decorated(-1.0)),
        (calling(len), calling(str.count)),
        (calling(partial(max, 1)), calling(partial(max, 5))),
    ],
)
def test_a_function_is_known_by_what_it_does(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    assert function_digest(one) == function_digest(one)
    assert function_digest(one) != function_digest(other)


def test_where_a_function_stands_does_not_count() -> None:
    source = "def score(x): return x in {'a', 'b', 'c'}"
    assert function_digest(made(source)) == function_digest(made("\n\n" + source))


def test_what_a_function_counts_does_not_count() -> None:
    calls, texts = 0, list[str]()

    def score(text: str) -> int:
        nonlocal calls
        calls += 1
        texts.append(text)
        return len(text)

    scorer = Scorer()
    before, of_scorer = function_digest(score), function_digest(scorer)
    score("one")
    scorer(1.0)
    assert function_digest(scorer) == of_scorer
    assert (calls, texts) == (1, ["one"])
    assert function_digest(score) == before
