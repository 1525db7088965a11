"""Several sources: all rows, or shares by weight; held-out sets by name; rows that a program gives."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow as pa
import pytest
from few_rows import lines
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_train.errors import DataError, OptionError
from mint_train.groups.examples import find_data, read_examples
from mint_train.groups.order import Order, epoch_order
from mint_train.groups.shares import Share, largest_remainders, shares_of
from mint_train.losses.weighted_sum import open_loss
from mint_train.rows.mixture import open_items
from mint_train.settings.data_items import DataItem
from mint_train.settings.merge import load_settings

ROWS = [{"prompt": f"Say {n}.", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(6)]
WEIGTH = 'nothing of a source is called "weigth"; did you mean "weight"?'


def data_of(value: Any) -> tuple[DataItem, ...]:
    return load_settings({"loss": "dpo", "data": value}).data


def held_out_of(value: Any) -> dict[str, DataItem]:
    return load_settings({"loss": "dpo", "eval_data": value}).eval_data


# what names a source


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ("a.jsonl", [("a.jsonl", None)]),
        (Path("a.jsonl"), [("a.jsonl", None)]),
        ("a.jsonl:0.5", [("a.jsonl", 0.5)]),
        ("C:\\rows.jsonl", [("C:\\rows.jsonl", None)]),
        (["a.jsonl:2", "hf:org/name:test:1e-1"], [("a.jsonl", 2.0), ("hf:org/name:test", 0.1)]),
        (["hf:org/name:train[:10%]", "b.csv"], [("hf:org/name:train[:10%]", None), ("b.csv", None)]),
        ([("a.jsonl", 0.5), (ROWS, 1)], [("a.jsonl", 0.5), ("data[1]", 1.0)]),
        ([{"name": "a:3.jsonl", "weight": 3}, "b:1"], [("a:3.jsonl", 3.0), ("b", 1.0)]),
        (ROWS, [("data", None)]),
        ([{"name": "Ann", "prompt": "Who?"}], [("data", None)]),
        (None, []),
    ],
)
def test_sources_by_name_weight_and_value(given: Any, items: list[tuple[str, float | None]]) -> None:
    assert [(item.name, item.weight) for item in data_of(given)] == items


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a:1", "b"], "--data=a:1 b: give each source a weight or none; b has none (write b:0.5)"),
        ("a:0", "--data=a:0: a has the weight 0; it must be a number above 0 and below 1e+100"),
        ("a:1e308", "--data=a:1e308: a has the weight 1e+308; it must be a number above 0 and below 1e+100"),
        ([("a", 10**400)], "--data: a has the weight 1e+100; it must be a number above 0 and below 1e+100"),
        ([{"name": "a", "weight": "heavy"}], "--data: a has the weight 'heavy'; it must be a number"),
        ([{"name": "a", "weight": [1]}], "--data: a has the weight [1]; it must be a number"),
        ([{"name": "a", "weight": True}], "--data: a has the weight True; it must be a number"),
        ([{"name": "a", "columns": ["b"]}], '--data: the columns of a need a table of names'),
        ([{"name": "a", "columns": {"prompt": 3}}], '--data: the columns of a need a table of names'),
        ("a:-1", "--data=a:-1: a has the weight -1; it must be a number above 0 and below 1e+100"),
        ([], "--data: is an empty list; give a file or rows"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
         "--data: is a DatasetDict of train; give a list of rows, or one split"),
        ([{"name": "a", "weigth": 1}], f"--data: {WEIGTH}"),
        ([{"nam": "a", "weight": 1}], '--data: nothing of a source is called "nam"; did you mean "name"?'),
        (["b", {"name": "a", "colums": {}}],
         '--data: nothing of a source is called "colums"; did you mean "columns"?'),
        ({"name": "a", "weigth": 1}, f"--data: {WEIGTH}"),
        ([{"name": 3, "weight": 1}], "--data: a source needs its name, as text"),
        (["a.jsonl", ROWS[0]],
         "--data: mixes names of files with a table; give (ROWS, WEIGHT) or names only"),
        (3, "--data=3: is a number; give a file, a list of files, or rows"),
    ],
)  # fmt: skip
def test_what_names_no_source_is_refused(given: Any, said: str) -> None:
    with pytest.raises(OptionError) as refused:
        data_of(given)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('data = [{name = "a", weigth = 1}]', f"data[0]: {WEIGTH}"),
        ('data = ["b", {name = "a", weigth = 1}]', f"data[1]: {WEIGTH}"),
        ('data = {name = "a", weigth = 1}', f"data: {WEIGTH}"),
        ('data = [{weight = 1}]', "data[0]: a source needs its name, as text"),
        ('data = [{name = 3}]', "data[0]: a source needs its name, as text"),
        ('data = [{name = "a", form = "x"}]',
         'data[0]: nothing of a source is called "form"; there are name, weight, columns'),
        ('eval_data = {name = "a", weigth = 1}', f"eval_data: {WEIGTH}"),
        ('eval_data = {easy = {name = "a", weigth = 1}}', f"eval_data.easy: {WEIGTH}"),
        ('eval_data = [{name = "a", weigth = 1}]', f"eval_data[0]: {WEIGTH}"),
    ],
)  # fmt: skip
def test_a_misspelt_key_of_a_source_in_a_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    """Such a table was taken for a row of training data that the file holds."""
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(OptionError) as refused:
        load_settings({"loss": "dpo"}, path)
    assert str(refused.value) == f"--config {path}: {said}"


def test_tables_of_a_file_that_name_sources_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('data = [{name = "a"}, "b"]\neval_data = {easy = {name = "c"}, hard = "d"}')
    read = load_settings({"loss": "dpo"}, path)
    assert [item.name for item in read.data] == ["a", "b"]
    assert {name: item.name for name, item in read.eval_data.items()} == {"easy": "c", "hard": "d"}
    assert held_out_of({"weight": "c"}) == {"weight": DataItem("c")}
    path.write_text('eval_data = {name = "c"}')
    assert held_out_of({"name": "c"}) == load_settings({"loss": "dpo"}, path).eval_data


def test_a_file_s_own_colon_and_equals_sign_are_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run:3", "a=b.jsonl"):
        Path(name).write_text("{}")
    assert data_of("run:3") == (DataItem("run:3"),)
    assert data_of("run:3:0.5") == (DataItem("run:3", 0.5),)
    assert held_out_of("a=b.jsonl") == {"": DataItem("a=b.jsonl")}
    assert held_out_of(["x=a=b.jsonl", "y=run:3"]) == {"x": DataItem("a=b.jsonl"), "y": DataItem("run:3")}
    for name in ("run", "b.jsonl"):
        Path(name).write_text("{}")
    with pytest.raises(OptionError, match=r"run:3 is a file, and so is run; write run:3:1 for the first"):
        data_of("run:3")
    with pytest.raises(OptionError, match=r"write \./a=b\.jsonl for the first"):
        held_out_of("a=b.jsonl")
    assert held_out_of("./a=b.jsonl") == {"": DataItem("./a=b.jsonl")}


@pytest.mark.parametrize(
    "given",
    [
        "a.jsonl",
        "a.jsonl:3",
        ["a", "b"],
        ["a:1", "b:2"],
        [{"name": "x:3"}, {"name": "y", "columns": {"prompt": "q"}}],
    ],
)
def test_what_is_written_down_is_read_as_the_same(given: Any) -> None:
    kept = load_settings({"loss": "dpo", "data": given})
    assert load_settings({"loss": "dpo", "data": kept.public()["data"]}).data == kept.data


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a.jsonl", "b.jsonl"], "each of several held-out sets needs a name; write a=a.jsonl"),
        (["x=a", "x=b"], 'two held-out sets are called "x"; give each a name of its own'),
        ({"a/b": "f"}, 'a held-out set cannot be called "a/b"'),
        ({"x": {"name": "f", "weight": 1}}, "f has a weight; held-out sets have none"),
    ],
)
def test_held_out_sets_that_cannot_be_told_apart_are_refused(given: Any, said: str) -> None:
    with pytest.raises(OptionError) as refused:
        held_out_of(given)
    assert said in str(refused.value)


# what weights mean


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    seed=st.integers(0, 3),
)
def test_an_epoch_holds_each_source_by_its_weight_and_no_group_early_again(
    sizes: list[int], weights: list[int], seed: int
) -> None:
    total, used = sum(sizes), weights[: len(sizes)]
    quotas = largest_remainders(used, total)
    assert sum(quotas) == total
    assert all(
        abs(quota - Fraction(total * weight, sum(used))) < 1
        for quota, weight in zip(quotas, used, strict=True)
    )
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    shares = tuple(
        Share(str(start), weight, range(start, start + size), quota)
        for start, size, weight, quota in zip(starts, sizes, used, quotas, strict=True)
        if quota
    )
    order = Order(total, 4, seed, shares=shares)
    times: Counter[int] = Counter()
    for epoch in range(3):
        dealt = epoch_order(order, epoch)
        assert len(dealt) == total
        times.update(dealt)
        for share in shares:
            assert sum(index in share.groups for index in dealt) == share.per_epoch
            # passes are whole: over any number of epochs a group is at most one time ahead of another
            came = [times[index] for index in share.groups]
            assert max(came) - min(came) <= 1
    # an epoch follows from its number alone
    assert epoch_order(Order(total, 4, seed, shares=shares), 2) == dealt


def test_without_weights_the_order_is_that_of_one_file() -> None:
    assert Order(50, 4, 3).step(7) == Order(50, 4, 3, shares=()).step(7)


def test_a_weight_that_gives_nothing_and_a_source_with_nothing_are_refused(
    write_rows: Callable[..., Path],
) -> None:
    one, two = write_rows(ROWS, "one.jsonl"), write_rows(ROWS[:2], "two.jsonl")
    data = open_items([DataItem(str(one), 1.0), DataItem(str(two), 0.001)])
    with pytest.raises(OptionError, match=r"two\.jsonl:0\.001: its weight gives it none of 8 groups"):
        shares_of(data, {str(one): 6, str(two): 2})
    with pytest.raises(OptionError, match=r"two\.jsonl: nothing of it is left to train"):
        shares_of(data, {str(one): 6})


# several sources


def test_each_source_has_its_own_columns_and_its_own_meaning_of_verdicts(
    write_rows: Callable[..., Path],
) -> None:
    names = {"response_a": "A", "response_b": "B"}
    one = write_rows([{"q": "?", **names, "winner": "b"}, {"q": "!", **names, "winner": "a"}], "one.jsonl")
    two = write_rows([{"prompt": "?", **names, "winner": "model_a"}], "two.jsonl")
    items = [{"name": str(one), "columns": {"prompt": "q"}}, {"name": str(two)}]
    loss = open_loss("dpo", {})
    examples = read_examples(find_data(data_of(items), loss), loss)
    assert [(one.value.prompt, one.value.chosen) for one in examples] == [("?", "B"), ("!", "A"), ("?", "A")]
    assert len(examples) == 3
    assert [one.source.line for one in examples.only({0, 2})] == [1, 1]
    assert str(one) in examples.describe()
    assert f"; {two}: 1 row: " in examples.describe()


def test_a_file_in_two_sources_is_refused(write_rows: Callable[..., Path], tmp_path: Path) -> None:
    path = write_rows(ROWS)
    for other in (path, tmp_path / "." / "*.jsonl", tmp_path / "link.jsonl"):
        (tmp_path / "link.jsonl").unlink(missing_ok=True)
        (tmp_path / "link.jsonl").symlink_to(path)
        with pytest.raises(DataError, match="would be read twice"):
            open_items([DataItem(str(path)), DataItem(str(other))])


def test_bad_rows_of_each_source_are_named_with_their_file(write_rows: Callable[..., Path]) -> None:
    one, two = write_rows([*ROWS, {"prompt": 3}], "one.jsonl"), write_rows([{"x": 1}, *ROWS], "two.jsonl")
    loss = open_loss("dpo", {})
    data = find_data(data_of([str(one), str(two)]), loss)
    examples = read_examples(data, loss, on_bad_row="skip")
    assert [str(bad.source) for bad in examples.bad_rows] == [f"{one}:7", f"{two}:1"]
    assert len(list(examples)) == examples.count == 12


def test_all_rows_of_all_files_are_trained_and_a_changed_one_is_refused(
    run_cli: Any, write_rows: Callable[..., Path]
) -> None:
    one, two = write_rows(ROWS[:4], "one.jsonl"), write_rows(ROWS[4:], "two.jsonl")
    given = (
        "--loss",
        "dpo",
        "--data",
        one,
        "--data",
        two,
        "--steps",
        2,
        "--batch-size",
        2,
        "--output",
        "run",
    )
    status, out, err = run_cli(*given)
    assert status == 0, err
    assert f"{one}: 4 rows: " in out
    assert f"{two}: 2 rows: " in out
    assert "6 groups, 2 steps" in out
    described = json.loads(Path("run/run.json").read_text())
    sources = described["data"]["sources"]
    assert [(source["path"], source["rows"], source["weight"]) for source in sources] == [
        (str(one), 4, None), (str(two), 2, None),
    ]  # fmt: skip
    assert described["settings"]["data"] == [str(one), str(two)]
    assert run_cli("resume", "run", "--steps", 3).status == 0
    two.write_text(two.read_text().replace("yes", "no, yes"))
    status, _, err = run_cli("resume", "run", "--steps", 4)
    assert status == 2
    assert f"{two} has changed since this run began" in err


def test_weights_make_the_shares_that_the_run_says(run_cli: Any, write_rows: Callable[..., Path]) -> None:
    one, two = write_rows(ROWS[:4], "one.jsonl"), write_rows(ROWS[4:], "two.jsonl")
    given = ("--loss", "dpo", "--data", f"{one}:1", "--data", f"{two}:2", "--batch-size", 2)
    status, out, err = run_cli(*given, "--dry-run")
    assert status == 0, err
    said = [
        f"{one}: 2 groups an epoch (weight 1), of 4 that it has: 0.5 passes.",
        f"{two}: 4 groups an epoch (weight 2), of 2 that it has: 2 passes.",
    ]
    assert [line for line in said if line in out] == said
    status, out, err = run_cli(*given, "--epochs", 2, "--output", "run")
    assert status == 0, err
    assert [line for line in said if line in out] == said
    sources = json.loads(Path("run/run.json").read_text())["data"]["sources"]
    assert [(source["weight"], source["per_epoch"]) for source in sources] == [(1.0, 2), (2.0, 4)]
    assert len(lines("run/metrics.jsonl")) == 6
    # run.toml repeats the run
    assert run_cli("--config", "run/run.toml", "--output", "again").status == 0
    assert [line["metrics"] for line in lines("again/metrics.jsonl")] == [
        line["metrics"] for line in lines("run/metrics.jsonl")
    ]


def test_an_unquoted_pattern_is_told_how_to_name_several_files(
    run_cli: Any, write_rows: Callable[..., Path]
) -> None:
    one, two = write_rows(ROWS, "one.jsonl"), write_rows(ROWS, "two.jsonl")
    status, _, err = run_cli("--loss", "dpo", "--data", one, two)
    assert status == 2
    assert err == (
        f"mint-train: {two} is a file, not a command; to read several files, quote a pattern, --data "
        '"rows-*.jsonl", or repeat --data\n'
    )


# held-out sets


def test_each_held_out_set_has_its_own_figures_everywhere(
    run_cli: Any, write_rows: Callable[..., Path]
) -> None:
    path = write_rows(ROWS)
    helpful, other = write_rows(ROWS[:2], "h.jsonl"), write_rows(ROWS[3:], "o.jsonl")
    sets = ("--eval-data", f"helpful={helpful}", "--eval-data", f"other={other}")
    given = ("--loss", "dpo", "--data", path, *sets, "--steps", 2, "--batch-size", 3, "--output", "run")
    status, out, err = run_cli(*given)
    assert status == 0, err
    assert "2 groups held out in helpful.\n3 groups held out in other.\n" in out
    for name in ("helpful", "other"):
        assert f"Eval on {name} after step 2: loss=" in out
    found = [(line["step"], line["held_out"], line["groups"]) for line in lines("run/evaluations.jsonl")]
    assert found == [(0, "helpful", 2), (0, "other", 3), (2, "helpful", 2), (2, "other", 3)]
    rows = lines("run/evaluations/set-other-step-000002.jsonl")
    assert [row["source"] for row in rows] == [f"{other}:{n}" for n in (1, 2, 3)]
    described = json.loads(Path("run/run.json").read_text())["data"]["held_out"]
    assert [(held["name"], held["path"]) for held in described] == [
        ("helpful", str(helpful)), ("other", str(other)),
    ]  # fmt: skip
    card = Path("run/adapter/README.md").read_text()
    assert "helpful: 2 held-out groups of `h.jsonl`" in card
    assert "other: 3 held-out groups of `o.jsonl`" in card
    # a later command evaluates on all sets
    status, out, err = run_cli("eval", "run")
    assert status == 0, err
    assert f"Eval of run after step 2 on helpful ({helpful}), 2 groups:" in out
    assert f"Eval of run after step 2 on other ({other}), 3 groups:" in out
    assert run_cli("eval", "run", "--rows", "rows.jsonl").status == 2
    assert run_cli("resume", "run", "--steps", 3).status == 0
    assert [line["step"] for line in lines("run/evaluations.jsonl")] == [0, 0, 2, 2, 3, 3]
    assert run_cli("plot", "run").status == 0
    page = Path("run/report.html").read_text()
    assert "Diamonds: helpful; circles: other, with 95 % confidence intervals" in page
    assert ">loss, helpful<" in page


# rows of a program


GIVEN = {
    "list": lambda: ROWS,
    "iterable": lambda: (row for row in ROWS),
    "data set": lambda: datasets.Dataset.from_list(ROWS),
    "table": lambda: pa.Table.from_pylist([{**row, "system": None} for row in ROWS]),
    "frame": lambda: pandas.DataFrame(ROWS),
    "frame with a column of gaps": lambda: pandas.DataFrame([{**row, "system": None} for row in ROWS]),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_rows_of_a_program_are_those_of_a_file(kind: str, write_rows: Callable[..., Path]) -> None:
    loss = open_loss("dpo", {})
    ours = read_examples(find_data(data_of(GIVEN[kind]()), loss), loss)
    of_file = read_examples(find_data(write_rows(ROWS), loss), loss)
    assert [one.value for one in ours] == [one.value for one in of_file]
    assert [one.value for one in ours] == [one.value for one in of_file], "they can be read again"
    assert [str(one.source) for one in ours][:2] == ["data row 1", "data row 2"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0], 3], "data row 2: a row must be an object with fields, not a number"),
        ([{"prompt": {1, 2}}], "data row 1: cannot be written as JSON: it holds set"),
        (iter(()), "data: the file holds no rows"),
    ],
)
def test_rows_of_a_program_that_are_none_are_refused(rows: Any, said: str) -> None:
    loss = open_loss("dpo", {})
    with pytest.raises(DataError) as refused:
        read_examples(find_data(data_of(rows), loss), loss)
    assert str(refused.value) == said


def test_a_run_on_rows_of_a_program_goes_on_wherever_its_folder_is(
    train: Callable[..., Any], run_cli: Any
) -> None:
    sets = {"helpful": pandas.DataFrame(ROWS[:2]), "other": (row for row in ROWS[3:])}
    train(data=pandas.DataFrame(ROWS), eval_data=sets, steps=2, output=Path("run"))
    assert sorted(path.name for path in Path("run/rows").iterdir()) == [
        "data.jsonl", "eval_data-helpful.jsonl", "eval_data-other.jsonl",
    ]  # fmt: skip
    shutil.move("run", "moved")
    assert run_cli("resume", "moved", "--steps", 3).status == 0
    status, out, err = run_cli("eval", "moved")
    assert status == 0, err
    assert "on other (" in out
    assert len(lines("moved/evaluations.jsonl")) == 6
