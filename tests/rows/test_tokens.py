"""Tokenised data on disk: the same datums as without it, made once, and never those of something else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mint_train.batches.datums import DatumArrays, build_datum
from mint_train.batches.groups import Group
from mint_train.errors import BackendError, Source, UserError
from mint_train.groups import build as dataset_module
from mint_train.groups import token_writer
from mint_train.groups.build import build_dataset
from mint_train.groups.examples import read_examples
from mint_train.groups.token_file import StoredGroups
from mint_train.groups.token_writer import GroupWriter
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rendering.encoding import BatchTokenizer, can_batch, frozen
from mint_train.rendering.options import Rendering
from mint_train.rendering.renderer import Renderer
from mint_train.rendering.special_tokens import GuardedTokenizer
from mint_train.rows.readers import open_data
from mint_train.rows.row import Example
from mint_train.sdk import Datum, types
from mint_train.settings.cache import cache_folder
from mint_train.settings.model import Settings

ROWS = [{"prompt": f"Say {n}.", "chosen": f"{n} it is", "rejected": f"not {n}, no"} for n in range(10)]


@pytest.fixture(scope="module")
def dpo() -> Loss:
    return Loss.of(load_plugin("dpo"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINT_TRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def said(group: Group) -> Any:
    """All that a group holds, as plain values."""
    return (
        (group.source, group.weight),
        [datum.model_input.to_ints() for datum in group.datums],
        [datum.loss_fn_inputs["target_tokens"].data for datum in group.datums],
        [datum.loss_fn_inputs["weights"].data for datum in group.datums],
        [(arrays.prompt_length, arrays.trained) for arrays in group.arrays],
        [
            {name: value if isinstance(value, float) else list(value) for name, value in own.items()}
            for own in group.attached
        ],
    )


tokens = st.lists(st.integers(0, 200_000), min_size=1, max_size=6)
numbers = st.floats(allow_nan=False, width=32)


@st.composite
def datums(draw: st.DrawFn) -> tuple[Datum, dict[str, Any]]:
    inputs = draw(tokens)
    targets = draw(st.sampled_from([[*inputs[1:], 7], inputs[::-1]]))
    weights = draw(
        st.one_of(
            st.integers(0, len(inputs)).map(lambda n: [0.0] * n + [1.0] * (len(inputs) - n)),
            st.lists(numbers, min_size=len(inputs), max_size=len(inputs)),
        )
    )
    attached = draw(
        st.dictionaries(
            st.sampled_from(["label", "score", "old_logprobs"]),
            st.one_of(
                st.floats(allow_nan=False), st.lists(numbers, min_size=len(inputs), max_size=len(inputs))
            ),
        )
    )
    datum = Datum(
        model_input=types.ModelInput.from_ints(tokens=inputs),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_numpy(np.array(targets, dtype=np.int64)),
            "weights": types.TensorData.from_numpy(np.array(weights, dtype=np.float32)),
        },
    )
    return datum, attached


groups = st.lists(
    st.builds(
        lambda made, line, unit, weight: Group(
            tuple(datum for datum, _ in made),
            Source("data/ö.jsonl", line, unit),
            tuple(own for _, own in made),
            weight=weight,
        ),
        st.lists(datums(), min_size=1, max_size=3),
        st.integers(1, 2**40),
        st.sampled_from(["line", "row"]),
        st.sampled_from([1.0, 0.0, 2.5]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(groups, min_size=1, max_size=3), together=st.sampled_from([1, 2**23]))
def test_groups_come_back_as_they_were_written(
    tmp_path: Path, chunks: list[list[Group]], together: int
) -> None:
    with patch.object(token_writer, "BYTES_AT_ONCE", together):
        writer = GroupWriter(tmp_path / "groups.arrow")
        for chunk in chunks:
            writer.write(chunk)
        writer.close()
    with pa.ipc.open_file(tmp_path / "groups.arrow") as file:
        assert file.num_record_batches == (len(chunks) if together == 1 else 1)
    stored = StoredGroups(tmp_path / "groups.arrow")
    expected = [group for chunk in chunks for group in chunk]
    assert len(stored) == len(expected) == writer.count
    assert [said(group) for group in stored] == [said(group) for group in expected]
    assert said(stored[-1]) == said(expected[-1])
    assert [said(group) for group in stored[1:3]] == [said(group) for group in expected[1:3]]
    order = [*reversed(range(len(expected))), 0]
    assert [said(group) for group in stored.take(order)] == [said(expected[index]) for index in order]
    with pytest.raises(IndexError):
        stored[len(expected)]
    arrays = [group.arrays for group in expected]
    assert [*stored.longest()] == [
        max(len(one.inputs) + is_shifted(one) for one in group) for group in arrays
    ]
    assert [*stored.inputs()] == [sum(len(one.inputs) for one in group) for group in arrays]


def is_shifted(arrays: DatumArrays) -> bool:
    """Return whether a datum's targets are its inputs, shifted by one token."""
    return [*arrays.inputs[1:], *arrays.targets[-1:]] == [*arrays.targets]


def test_a_digest_is_found_by_its_groups_squares(tmp_path: Path) -> None:
    texts = [[1, 2, 3], [3, 1, 2], [1, 2], [2**31 - 1, 2**31 - 1], [1, 2, 3]]
    made = [
        Group.of([build_datum([0], text, None)] * 2, Source("x", line)) for line, text in enumerate(texts)
    ]
    with closing(GroupWriter(tmp_path / "groups.arrow")) as writer:
        writer.write(made)
    stored = StoredGroups(tmp_path / "groups.arrow")
    digests, squares = [*stored.digests()], stored.squares()
    assert squares.tolist()[:3] == [28, 28, 10]
    assert [*stored.digests(squares=squares)] == digests
    assert [*stored.digests(squares=squares[:1])] == [digests[0], digests[1], digests[4]]
    assert digests[0] == digests[4] != digests[1]
    assert not [*stored.digests(squares=np.array([11]))]


def test_a_datum_that_is_not_trained_makes_no_group_another_one(tmp_path: Path) -> None:
    """KTO measures the completion of another row beside each of its own."""
    made = [
        Group.of([build_datum([0], text, None) for text in texts], Source("x", line))
        for line, texts in enumerate(([[1, 2], [3]], [[1, 2], [4, 5]], [[3], [1, 2]]))
    ]
    with closing(GroupWriter(tmp_path / "groups.arrow")) as writer:
        writer.write(made)
    stored = StoredGroups(tmp_path / "groups.arrow")
    assert stored.squares({1}).tolist() == [5, 5, 9]
    first, second, third = stored.digests({1})
    assert first == second != third
    assert [*stored.digests({1}, np.array([5]))] == [first, second]
    assert len({*stored.digests()}) == 3


@pytest.mark.parametrize("name", ["dpo", "kto", "listmle", "policy-gradient", "odpo"])
@pytest.mark.parametrize("max_length", [None, 40])
def test_what_is_batched_and_kept_is_what_flatten_gives(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str, max_length: int | None
) -> None:
    from mint_train.errors import DoesNotFit

    monkeypatch.setattr(dataset_module, "CHUNK", 3)
    loss = Loss.of(load_plugin(name))
    examples = read_examples(open_data(loss.bundled_rows), loss)
    assert can_batch(tokenizer)
    found = build_dataset(examples, loss, tokenizer, Settings(loss="any", max_length=max_length))
    held = list(examples)
    expected = []
    for value, example in zip(loss.link_examples([one.value for one in held]), held, strict=True):
        try:
            expected.append(Group.of(loss.flatten(value, Renderer(tokenizer, max_length)), example.source))
        except DoesNotFit:
            continue
    assert [said(group) for group in found.groups] == [said(group) for group in expected]
    assert len(found.groups) + len(found.left_out) == len(examples)


@pytest.mark.parametrize("has_template", [True, False])
def test_a_chunk_is_encoded_in_one_call_per_kind_of_text(
    dpo: Loss, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, has_template: bool
) -> None:
    plain = copy.deepcopy(tokenizer)
    if not has_template:
        plain.chat_template = None
    examples = [dpo.parse_row(row) for row in ROWS]
    expected = [dpo.flatten(example, Renderer(plain)) for example in examples]
    batched = BatchTokenizer(plain)
    calls = []
    library = plain.backend_tokenizer

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def encode_batch_fast(self, texts: list[str], **more: Any) -> Any:
            calls.append(texts)
            return library.encode_batch_fast(texts, **more)

    monkeypatch.setattr(type(plain), "backend_tokenizer", Watched())
    monkeypatch.setattr(type(plain), "encode", lambda *_, **__: pytest.fail("a text was encoded alone"))

    def flatten(example: Any) -> Any:
        return dpo.flatten(example, Renderer(batched))

    found = []
    for chunk in batched.encoded([examples[:4], examples[4:8], examples[8:]], flatten):
        found += [flatten(example) for example in chunk]
    for again, datums in zip(found, expected, strict=True):
        assert [d.model_input.to_ints() for d in again] == [d.model_input.to_ints() for d in datums]
    assert len(calls) == 3 * (1 if has_template else 2)


@pytest.mark.parametrize("form", ["recipe", "template", "raw"])
def test_each_datum_of_a_row_is_encoded_in_the_call_for_its_chunk(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    def flatten(row: dict[str, str], renderer: Renderer) -> list[Datum]:
        return [renderer.datum(row["prompt"], row[side]) for side in ("chosen", "rejected")]

    expected = [flatten(row, Renderer(tokenizer, None, Rendering(form))) for row in ROWS]
    renderer = Renderer(GuardedTokenizer(tokenizer, "split"), None, Rendering(form))
    monkeypatch.setattr(type(tokenizer), "encode", lambda *_, **__: pytest.fail("a text was encoded alone"))
    examples = [Example(row, Source("x", line)) for line, row in enumerate(ROWS)]
    (chunk,) = renderer.tokenizer.encoded([examples], lambda row: flatten(row, renderer))
    found = [flatten(example.value, renderer) for example in chunk]
    assert [[one.model_input for one in row] for row in found] == [
        [one.model_input for one in row] for row in expected
    ]


def test_a_tokenizer_of_its_own_kind_is_asked_text_by_text(tokenizer: Any) -> None:
    class Own(type(tokenizer)):
        def apply_chat_template(self, *args: Any, **more: Any) -> Any:
            return super().apply_chat_template(*args, **more)

    class OwnEncoding(type(tokenizer)):
        def _encode_plus(self, *args: Any, **more: Any) -> Any:
            return super()._encode_plus(*args, **more)

    for kind in (Own, OwnEncoding):
        own = copy.deepcopy(tokenizer)
        own.__class__ = kind
        assert not can_batch(own)


def test_a_tokenizer_that_was_left_cutting_and_padding_does_neither(
    write_rows: Callable[..., Path], dpo: Loss, tokenizer: Any
) -> None:
    path = write_rows(ROWS)
    expected = [
        Group.of(dpo.flatten(dpo.parse_row(row), Renderer(tokenizer)), Source("x", 1)) for row in ROWS
    ]
    left = copy.deepcopy(tokenizer)
    left.backend_tokenizer.enable_truncation(3)
    left.backend_tokenizer.enable_padding(length=99)
    found = build(path, dpo, left).groups
    assert [said(group)[1:] for group in found] == [said(group)[1:] for group in expected]


@pytest.mark.parametrize("wrong", [3.5, True, None, 2**63])
def test_tokens_must_be_whole_numbers(wrong: Any) -> None:
    with pytest.raises(TypeError, match="tokens must be integers"):
        build_datum([1, 2], [wrong], None)


def test_a_datum_of_arrays_is_sent_as_any_other() -> None:
    from tinker.lib._pydantic_conv import to_pydantic_input

    def sent(datum: Datum) -> Any:
        return to_pydantic_input(
            types.ForwardBackwardInput(data=[datum], loss_fn="cross_entropy")
        ).model_dump(mode="json")

    made = build_datum([1, 2], [3, 4], None)
    plain = Datum(model_input=types.ModelInput.from_ints([1, 2, 3]), loss_fn_inputs=made.loss_fn_inputs)
    assert sent(made) == sent(plain)
    assert made.model_input.to_ints() == [1, 2, 3]


def build(
    path: Path,
    loss: Loss,
    tokenizer: Any,
    max_length: int | None = None,
    special_tokens: Any = "split",
    **more: Any,
) -> Any:
    examples = read_examples(open_data(path), loss, **more)
    settings = Settings(loss="any", max_length=max_length, special_tokens=special_tokens)
    return build_dataset(examples, loss, tokenizer, settings)


@pytest.fixture
def flattened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often data is really flattened."""
    written: list[int] = []
    real = dataset_module.write_groups
    monkeypatch.setattr(dataset_module, "write_groups", lambda *given: (written.append(1), real(*given))[1])
    return written


def test_data_is_tokenised_once(
    write_rows: Callable[..., Path], dpo: Loss, tokenizer: Any, flattened: list[int], own_cache: Path
) -> None:
    path = write_rows(ROWS)
    first = [said(group) for group in build(path, dpo, tokenizer).groups]
    again = build(path, Loss.of(load_plugin("dpo"), {"beta": 0.3}), copy.deepcopy(tokenizer))
    build(path, Loss.of(load_plugin("ipo")), tokenizer)  # which reads and flattens as DPO does
    assert [said(group) for group in again.groups] == first
    assert len(flattened) == 1
    assert len(list(own_cache.iterdir())) == 1


CHANGES = {
    "a row": lambda rows, tokenizer: (rows[:-1], tokenizer, "dpo", {}, None),
    "max length": lambda rows, tokenizer: (rows, tokenizer, "dpo", {}, 64),
    "columns": lambda rows, tokenizer: (
        rows,
        tokenizer,
        "dpo",
        {"chosen": "rejected", "rejected": "chosen"},
        None,
    ),
    "special tokens": lambda rows, tokenizer: (rows, tokenizer, "dpo", {}, None),
    "template": lambda rows, tokenizer: (rows, tokenizer, "dpo", {}, None),
    "vocabulary": lambda rows, tokenizer: (rows, tokenizer, "dpo", {}, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_else_is_tokenised_anew(
    write_rows: Callable[..., Path], dpo: Loss, tokenizer: Any, flattened: list[int], change: str
) -> None:
    build(write_rows(ROWS), dpo, tokenizer)
    other = copy.deepcopy(tokenizer)
    rows, other, loss, columns, max_length = CHANGES[change](ROWS, other)
    if change == "template":
        other.chat_template = "{{ messages[0]['content'] }}"
    if change == "vocabulary":
        other.add_tokens(["it is"])
    policy = "allow" if change == "special tokens" else "split"
    build(write_rows(rows), Loss.of(load_plugin(loss)), other, max_length, policy, columns=columns)
    assert len(flattened) == 2


def test_options_count_where_a_hook_of_the_data_takes_them(
    write_rows: Callable[..., Path], tokenizer: Any, flattened: list[int]
) -> None:
    path = write_rows([{"prompt": f"p{n}", "completion": f"c{n}", "label": n % 2 == 0} for n in range(4)])
    with_baseline = build(path, Loss.of(load_plugin("kto")), tokenizer)
    without = build(path, Loss.of(load_plugin("kto"), {"baseline": "none"}), tokenizer)
    assert len(flattened) == 2
    assert [len(found.groups[0].datums) for found in (with_baseline, without)] == [2, 1]


def test_a_changed_source_of_a_plugin_counts(
    tmp_path: Path, write_rows: Callable[..., Path], tokenizer: Any, flattened: list[int]
) -> None:
    """A developer's next run must not find the tokens of the code before."""
    source = (
        "from mint_train import hookimpl\nfrom mint_train.batches.datums import build_datum\n"
        'EXTENDS = "dpo"\n\n@hookimpl\ndef flatten(example, renderer):\n'
        '    """Two datums."""\n    return [build_datum([1, 2], [token, 4], None) for token in (TOKEN, 3)]\n'
    )
    path, found = write_rows(ROWS), []
    for token in ("5", "66"):  # of another length: Python tells sources apart by second and size
        (tmp_path / "changing.py").write_text(source.replace("TOKEN", token))
        loss = Loss.of(load_plugin(str(tmp_path / "changing.py")))
        found.append(build(path, loss, tokenizer).groups[0].targets[0].tolist())
    assert found == [[2, 5, 4], [2, 66, 4]]
    assert len(flattened) == 2


def test_a_failed_build_leaves_nothing(
    write_rows: Callable[..., Path], dpo: Loss, tokenizer: Any, own_cache: Path
) -> None:
    with pytest.raises(UserError, match="nothing is left to train"):
        build(write_rows(ROWS), dpo, tokenizer, 3)
    assert list(own_cache.iterdir()) == []


def test_a_broken_file_says_what_to_delete(
    write_rows: Callable[..., Path], dpo: Loss, tokenizer: Any, own_cache: Path
) -> None:
    path = write_rows(ROWS)
    build(path, dpo, tokenizer)
    (kept,) = own_cache.iterdir()
    whole = (kept / "groups.arrow").read_bytes()
    (kept / "groups.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BackendError, match=f"delete {kept}"):
        StoredGroups(kept / "groups.arrow")


def test_a_cache_that_cannot_be_written_is_one_line(
    write_rows: Callable[..., Path], dpo: Loss, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(ROWS)
    monkeypatch.setenv("MINT_TRAIN_CACHE", str(path / "cache"))
    with pytest.raises(UserError, match=r"cannot be written to .*name another folder with MINT_TRAIN_CACHE"):
        build(path, dpo, tokenizer)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder().name == "cache"
    monkeypatch.delenv("MINT_TRAIN_CACHE")
    assert cache_folder() == Path("/somewhere/mint-train")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/somebody/.cache/mint-train")


def test_the_cache_holds_no_row_that_is_left_out(
    write_rows: Callable[..., Path], dpo: Loss, tokenizer: Any, flattened: list[int]
) -> None:
    path = write_rows([*ROWS, ROWS[0] | {"prompt": "word " * 300}])
    counts = [
        (len(found.groups), len(found.left_out))
        for found in [build(path, dpo, tokenizer, 64) for _ in range(2)]
    ]
    assert counts == [(10, 1)] * 2
    assert len(flattened) == 1


def test_two_runs_that_tokenise_at_once_agree(
    write_rows: Callable[..., Path],
    dpo: Loss,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
) -> None:
    path = write_rows(ROWS)
    real = dataset_module.write_groups

    def slow(*given: Any) -> None:
        monkeypatch.setattr(dataset_module, "write_groups", real)
        build(path, dpo, tokenizer)  # another run is faster
        real(*given)

    monkeypatch.setattr(dataset_module, "write_groups", slow)
    assert len(build(path, dpo, tokenizer).groups) == 10
    (kept,) = own_cache.iterdir()
    summary = json.loads((kept / "summary.json").read_text())
    empty = {name: [] for name in ("left_out", "unsuited", "special", "markers")}
    assert summary == {**empty, "by_path": {str(path): 10}}


@pytest.mark.parametrize("other", [1, 1.0, "True", [True], None, {"True": True}, ["list", True], [[True]]])
def test_what_a_template_is_given_is_told_apart_though_it_is_equal(other: object) -> None:
    """Two rows may give a template 1 and true, which Python takes for one key."""
    assert frozen({"enable_thinking": True}) == frozen({"enable_thinking": True})
    assert frozen({"enable_thinking": True}) != frozen({"enable_thinking": other})
    assert frozen([{"a": other}, {"b": True}]) != frozen([{"a": True}, {"b": other}])
    assert hash(frozen([other])) == hash(frozen([other]))
