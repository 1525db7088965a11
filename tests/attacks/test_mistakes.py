"""Nothing is trained by mistake: not other data, not other tokens, not a file with a flipped bit."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import seeds
from run_files import metrics

from mint_train.backends.local.states import load_state, save_state
from mint_train.backends.mint.logprobs import logprobs_problem
from mint_train.batches.datums import ArrayDatum, AttachedDatum, attach, build_datum
from mint_train.batches.groups import Group
from mint_train.errors import BackendError, ContractError, DataError, MintTrainError, RowError, Source
from mint_train.groups.build import build_dataset
from mint_train.groups.checksums import is_whole, write_checksums
from mint_train.groups.examples import find_data, read_examples
from mint_train.groups.flattened import check_groups
from mint_train.groups.reference_file import is_whole as reference_is_whole
from mint_train.groups.reference_file import write_file
from mint_train.losses.weighted_sum import open_loss
from mint_train.rows.columns import rename
from mint_train.rows.json_rows import read_json
from mint_train.rows.row import BadRow, Row
from mint_train.sdk import types
from mint_train.settings.model import Settings
from mint_train_dpo.rows import FORMS as PAIRS
from mint_train_policy_gradient.rows import FORMS as ROLLOUTS

pytestmark = pytest.mark.attacks

ROWS = [{"prompt": f"Say {n}.", "chosen": f"{n}", "rejected": "no"} for n in range(40)]


def flipped(content: bytes, dice: random.Random) -> bytes:
    """Flip one bit."""
    changed = bytearray(content)
    changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def spoilt(content: bytes, seed: int) -> bytes:
    """Flip a bit, cut the end off, add to it, or fill it with zeros: a torn disk does each."""
    dice = random.Random(seed)
    kind = dice.choice(["flip", "flip", "flip", "cut", "more", "zeros", "empty"])
    if kind == "flip":
        return flipped(content, dice)
    if kind == "cut":
        return content[: dice.randrange(len(content))]
    if kind == "more":
        return content + b"\0"
    return bytes(len(content)) if kind == "zeros" else b""


# files that are trained from


@pytest.mark.parametrize("seed", seeds(60))
def test_a_spoilt_file_of_the_cache_is_noticed(tmp_path: Path, seed: int) -> None:
    for name in ("groups.arrow", "summary.json"):
        (tmp_path / name).write_bytes(random.Random(name).randbytes(300))
    write_checksums(tmp_path)
    assert is_whole(tmp_path, "groups.arrow", "summary.json")
    path = tmp_path / random.Random(seed).choice(["groups.arrow", "summary.json", "checksums.json"])
    content = path.read_bytes()
    path.write_bytes(spoilt(content, seed))
    if path.name != "checksums.json":
        assert not is_whole(tmp_path, "groups.arrow", "summary.json")
    else:
        is_whole(tmp_path, "groups.arrow", "summary.json")  # whatever it says, it raises nothing
    path.unlink()
    assert not is_whole(tmp_path, "groups.arrow", "summary.json")


@pytest.fixture(scope="module")
def reference_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("reference") / "a.arrow"
    write_file(path, [torch.randn(7), torch.randn(3), torch.randn(5), torch.randn(9)], [2, 2])
    return path.read_bytes()


@pytest.mark.parametrize("seed", seeds(60))
def test_a_spoilt_file_of_reference_logprobs_trains_nothing_else(
    tmp_path: Path, reference_file: bytes, seed: int
) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(spoilt(reference_file, seed))
    warnings: list[str] = []
    assert not reference_is_whole(path, warnings.append)
    assert warnings == [f"The reference logprobs in {path} were broken, and are replaced."]


def adapter_in_training() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(0)
    parameters = {name: torch.nn.Parameter(torch.randn(4, 3)) for name in ("a", "b")}
    optimizer = torch.optim.AdamW(parameters.values())
    sum(parameter.sum() for parameter in parameters.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("seed", seeds(60))
def test_a_spoilt_state_is_refused_and_changes_nothing(tmp_path: Path, seed: int) -> None:
    parameters, optimizer = adapter_in_training()
    save_state(tmp_path / "state", parameters, optimizer)
    (path,) = (tmp_path / "state").iterdir()
    path.write_bytes(spoilt(path.read_bytes(), seed))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with pytest.raises(BackendError, match=r"is broken|cannot be loaded") as refused:
        load_state(tmp_path / "state", parameters, optimizer)
    assert "\n" not in str(refused.value)
    assert all(torch.equal(before[name], parameters[name]) for name in parameters)


# data that changes under the run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def other(path: Path) -> None:
    path.write_text(path.read_text().replace('"no"', '"yes"'))


def other_and_back(path: Path) -> None:
    content, times = path.read_bytes(), path.stat()
    other(path)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def bad_rows(path: Path) -> None:
    path.write_text(path.read_text().replace('"chosen"', '"nothing"', 9))


def appended(path: Path) -> None:
    path.write_text(path.read_text() + json.dumps(ROWS[0]) + "\n")


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replaced(path: Path) -> None:
    another = path.with_suffix(".new")
    another.write_bytes(path.read_bytes())
    another.replace(path)


@pytest.mark.parametrize("change", [other, other_and_back, bad_rows, appended, cut_off, replaced])
@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
@pytest.mark.parametrize("when", ["after the check", "while tokenising"])
def test_data_that_changes_under_the_run_is_not_trained(
    data: Path, tokenizer: Any, change: Callable[[Path], None], on_bad_row: Any, when: str
) -> None:
    loss = open_loss("dpo", {})
    examples = read_examples(find_data(data, loss), loss, on_bad_row=on_bad_row)
    if when == "after the check":
        change(data)
    else:
        flatten = loss.flatten

        def changing(*arguments: Any) -> Any:
            if data.exists() and not changed:
                changed.append(True)
                change(data)
            return flatten(*arguments)

        changed: list[bool] = []
        loss.flatten = changing  # type: ignore[method-assign]
    with pytest.raises(DataError, match="was changed while it was read"):
        build_dataset(examples, loss, tokenizer, Settings(loss="any"))
    cache = Path(os.environ["MINT_TRAIN_CACHE"])
    assert not list(cache.glob("*/groups.arrow"))


def test_data_that_stays_is_trained(data: Path, tokenizer: Any) -> None:
    loss = open_loss("dpo", {})
    examples = read_examples(find_data(data, loss), loss)
    assert len(build_dataset(examples, loss, tokenizer, Settings(loss="any")).groups) == len(ROWS)


def test_a_broken_cache_is_made_anew_with_a_line_that_says_so(data: Path, tokenizer: Any) -> None:
    loss = open_loss("dpo", {})
    first = build_dataset(read_examples(find_data(data, loss), loss), loss, tokenizer, Settings(loss="any"))
    (kept,) = Path(os.environ["MINT_TRAIN_CACHE"]).glob("*/groups.arrow")
    whole = kept.read_bytes()
    for seed in range(5):
        kept.unlink()  # the groups read from before are mapped into memory
        kept.write_bytes(spoilt(whole, seed))
        again = build_dataset(
            read_examples(find_data(data, loss), loss), loss, tokenizer, Settings(loss="any")
        )
        assert "was broken; it is made anew" in again.note
        assert [group.targets[0].tolist() for group in again.groups] == [
            group.targets[0].tolist() for group in first.groups
        ]
    assert not list(kept.parents[1].glob("part-*"))


# tokens and attachments


def group_of(*datums: Any) -> Group:
    return Group.of(datums, Source("rows.jsonl", 7))


GOOD = ([1, 2], [3, 4])


@pytest.mark.parametrize("token", [-1, 2**31, 2**32 + 5, 2**40, -(2**33), 2**62])
@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_token_out_of_range_is_refused_with_file_and_line(token: int, position: int) -> None:
    tokens = [1, 2, 3, 4]
    tokens[position] = token
    wrong = group_of(build_datum(*GOOD, None), build_datum(tokens[:2], tokens[2:], None))
    with pytest.raises(ContractError, match=rf"^rows\.jsonl:7: datum 2 of flatten has the token {token},"):
        check_groups([group_of(build_datum(*GOOD, None)), wrong])


@pytest.mark.parametrize(
    "value",
    [[1.0], [1.0] * 4, [], float("nan"), float("inf"), "text", None, [1.0, float("nan"), 0.0],
     [1.0, "x", 0.0], {"a": 1.0}, [[1.0]] * 3, object()],
)  # fmt: skip
def test_an_attachment_that_does_not_fit_is_refused_with_file_and_line(value: Any) -> None:
    with pytest.raises(ContractError, match=r"^rows\.jsonl:7: datum 1 of flatten: what is attached as"):
        check_groups([group_of(attach(build_datum(*GOOD, None), old=value))])


def test_lists_that_are_empty_or_of_different_lengths_are_refused() -> None:
    for inputs, targets, weights in ((2, 3, 3), (4, 3, 3), (0, 0, 0)):
        wrong = ArrayDatum(np.arange(inputs), np.arange(targets), np.ones(weights, dtype=np.float32))
        with pytest.raises(ContractError, match=r"^rows\.jsonl:7: .*as many of each"):
            check_groups([group_of(wrong)])


def test_attachments_without_names_are_refused_with_file_and_line() -> None:
    wrong: Any = AttachedDatum(build_datum(*GOOD, None), 7)  # type: ignore[arg-type]
    with pytest.raises(
        ContractError, match=r"^rows\.jsonl:7: datum 1 of flatten attaches an int \(7\); give"
    ):
        check_groups([group_of(wrong)])


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_with_file_and_line(weight: float) -> None:
    weights = np.array([1.0, weight], dtype=np.float32)
    wrong = group_of(build_datum(*GOOD, None), ArrayDatum(np.arange(2), np.arange(2), weights))
    with pytest.raises(ContractError, match=r"^rows\.jsonl:7: datum 2 of flatten has a weight that is not a"):
        check_groups([group_of(build_datum(*GOOD, None)), wrong])


def test_what_fits_passes() -> None:
    good = build_datum(*GOOD, None)
    check_groups([group_of(good, attach(good, one=1, each=[0.0, 1.0, 2.0], also=(1, 2, 3)))])


# JSON with a key twice


@pytest.mark.parametrize(
    "text",
    ['{"chosen": "a", "rejected": "b", "chosen": "b", "rejected": "a"}', '{"a": 1, "a": 1}',
     '{"messages": [{"role": "user", "role": "system"}]}', '{"a": {"b": {"c": 1, "c": 2}}}'],
)  # fmt: skip
def test_a_key_that_stands_twice_makes_a_bad_row(tmp_path: Path, text: str) -> None:
    good = '{"chosen": "a", "rejected": "b"}'
    for content in (f"{good}\n{text}\n{good}\n", f"[{good},\n{text},\n{good}]"):
        path = tmp_path / "rows"
        path.write_text(content)
        with path.open("rb") as file:
            rows = list(read_json(file, "rows"))
        assert [type(row) for row in rows] == [Row, BadRow, Row]
        assert "stands twice in one object" in str(rows[1])


TWICE = '[{"role": "user", "content": "Name a river.", "content": "Name a lake."}]'
CALL = '{"name": "find", "arguments": "{\\"what\\": \\"river\\", \\"what\\": \\"lake\\"}"}'
ASKED, GIVEN, REFUSED = '[{"role": "user", "content": "Find it."}]', "Blue.", "Wet."
AGAIN = '{"a": 1, "a": 2}'


@pytest.mark.parametrize(
    ("row", "field", "columns"),
    [
        ({"prompt": TWICE, "chosen": GIVEN, "rejected": REFUSED}, "prompt", {}),
        ({"messages": TWICE, "chosen": GIVEN, "rejected": REFUSED}, "messages", {}),
        ({"conversations": TWICE, "chosen": GIVEN, "rejected": REFUSED}, "conversations", {}),
        ({"prompt": "Which?", "history": TWICE, "chosen": GIVEN, "rejected": REFUSED}, "history", {}),
        ({"prompt": "Which?", "chosen": TWICE.replace("user", "assistant"), "rejected": "a"}, "chosen", {}),
        ({"prompt": "Which?", "output": f"[{AGAIN}, {AGAIN}]"}, "output", {}),
        ({"prompt": "Which?", "answers": f"[{AGAIN[:-1]}, \"rank\": 1}}, 2]"}, "answers", {}),
        ({"prompt": "Which?", "tools": f"[{AGAIN}]", "chosen": GIVEN, "rejected": REFUSED}, "tools", {}),
        ({"info": AGAIN, "chosen": GIVEN, "rejected": REFUSED}, "info.a", {"prompt": "info.a"}),
        (
            {
                "prompt": ASKED,
                "chosen": [{"role": "assistant", "content": None, "tool_calls": [json.loads(CALL)]}],
                "rejected": REFUSED,
            },
            "chosen[0].tool_calls[0].arguments",
            {},
        ),
        (
            {
                "prompt": "Which?",
                "chat_template_kwargs": AGAIN,
                "chosen": GIVEN,
                "rejected": REFUSED,
            },
            "chat_template_kwargs",
            {},
        ),
    ],
)  # fmt: skip
def test_a_key_that_stands_twice_in_json_text_makes_a_bad_row(
    row: dict[str, Any], field: str, columns: dict[str, str]
) -> None:
    with pytest.raises(RowError, match="stands twice in one object; keep one of them") as refused:
        PAIRS.read(rename(row, columns))
    assert refused.value.field == field


def test_a_text_that_is_json_is_trained_as_it_stands() -> None:
    """Also where a key stands twice in it: nothing is made of it."""
    read = PAIRS.read({"prompt": AGAIN, "chosen": AGAIN, "rejected": "{}"}).example
    assert (read.prompt, read.chosen, read.rejected) == (AGAIN, AGAIN, "{}")
    row = {"prompt": "Answer in JSON.", "completion": AGAIN, "reward": 1.0}
    sampled = ROLLOUTS.read(row).example
    assert sampled.completions == (AGAIN,)


# what a service answers


def answer(*logprobs: list[float]) -> types.ForwardBackwardOutput:
    return types.ForwardBackwardOutput(
        loss_fn_output_type="logprobs",
        loss_fn_outputs=[
            {"logprobs": types.TensorData.from_numpy(np.array(each, dtype=np.float32))} for each in logprobs
        ],
        metrics={},
    )


@pytest.mark.parametrize(
    "logprobs",
    [[[-1.0]], [[-1.0, -2.0, -3.0], [-1.0]], [[-1.0, 0.5], [-1.0]], [[-1.0, float("nan")], [-1.0]],
     [[-1.0, float("-inf")], [-1.0]], [[-1.0, -2.0], []], [[-1.0, -2.0], [-1.0], [-1.0]], [],
     [[-1.0, float("inf")], [-1.0]], [[-1.0, 0.011], [-1.0]]],
)  # fmt: skip
def test_logprobs_that_cannot_be_are_refused(logprobs: list[list[float]]) -> None:
    assert logprobs_problem(answer(*logprobs), [2, 1])
    assert logprobs_problem(answer([-1.0, -2.0], [0.0]), [2, 1]) is None
    assert logprobs_problem(answer([-1.0, 0.001], [-80.0]), [2, 1]) is None


# whole runs


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import mint_train

    folder = tmp_path_factory.mktemp("trained")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:6]))
    mint_train.train(
        "dpo", data=folder / "rows.jsonl", steps=4, batch_size=2, save_every=2, lr=1e-3,
        output=folder / "run", progress="quiet", options={"reference": "initial"},
    )  # fmt: skip
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_resumed_on_spoilt_files_ends_with_its_own_figures(
    trained_run: Path, tmp_path: Path, run_cli: Callable[..., Any], seed: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    lines = (run / "checkpoints.jsonl").read_text().splitlines(keepends=True)
    (run / "checkpoints.jsonl").write_text(lines[0])  # it ended after two steps
    kind = ("reference", "state", "state", "reference")[seed]
    path = (
        next((run / "reference").iterdir())
        if kind == "reference"
        else run / "checkpoints/step-000002/state.safetensors"
    )
    path.write_bytes(spoilt(path.read_bytes(), seed))
    ended = run_cli("resume", run)
    assert "Traceback" not in ended.err
    if kind == "reference":
        assert ended.status == 0
        assert metrics(run) == metrics(trained_run)
    else:
        assert ended.status == 1
        assert "step-000002 is broken" in ended.err or "step-000002 cannot be loaded" in ended.err
        assert "no earlier one is saved" in ended.err


def test_messages_of_refusals_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(MintTrainError) as refused:
        load_state(tmp_path / "none", *adapter_in_training())
    assert "\n" not in str(refused.value)
