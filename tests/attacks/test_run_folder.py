"""Nothing is lost that is not ours, whatever a folder holds and wherever a run is killed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cases import seeds
from run_files import run_description
from trees import files, tree

from mint_train.errors import MintTrainError, OptionError, UserError
from mint_train.run_folder import replacing
from mint_train.run_folder.files import read_lines, whole_file, whole_folder
from mint_train.run_folder.folder import RunFolder

pytestmark = pytest.mark.attacks

OF_A_RUN = [
    "run.toml", "metrics.jsonl", "evaluations.jsonl", "checkpoints.jsonl", "skipped_rows.jsonl",
    "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md",
    "checkpoints/step-000002/state.safetensors", "checkpoints/step-000004/state.safetensors",
    "reference/0a1b.arrow", "evaluations/step-000004.jsonl", "observers/trackio/rows.db", "report.html",
]  # fmt: skip
OF_THE_USER = [
    "notes.txt", "checkpoints/best/weights.bin", "checkpoints/step-000002/notes.txt", "adapter/mine.txt",
    "reference/list.csv", "evaluations/mine.jsonl", "model.old/weights", "run.json.part", "adapter.old/x",
    "adapter.part/x", ".replaced.part/x", "deep/run.json",
]  # fmt: skip


def write(folder: Path, *names: str, text: str = "old") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text} {name}")


def make_run(folder: Path, *names: str) -> None:
    write(folder, *names)
    (folder / "run.json").write_text(run_description().to_json())


def start(folder: Path, *, overwrite: bool, begins: bool = False) -> None:
    """Start a run, which is discarded unless it begins."""
    with RunFolder.create(folder, overwrite=overwrite) as run:
        write(folder, "base_model/config.json", "reference/ffff.arrow", text="new")
        if begins:
            run.begin(run_description(steps=9))
        else:
            run.discard()


# names beside a target


@pytest.mark.parametrize("name", ["model.old", "model.part", ".model.part", "model.bak"])
def test_writing_a_folder_leaves_the_folders_beside_it(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"{name}/weights")
    before = tree(tmp_path)
    for _ in range(2):
        with whole_folder(tmp_path / "model") as beside:
            write(beside, "adapter")
    after = tree(tmp_path)
    assert {path: after[path] for path in before} == before
    assert after.keys() - before.keys() == {"model", "model/adapter"}


def test_writing_a_file_leaves_the_files_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl.part", "rows.jsonl.old")
    before = tree(tmp_path)
    with whole_file(tmp_path / "rows.jsonl") as beside:
        beside.write_text("rows")
    assert tree(tmp_path) == before | {"rows.jsonl": b"rows"}


def test_a_folder_that_is_written_again_keeps_what_the_user_put_into_it(tmp_path: Path) -> None:
    for _ in range(2):
        with whole_folder(tmp_path / "adapter") as beside:
            write(beside, "weights")
        write(tmp_path, "adapter/mine.txt")
    assert tree(tmp_path).keys() == {"adapter", "adapter/weights", "adapter/mine.txt"}


# overwriting


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"status": "done"}', '{"format": 3, "seal": "x"}', "null"]
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_run_json_of_another_tool_makes_no_run_folder(
    tmp_path: Path, content: str, overwrite: bool
) -> None:
    write(tmp_path / "run", *OF_A_RUN, *OF_THE_USER)
    (tmp_path / "run" / "run.json").write_text(content)
    before = tree(tmp_path)
    with pytest.raises(OptionError, match=r"run\.json"):
        start(tmp_path / "run", overwrite=overwrite)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("lock", [True, False])
def test_a_folder_without_a_run_json_is_left_alone(tmp_path: Path, overwrite: bool, lock: bool) -> None:
    write(tmp_path, *OF_A_RUN, *([".lock"] if lock else []))
    before = tree(tmp_path)
    with pytest.raises(OptionError, match="is not a run folder"):
        start(tmp_path, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    make_run(tmp_path, *OF_A_RUN, *OF_THE_USER)
    before = tree(tmp_path)
    start(tmp_path, overwrite=True, begins=True)
    after = tree(tmp_path)
    assert all(after[name] == before[name] for name in OF_THE_USER)
    left = [name for name in OF_A_RUN if after.get(name) == before[name]]
    assert not left
    assert not {".replaced", ".replacing", ".starting"} & after.keys()


def test_an_overwrite_that_never_begins_restores_the_run(tmp_path: Path) -> None:
    make_run(tmp_path, *OF_A_RUN, *OF_THE_USER)
    before = tree(tmp_path)
    start(tmp_path, overwrite=True)
    assert tree(tmp_path) == before


class Killed(BaseException):
    """Stands for a kill: nothing may handle it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, operation: int, error: BaseException) -> Callable[[], int]:
    """Let the given file operation, counted from 0, fail; return a function that tells how many were made."""
    made = 0
    for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "touch"):
        original = getattr(Path, name)

        def call(
            self: Path, *args: object, _original: Callable[..., object] = original, **kwargs: object
        ) -> object:
            nonlocal made
            made += 1
            if made == operation + 1:
                raise error
            if made > operation and isinstance(error, Killed):
                raise Killed  # a killed process does nothing more
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Path, name, call)
    return lambda: made


def look(folder: Path) -> None:
    """Look at a folder as any command does."""
    with RunFolder(folder):
        pass


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("failing", ["kill", "disk"])
def test_an_overwrite_that_ends_anywhere_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: bool, failing: str
) -> None:
    """At each file operation in turn; the next look at the folder finds the old run whole, or the new one."""
    ends = set()
    for operation in range(200):
        folder = tmp_path / str(operation)
        make_run(folder, *OF_A_RUN, *OF_THE_USER)
        before = tree(folder)
        error = Killed() if failing == "kill" else OSError(28, "No space left on device", "a file")
        with monkeypatch.context() as patch:
            made = killed_at(patch, operation, error)
            with suppress(Killed, MintTrainError, OSError):
                start(folder, overwrite=True, begins=begins)
            ended = made() <= operation
        look(folder)
        after = tree(folder)
        assert all(after[name] == before[name] for name in OF_THE_USER), operation
        assert not {".replaced", ".replacing", ".starting"} & after.keys(), operation
        if RunFolder(folder).read_description().steps == 9:
            ends.add("new")
            assert all(after.get(name) != before[name] for name in OF_A_RUN), operation
        else:
            ends.add("old")
            assert files(after) == files(before), operation
        if ended:
            break
    else:
        raise AssertionError("the overwrite never came to its end")
    assert ends == ({"old", "new"} if begins else {"old"})


def test_a_kill_while_looking_is_survived_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", *OF_A_RUN)
    before = tree(tmp_path)
    with RunFolder.create(tmp_path / "run", overwrite=True):
        write(tmp_path / "run", "base_model/config.json")
    for operation in range(100):
        with monkeypatch.context() as patch:
            made = killed_at(patch, operation, Killed())
            try:
                look(tmp_path / "run")
            except Killed:
                pass
            else:
                assert made() <= operation
                break
    assert files(tree(tmp_path)) == files(before)


@pytest.mark.parametrize(
    "others", [["checkpoints/step-000002/state.safetensors"], [".replacing/run.json", "metrics.jsonl"]]
)
def test_a_second_run_in_a_folder_is_not_taken_for_one_that_has_not_begun(
    tmp_path: Path, others: list[str]
) -> None:
    write(tmp_path, ".replaced/run.json", *others)
    for description in tmp_path.glob(".*/run.json"):
        description.write_text(run_description().to_json())
    before = files(tree(tmp_path))
    with pytest.raises(UserError, match=r"move (checkpoints|\.replacing) or \.replaced away"):
        look(tmp_path)
    after = files(tree(tmp_path))
    assert {name: content for name, content in after.items() if not name.endswith(".lock")} == before


# mangled folders


def mangle(folder: Path, dice: random.Random) -> list[str]:
    """Fill a folder with some of what runs, kills, other tools and users leave."""
    names = dice.sample(OF_A_RUN, dice.randint(0, len(OF_A_RUN)))
    users = dice.sample(OF_THE_USER, dice.randint(1, len(OF_THE_USER)))
    write(folder, *names, *users)
    if dice.random() < 0.5:
        (folder / ".lock").touch()
    text = dice.choice(
        [None, "", "{}", "[" * 5000, run_description().to_json(), '{"settings": {}, "format": 1}']
    )
    for name in dice.sample(
        ["run.json", ".replaced/run.json", ".replacing/run.json", ".starting"], dice.randint(0, 2)
    ):
        if text is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text if dice.random() < 0.8 else text[: dice.randint(0, len(text))])
    return users


@pytest.mark.parametrize("seed", seeds(100))
def test_no_mangled_folder_costs_a_file_of_the_user_s(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    folder = tmp_path / "run"
    users = mangle(folder, dice)
    before = tree(tmp_path)
    overwrite = dice.random() < 0.5
    with suppress(MintTrainError):
        start(folder, overwrite=overwrite, begins=dice.random() < 0.5)
    after = tree(tmp_path)
    lost = [name for name in users if after.get(f"run/{name}") != before[f"run/{name}"]]
    assert not lost
    if not (folder / "run.json").exists() or not overwrite:
        # what could be an old run's is still there, if under another name
        contents = set(after.values())
        assert all(
            content in contents
            for name, content in before.items()
            if content and name.startswith("run/checkpoints/")
        )


@pytest.mark.parametrize(
    ("name", "line"),
    [("metrics.jsonl", {"step": 1}), ("metrics.jsonl", {"step": True, "metrics": {}}),
     ("metrics.jsonl", {"step": 1, "metrics": {"a": "x"}, "learning_rate": 1, "tokens": 1, "seconds": 1}),
     ("metrics.jsonl", {"step": 1, "metrics": [], "learning_rate": 1, "tokens": 1, "seconds": 1}),
     ("evaluations.jsonl", {"step": 1, "metrics": {}, "intervals": True, "batch_means": [], "groups": 1}),
     ("evaluations.jsonl", {"step": 1, "metrics": {}, "intervals": {"a": [1]}, "batch_means": []}),
     ("evaluations.jsonl", {"step": 1, "metrics": {}, "intervals": {}, "batch_means": [1], "groups": 1}),
     ("checkpoints.jsonl", {"step": 1, "state": 7, "sampler": None, "loss_state": {}}),
     ("checkpoints.jsonl", {"step": 1, "state": "a", "sampler": {}, "loss_state": {}}), ("x.jsonl", [1])],
)  # fmt: skip
def test_a_line_that_no_run_writes_is_refused(tmp_path: Path, name: str, line: object) -> None:
    (tmp_path / name).write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="is broken"):
        read_lines(tmp_path / name)


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is broken: line 2: Expecting value$"):
        read_lines(tmp_path / "metrics.jsonl")


def test_the_file_that_marks_a_start_is_short_lived(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, overwrite=False) as run:
        assert replacing.is_starting(tmp_path)
        run.begin(run_description())
    assert not replacing.is_starting(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["format"] == 3
