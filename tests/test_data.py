"""Reading data: the forms that are taken, and one line with file, line and field for each that is not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mint_train.errors import DataError
from mint_train.groups.build import build_dataset
from mint_train.groups.examples import read_examples
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rows.readers import open_data, read_rows
from mint_train.settings.model import Settings
from mint_train_dpo.rows import PreferencePair

ROW = {"prompt": "a question", "chosen": "a good answer", "rejected": "a bad answer"}
TURN = {"role": "user", "content": "a question"}
GOOD_TURN = {"role": "assistant", "content": "a good answer"}
BAD_TURN = {"role": "assistant", "content": "a bad answer"}
PAIR = PreferencePair("a question", "a good answer", "a bad answer")
CHAT_PAIR = PreferencePair([TURN], "a good answer", "a bad answer")


@pytest.fixture(scope="module")
def dpo() -> Loss:
    return Loss.of(load_plugin("dpo"))


@pytest.fixture
def read(dpo: Loss, tmp_path: Path) -> Callable[[str | bytes], list[tuple[Any, str]]]:
    """Read a file of this content: each example with where it came from."""

    def read_content(content: str | bytes) -> list[tuple[Any, str]]:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return [
            (example.value, str(example.source).removeprefix(f"{tmp_path}/"))
            for example in read_examples(open_data(path), dpo)
        ]

    return read_content


def dumps(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines(read: Callable[..., Any]) -> None:
    second = ROW | {"prompt": "two"}
    assert read(dumps(ROW, second)) == [
        (PAIR, "rows.jsonl:1"),
        (PreferencePair("two", "a good answer", "a bad answer"), "rows.jsonl:2"),
    ]


def test_blank_lines_are_skipped_and_counted(read: Callable[..., Any]) -> None:
    assert [source for _, source in read("\n" + dumps(ROW) + " \n\n" + dumps(ROW))] == [
        "rows.jsonl:2",
        "rows.jsonl:5",
    ]


def test_a_last_line_without_newline_is_read(read: Callable[..., Any]) -> None:
    assert len(read(dumps(ROW) + json.dumps(ROW))) == 2


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_json_array(read: Callable[..., Any], indent: int | None) -> None:
    assert [value for value, _ in read(json.dumps([ROW, ROW, ROW], indent=indent))] == [PAIR] * 3


def test_array_elements_keep_the_line_that_they_begin_on(read: Callable[..., Any]) -> None:
    row = json.dumps(ROW, indent=2)  # five lines
    content = f"\n[\n\n{row},\n{row}, {row}\n,\n\n  {row}\n]\n"
    lines = [int(source.partition(":")[2]) for _, source in read(content)]
    assert lines == [4, 9, 13, 20]
    for line in lines:
        assert "{" in content.split("\n")[line - 1]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blanks=st.lists(st.sampled_from(["", " ", "\n", "\n\n  ", "\r\n", "\t"]), min_size=1, max_size=6),
    indent=st.sampled_from([None, 0, 3]),
)
def test_array_line_numbers_for_any_layout(
    read: Callable[..., Any], blanks: list[str], indent: int | None
) -> None:
    content, expected = "[", []
    for place, blank in enumerate(blanks):
        content += ("," if place else "") + blank
        expected.append(1 + content.count("\n"))
        content += json.dumps(ROW, indent=indent) + blank
    assert [int(source.partition(":")[2]) for _, source in read(content + "]")] == expected


def test_byte_order_mark(read: Callable[..., Any]) -> None:
    assert read(b"\xef\xbb\xbf" + dumps(ROW).encode())[0][0] == PAIR
    assert read(b"\xef\xbb\xbf" + json.dumps([ROW]).encode())[0][0] == PAIR


def test_windows_line_ends(read: Callable[..., Any]) -> None:
    sources = [source for _, source in read(dumps(ROW, ROW).replace("\n", "\r\n"))]
    assert sources == ["rows.jsonl:1", "rows.jsonl:2"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_unicode_line_separator_in_a_string_ends_no_row(read: Callable[..., Any], separator: str) -> None:
    row = ROW | {"prompt": f"one{separator}two"}
    escaped = separator < "\x20"  # JSON allows these only escaped
    content = json.dumps(row, ensure_ascii=escaped) + "\n" + json.dumps(ROW)
    assert [(value.prompt, source) for value, source in read(content)] == [
        (f"one{separator}two", "rows.jsonl:1"),
        ("a question", "rows.jsonl:2"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [TURN], "chosen": [GOOD_TURN], "rejected": [BAD_TURN]},
        {"prompt": [TURN], "chosen": GOOD_TURN, "rejected": BAD_TURN},
        {"prompt": [TURN], "chosen": "a good answer", "rejected": "a bad answer"},
        {"chosen": [TURN, GOOD_TURN], "rejected": [TURN, BAD_TURN]},
        {"prompt": "a question", "chosen": [TURN, GOOD_TURN], "rejected": [TURN, BAD_TURN]},
        {
            "conversations": [{"from": "human", "value": "a question"}],
            "chosen": {"from": "gpt", "value": "a good answer"},
            "rejected": {"from": "gpt", "value": "a bad answer"},
        },
    ],
    ids=["messages", "single messages", "text answers", "conversations", "conversations+prompt", "sharegpt"],
)
def test_forms_of_chat(read: Callable[..., Any], row: Any) -> None:
    assert read(dumps(row)) == [(CHAT_PAIR, "rows.jsonl:1")]


def test_sharegpt_roles_and_many_turns(read: Callable[..., Any]) -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "one"},
            {"from": "gpt", "value": "two"},
            {"from": "human", "value": "three"},
        ],
        "chosen": {"from": "gpt", "value": "four"},
        "rejected": {"from": "gpt", "value": "five"},
    }
    ((pair, _),) = read(dumps(row))
    assert [message["role"] for message in pair.prompt] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in pair.prompt] == ["be brief", "one", "two", "three"]
    assert (pair.chosen, pair.rejected) == ("four", "five")


def test_all_dialogues_are_read(dialogues: Path, dpo: Loss) -> None:
    raw = dialogues.read_text(encoding="utf-8")
    rows = json.loads(raw)
    examples = list(read_examples(open_data(dialogues), dpo))
    assert len(examples) == len(rows)
    lines = raw.split("\n")
    for example, row in zip(examples, rows, strict=True):
        assert example.value.chosen == row["chosen"]["value"]
        assert example.value.rejected == row["rejected"]["value"]
        assert [message["content"] for message in example.value.prompt] == [
            turn["value"] for turn in row["conversations"]
        ]
        assert lines[example.source.line - 1].strip() == "{"


ROW_TEXT = json.dumps(ROW)

BAD_FILES = {
    "empty": (b"", "rows.jsonl: the file holds no rows"),
    "only a mark": (b"\xef\xbb\xbf", "rows.jsonl: the file holds no rows"),
    "blank": (b" \n\n", "rows.jsonl: the file holds no rows"),
    "empty array": (b"[]", "rows.jsonl: the file holds no rows"),
    "broken line": (f"{ROW_TEXT}\n{{'prompt': 1}}\n", "rows.jsonl:2: broken JSON at column 2"),
    "comma behind a row": (f"{ROW_TEXT},\n{ROW_TEXT}\n", "rows.jsonl:1: broken JSON at column"),
    "cut line": (f"{ROW_TEXT}\n{ROW_TEXT[:30]}", "rows.jsonl:2: broken JSON at column"),
    "two rows in a line": (f"{ROW_TEXT}{ROW_TEXT}\n", "rows.jsonl:1: broken JSON at column"),
    "cut array": (f"[\n{ROW_TEXT},\n{ROW_TEXT}\n", "rows.jsonl:4: broken JSON: expected , or ]"),
    "open array": (f"[\n{ROW_TEXT},\n", "rows.jsonl:3: broken JSON at column"),
    "array with a comma behind": (f"[\n{ROW_TEXT},\n]", "rows.jsonl:3: broken JSON"),
    "array without comma": (f"[\n{ROW_TEXT}\n{ROW_TEXT}\n]", "rows.jsonl:3: broken JSON: expected , or ]"),
    "more behind an array": (f"[\n{ROW_TEXT}\n]\n{ROW_TEXT}", "something follows the closing ]"),
    "broken element": (f"[\n{ROW_TEXT},\n{{'a'}}\n]", "rows.jsonl:3: broken JSON at column"),
    "number": (f"{ROW_TEXT}\n3\n", "rows.jsonl:2: a row must be an object with fields, not a number"),
    "text": (b'"a"\n', "rows.jsonl:1: a row must be an object with fields, not text"),
    "null": (b"null\n", "rows.jsonl:1: a row must be an object with fields, not null"),
    "array of lists": (b"[[1]]", "rows.jsonl:1: a row must be an object with fields, not a list"),
    "not UTF-8": (f"{ROW_TEXT}\n".encode() + b'{"prompt": "\xe9"}', "rows.jsonl:2: not UTF-8 (byte 0xe9)"),
    "UTF-16": (ROW_TEXT.encode("utf-16"), "rows.jsonl:1: not UTF-8 (byte 0xff)"),
    "cut gzip": (b"\x1f\x8b\x08\x00", "rows.jsonl: cannot be read from its beginning: "),
    "cut zstd": (b"\x28\xb5\x2f\xfd\x04", "rows.jsonl: cannot be read from its beginning: "),
    "huge number": (b'{"a": ' + b"9" * 5000 + b"}", "rows.jsonl:1: JSON that cannot be read"),
    "deep nesting": (b'{"a": ' + b"[" * 100_000, "rows.jsonl:1: JSON that cannot be read"),
    "deep array": (b"[" * 100_000, "rows.jsonl:1: JSON that cannot be read"),
}

BAD_ROWS = {
    "no prompt": ({"chosen": "a", "rejected": "b"}, 'field "prompt": missing; the row has '),
    "no chosen": ({"prompt": "p", "rejected": "b"}, 'field "chosen": missing; the row has '),
    "no rejected": ({"prompt": "p", "chosen": "a"}, 'field "rejected": missing; the row has '),
    "no fields": ({}, 'field "chosen": missing; the row has no fields'),
    "empty prompt": (ROW | {"prompt": ""}, 'field "prompt": is empty'),
    "blank chosen": (ROW | {"chosen": " \n"}, 'field "chosen": is empty'),
    "empty rejected": (ROW | {"rejected": ""}, 'field "rejected": is empty'),
    "null": (ROW | {"chosen": None}, 'field "chosen": must be'),
    "number": (ROW | {"prompt": 3}, 'field "prompt": must be'),
    "true": (ROW | {"rejected": True}, 'field "rejected": must be'),
    "no messages": (ROW | {"prompt": []}, 'field "prompt": is an empty list'),
    "message without content": (
        ROW | {"prompt": [{"role": "user"}]},
        'field "prompt[0].content": must be text, not null',
    ),
    "empty message": (
        ROW | {"prompt": [TURN, {"role": "user", "content": ""}]},
        'field "prompt[1].content": is empty',
    ),
    "a prompt thrown away": (
        {"prompt": "unused", "chosen": [TURN, GOOD_TURN], "rejected": [TURN, BAD_TURN]},
        'field "prompt": is not read in this form, and may change what is trained; leave it out with',
    ),
    "text in messages": (ROW | {"prompt": [TURN, "a"]}, 'field "prompt[1]": must be a message'),
    "unknown speaker": (
        {"chosen": "a", "rejected": "b", "conversations": [{"from": "parrot", "value": "x"}]},
        'field "conversations[0].from": "parrot" is not a known role; those are assistant, bard, ',
    ),
    "prompt of the assistant": (ROW | {"prompt": [TURN, GOOD_TURN]}, 'field "prompt": ends with the assist'),
    "answer of the user": (
        ROW | {"chosen": [BAD_TURN, TURN]},
        'field "chosen": is a message of the user',
    ),
    "conversations that differ": (
        {"chosen": [TURN, GOOD_TURN], "rejected": [TURN | {"content": "other"}, BAD_TURN]},
        'field "rejected": and chosen part in message 0, one of the user: they must share their prompt',
    ),
    "equal": (ROW | {"rejected": ROW["chosen"]}, 'field "rejected": is equal to chosen'),
    "half a character": (ROW | {"chosen": "\ud83d"}, 'field "chosen": holds half of a character'),
}


def refused(run_cli: Callable[..., Any], path: Path) -> str:
    """Train on a file that must be refused before a model is loaded; return the one line."""
    status, out, err = run_cli("--loss", "dpo", "--data", path, "--output", "run")
    assert (status, out) == (2, "")
    assert not Path("run").exists()
    assert err.startswith("mint-train: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("mint-train: ")


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(run_cli: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    content, message = BAD_FILES[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    line = refused(run_cli, path)
    assert line.startswith(f"{path}:")
    assert message in line


@pytest.mark.parametrize("kind", BAD_ROWS)
@pytest.mark.parametrize("form", ["lines", "array"])
def test_bad_rows(run_cli: Callable[..., Any], tmp_path: Path, kind: str, form: str) -> None:
    row, message = BAD_ROWS[kind]
    path = tmp_path / "rows.json"
    rows = [json.dumps(ROW), json.dumps(ROW), json.dumps(row), json.dumps(ROW)]
    path.write_text("\n".join(rows) if form == "lines" else "[" + ",\n".join(rows) + "]", encoding="utf-8")
    assert refused(run_cli, path).startswith(f"{path}:3: {message}")


def test_what_the_recipe_cannot_render_is_refused_with_its_line(
    run_cli: Callable[..., Any], write_rows: Callable[..., Path]
) -> None:
    path = write_rows([ROW, ROW | {"chosen": [GOOD_TURN, TURN, BAD_TURN]}])
    status, _, err = run_cli("--loss", "dpo", "--data", path, "--output", "run")
    assert status == 2
    assert f'{path}:2: field "chosen": holds several answers of the assistant; ' in err
    assert "--render template renders it" in err
    assert not Path("run").exists()


def test_missing_file(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    missing = f"{tmp_path}/none.jsonl: no such file; "
    assert refused(run_cli, tmp_path / "none.jsonl") == f"{missing}it was looked for in {tmp_path}\n"
    (tmp_path / "nine.jsonl").touch()
    close = f'did you mean "{tmp_path}/nine.jsonl"?\n'
    assert refused(run_cli, tmp_path / "none.jsonl") == missing + close
    nowhere = tmp_path / "no" / "none.parquet"
    assert refused(run_cli, nowhere) == f"{nowhere}: no such file; the folder {tmp_path}/no does not exist\n"


def test_a_folder_is_no_file(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    assert refused(run_cli, tmp_path).startswith(f"{tmp_path}: Is a directory; name its files (there is none")


@pytest.mark.parametrize(
    ("files", "patterns"),
    [
        (["train-0.parquet", "train-1.parquet", "README.md"], "'*.parquet'"),
        (["a.jsonl.gz", "b.jsonl.gz", "dataset_info.json"], "'*.jsonl.gz' or '*.json'"),
        (["data/a.csv.zst", "notes.txt"], "'*/*.csv.zst'"),
    ],
)
def test_the_pattern_for_a_folder_is_that_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], patterns: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / "my shards" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my shards" / name).touch()
    with pytest.raises(DataError) as error:
        open_data("my shards")
    named = patterns.replace("'*", "'my shards/*")
    assert str(error.value).endswith(f"name its files ({named}), or a data set ('hf:my shards')")
    assert len(open_data(shlex.split(named)[0]).shards) == sum(
        name.endswith(patterns.split("'")[1].lstrip("*/")) for name in files
    )


def read_or_problem(path: Path, dpo: Loss) -> tuple[list[Any], str | None]:
    """The examples of a file, or why it is refused; any other error fails the test."""
    try:
        return list(read_examples(open_data(path), dpo)), None
    except DataError as error:
        return [], str(error)


MANGLED = json.dumps(
    [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": [TURN], "chosen": [GOOD_TURN], "rejected": [BAD_TURN]},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "c"},
            "rejected": {"from": "gpt", "value": "d"},
        },
    ],
    indent=1,
).encode()
MANGLED_LINES = dumps(*json.loads(MANGLED)).encode()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), source=st.sampled_from([MANGLED, MANGLED_LINES]))
def test_a_mangled_file_is_read_whole_or_refused(
    dpo: Loss, tmp_path: Path, data: st.DataObject, source: bytes
) -> None:
    content = bytearray(source)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        removed = data.draw(st.integers(0, 12))
        added = data.draw(
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"\n", b"null", b"[]", b"{}", b'""']),
            )
        )
        content[place : place + removed] = added
    path = tmp_path / "mangled.json"
    path.write_bytes(content)
    examples, problem = read_or_problem(path, dpo)
    if problem is not None:
        assert problem.startswith(str(path))
        assert "\n" not in problem
    else:
        # around rows our reader takes any white space, Python's parser only that of JSON
        spaced = (" " if each.isspace() and each != "\n" else each for each in content.decode("utf-8-sig"))
        text = "".join(spaced)
        try:
            rows = json.loads(text)
        except ValueError:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        rows = rows if isinstance(rows, list) else [rows]
        assert len(examples) == len(rows), "a row was lost"


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.dictionaries(
        st.sampled_from(["prompt", "chosen", "rejected", "conversations"]), json_values, max_size=4
    )
)
def test_any_row_of_json_is_a_pair_or_refused_with_its_line(dpo: Loss, tmp_path: Path, row: Any) -> None:
    path = tmp_path / "any.jsonl"
    path.write_text(dumps(ROW, row), encoding="utf-8")
    examples, problem = read_or_problem(path, dpo)
    if problem is not None:
        assert problem.startswith(f'{path}:2: field "')
    else:
        assert len(examples) == 2
        pair = examples[1].value
        assert isinstance(pair.chosen, str)
        assert pair.chosen != pair.rejected


def test_rows_of_both_forms_are_the_same(tmp_path: Path) -> None:
    lines, array = tmp_path / "a", tmp_path / "b"
    lines.write_text(dumps(ROW, ROW))
    array.write_text(json.dumps([ROW, ROW]))
    assert [row.values for row in read_rows(lines)] == [row.values for row in read_rows(array)]


# what --max-length leaves


def dataset(dpo: Loss, tokenizer: Any, path: Path, max_length: int | None) -> Any:
    return build_dataset(
        read_examples(open_data(path), dpo), dpo, tokenizer, Settings(loss="any", max_length=max_length)
    )


def test_pairs_that_do_not_fit_are_counted_and_named(
    dpo: Loss, tokenizer: Any, write_rows: Callable[..., Path]
) -> None:
    long = ROW | {"prompt": "word " * 400}
    path = write_rows([ROW, long, ROW, long])
    found = dataset(dpo, tokenizer, path, 64)
    assert [group.source.line for group in found.groups] == [1, 3]
    assert [line.partition(": ")[0] for line in found.left_out] == [f"{path}:2", f"{path}:4"]
    assert all("fill --max-length 64" in line for line in found.left_out)
    assert len(dataset(dpo, tokenizer, path, None).groups) == 4


def test_no_group_is_longer_than_max_length_or_has_nothing_to_train(
    dpo: Loss, tokenizer: Any, write_rows: Callable[..., Path]
) -> None:
    rows = [{"prompt": "p " * n, "chosen": "good " * n, "rejected": "bad " * (40 - n)} for n in range(1, 40)]
    path = write_rows(rows)
    for max_length in (16, 20, 40, 60):
        found = dataset(dpo, tokenizer, path, max_length)
        assert len(found.groups) + len(found.left_out) == len(rows)
        for group in found.groups:
            assert max(group.lengths) < max_length
            assert min(group.trained_lengths) > 0


def test_a_cut_that_makes_both_completions_equal_leaves_the_pair_out(
    dpo: Loss, tokenizer: Any, write_rows: Callable[..., Path]
) -> None:
    same = "the same words at the beginning of both answers, " * 4
    path = write_rows([ROW, {"prompt": "p", "chosen": same + "good", "rejected": same + "bad"}])
    found = dataset(dpo, tokenizer, path, 30)
    assert len(found.groups) == 1
    assert "begin with the same" in found.left_out[0]
    assert found.left_out[0].startswith(f"{path}:2: ")


def test_nothing_left_to_train_is_refused(
    run_cli: Callable[..., Any], write_rows: Callable[..., Path], starter_model_folder: Path
) -> None:
    path = write_rows([ROW])
    given = ("--loss", "dpo", "--data", path, "--model", starter_model_folder, "--output", "run")
    status, _, err = run_cli(*given, "--max-length", 3)
    assert status == 2
    assert f"nothing is left to train: {path}:1: the prompt's" in err
    assert "raise --max-length" in err
    # the folder is free for the next try
    status, _, err = run_cli(*given, "--max-length", 100)
    assert (status, err) == (0, "")


def test_left_out_pairs_are_printed_and_recorded(
    run_cli: Callable[..., Any], write_rows: Callable[..., Path], starter_model_folder: Path
) -> None:
    long = ROW | {"prompt": "word " * 400}
    path = write_rows([ROW, *[long] * 7])
    status, out, _ = run_cli(
        "--loss",
        "dpo",
        "--data",
        path,
        "--model",
        starter_model_folder,
        "--max-length",
        64,
        "--output",
        "run",
    )
    assert status == 0
    assert "Left out, as --max-length leaves nothing to train: 7" in out
    assert f"  {path}:2: the prompt's" in out
    assert "... and 2 more, listed in run.json" in out
    recorded = json.loads(Path("run/run.json").read_text())["data"]
    assert recorded["groups"] == 1
    assert len(recorded["left_out"]) == 7
