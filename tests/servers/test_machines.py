"""One server on several processes and devices, as the page "Where one machine is too small" shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from few_rows import PAIRS, write_lines
from run_files import flat, metrics
from server import SkyrlServer, running_on_two_processes

RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def two_processes(starter_model_folder: Path, tmp_path: Path) -> Iterator[SkyrlServer]:
    (tmp_path / "server").mkdir()
    with running_on_two_processes(starter_model_folder, tmp_path / "server") as server:
        yield server


def test_two_processes_train_as_one_device_does(
    run_cli: RunCli,
    skyrl_server: SkyrlServer,
    two_processes: SkyrlServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Train, resume and evaluate, tensors and batches sharded; no adapter is ever unloaded."""
    rows = write_lines(tmp_path / "pairs.jsonl", PAIRS[:4])
    others = write_lines(tmp_path / "others.jsonl", [{**row, "prompt": "Now."} for row in PAIRS[:2]])
    monkeypatch.setenv("MINT_API_KEY", "tml-x")
    monkeypatch.setenv("MINT_BASE_MODEL", skyrl_server.model)
    for server, output in ((skyrl_server, "one"), (two_processes, "two")):
        monkeypatch.setenv("MINT_BASE_URL", server.base_url)
        status, _, err = run_cli(
            "--loss", "dpo", "--data", rows, "--set", "reference=initial", "--lr", "1e-3",
            "--batch-size", 2, "--steps", 3, "--save-every", 1, "--keep-adapters", "--output", output,
        )  # fmt: skip
        assert status == 0, err
    for line, expected in zip(metrics("two"), metrics("one"), strict=True):
        assert flat(line) == pytest.approx(flat(expected), rel=1e-4, abs=1e-5)
    whole = metrics("two")
    checkpoints = Path("two/checkpoints.jsonl")
    checkpoints.write_text(checkpoints.read_text().splitlines()[0] + "\n")  # as if killed after the first
    status, out, err = run_cli("resume", "two")
    assert status == 0, err
    assert "Resuming after step 1." in out
    for line, expected in zip(metrics("two"), whole, strict=True):
        assert flat(line) == pytest.approx(flat(expected), rel=1e-4, abs=1e-5)
    status, out, err = run_cli("eval", "two", "--data", others)
    assert status == 0, err
    assert "rewards/margin" in out
    status, out, err = run_cli("sample", "two", "--prompt", "Now.", "--max-tokens", 4)
    assert status == 0, err
