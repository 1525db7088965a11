"""Rounds of sampling, judging and training on a real server: fresh answers to unseen questions get better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from few_rows import lines, write_lines
from server import SkyrlServer

SEEN = [
    "whale", "shark", "dolphin", "seal", "crab", "salmon", "frog", "duck", "swan", "hen", "cow", "sheep",
    "goat", "dog", "cat", "mouse",
]  # fmt: skip
UNSEEN = ["horse", "pig", "fox", "wolf", "bear", "deer", "lion", "snake"]
JUDGE = '''\
def score(completion: str) -> float:
    """Return 1 for a weight in metric units, otherwise 0."""
    return float("gram" in completion or "tonne" in completion)
'''


def test_rounds_raise_the_score_on_questions_that_they_have_not_seen(
    skyrl_server: SkyrlServer,
    run_cli: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in (("BASE_URL", skyrl_server.base_url), ("BASE_MODEL", skyrl_server.model)):
        monkeypatch.setenv(f"MINT_{name}", value)
    monkeypatch.setenv("MINT_API_KEY", "tml-x")
    for name, animals in (("seen", SEEN), ("unseen", UNSEEN)):  # one shape, which the server compiles once
        write_lines(tmp_path / f"{name}.jsonl", [{"prompt": f"How heavy is a {one}?"} for one in animals])
    (tmp_path / "metric_on_a_server.py").write_text(JUDGE)
    judged = ("--judge", "function", "--samples", 8, "--max-tokens", 16, "--render", "template")
    status, out, err = run_cli(
        "--loss", "dpo", "--set", "reference=initial", "--set", "beta=0.3", "--rounds", 3, "--prompts",
        "seen.jsonl", *judged, "--judge-set", "file=metric_on_a_server.py", "--steps", 12, "--lr", "2e-3",
        "--batch-size", 4, "--lora-targets", "attention,mlp", "--output", "all",
    )  # fmt: skip
    assert status == 0, out + err
    scores = [line["mean_score"] for line in lines("all/rounds.jsonl")]
    assert len(scores) == 3
    for number in (2, 3):  # each begins with the state that the last one reached, which is its reference
        reached = lines(f"all/round-00{number - 1}/checkpoints.jsonl")[-1]["state"]
        assert f"Begins with the adapter {reached}." in out
        first_step = lines(f"all/round-00{number}/metrics.jsonl")[0]["metrics"]
        assert first_step["rewards/margin"] == pytest.approx(0, abs=1e-5)
    unseen = []
    for policy, output in ((skyrl_server.model, "before.jsonl"), ("all/round-003", "after.jsonl")):
        asked = ("unseen.jsonl", "--from", policy, "--set", "file=metric_on_a_server.py", "--output", output)
        status, out, err = run_cli("pairs", *asked, *judged)
        assert status == 0, out + err
        unseen.append(float(out.split("mean score ")[1].split(":")[0]))
    before, after = unseen
    assert max(scores[0], before) < 0.3
    assert after > 0.8, (scores, unseen)
