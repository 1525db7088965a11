"""`kill -9`: whenever it comes, a resumed run ends as the unbroken one does, to the bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killed_rounds import JUDGING, TRAINING, KilledRounds
from killed_runs import assert_same_to_the_bit, run, run_killed
from run_files import run_description

from mint_train.errors import OptionError
from mint_train.run_folder.folder import RunFolder

STEPS = 12


@pytest.mark.slow
def test_a_killed_run_ends_as_the_unbroken_one(short_pairs: Path, tmp_path: Path) -> None:
    arguments = [
        "--loss", "dpo", "--set", "reference=initial", "--backend", "local", "--data", str(short_pairs),
        "--batch-size", "2", "--steps", str(STEPS), "--save-every", "3", "--lr", "1e-3",
        "--schedule", "cosine",
    ]  # fmt: skip
    unbroken = run(tmp_path / "unbroken", *arguments, "--output", str(tmp_path / "unbroken"))
    assert unbroken.status == 0, unbroken.output
    dice, kills, trials = random.Random(1), 0, 0
    while kills < 2:  # a run may end before it is killed
        folder = tmp_path / f"killed-{trials}"
        kills += run_killed(folder, arguments, STEPS, dice)[0]
        assert_same_to_the_bit(folder, tmp_path / "unbroken")
        trials += 1
        assert trials < 10, "the runs end before they are killed"


@pytest.mark.slow
def test_killed_rounds_end_as_unbroken_ones(tmp_path: Path) -> None:
    """Killed while they judge and train; `benchmarks/survive_kills.py` kills them elsewhere too."""
    trial = KilledRounds(tmp_path, rounds=2)
    trial.unbroken()
    phases = trial.phases()
    assert min(map(len, phases.values())) > 0, phases
    for phase in (JUDGING, TRAINING):
        assert trial.kill_at(phases[phase][len(phases[phase]) // 2]) == "resumed"


def killed_before_its_first_step(folder: Path, *, overwrite: bool) -> None:
    """Leave what a run leaves that is killed while its data is prepared."""
    with RunFolder.create(folder, overwrite=overwrite):
        (folder / "base_model").mkdir()
        (folder / "base_model" / "config.json").write_text("{}")
        (folder / "reference").mkdir()
        (folder / "reference" / ".abc.arrow.0123456789ab.part").write_text("half")
        (folder / "checkpoints").mkdir()


def test_what_a_kill_before_the_first_step_leaves_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "run"
    killed_before_its_first_step(path, overwrite=False)
    with RunFolder.create(path, overwrite=False):
        assert {entry.name for entry in path.iterdir()} == {".lock", ".starting"}


@pytest.mark.parametrize("text", ["", "half"])
def test_a_kill_while_a_folder_is_claimed_leaves_it_to_the_next_run(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "..starting.0123456789ab.part").write_text(text)
    for overwrite in (False, True):
        with RunFolder.create(tmp_path, overwrite=overwrite) as run:
            assert {entry.name for entry in tmp_path.iterdir()} == {".lock", ".starting"}
            run.discard()


def test_a_temp_folder_that_a_kill_left_empty_goes(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(run_description().to_json())
    for name in (".adapter.0123456789ab.part", "checkpoints/.step-000002.0123456789ab.part", ".mine.part"):
        (tmp_path / name).mkdir(parents=True)
    with RunFolder(tmp_path):
        pass
    left = {path.name for path in tmp_path.rglob("*") if path.is_dir()}
    assert left == {"checkpoints", ".mine.part"}


def test_rows_of_an_evaluation_that_a_kill_left_half_written_go(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(run_description().to_json())
    (tmp_path / "evaluations").mkdir()
    names = (".step-000002.jsonl", ".rows-step-000002.jsonl")  # a run's, and those of a command that goes on
    for name in names:
        (tmp_path / "evaluations" / f"{name}.0123456789ab.part").touch()
    with RunFolder(tmp_path):
        pass
    left = [path.name for path in (tmp_path / "evaluations").iterdir()]
    assert left == [".rows-step-000002.jsonl.0123456789ab.part"]


def test_a_run_that_was_to_be_replaced_comes_back_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "run.json").write_text(run_description().to_json())
    before = (path / "run.json").read_bytes()
    killed_before_its_first_step(path, overwrite=True)
    assert not (path / "run.json").exists()
    with (
        pytest.raises(OptionError, match="already holds a run"),
        RunFolder.create(path, overwrite=False),
    ):
        pass
    assert (path / "run.json").read_bytes() == before
    assert {entry.name for entry in path.iterdir()} == {".lock", "run.json"}


def test_a_folder_of_the_user_s_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with (
        pytest.raises(OptionError, match="is not a run folder"),
        RunFolder.create(tmp_path, overwrite=True),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]
