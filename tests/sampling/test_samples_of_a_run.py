"""`--sample-prompts`: what a run's policy writes as it trains, judged, kept over kills, and told."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from few_rows import lines, write_lines
from run_files import adapter, metrics

import mint_train
from mint_train.backends.choose import choose_backend
from mint_train.backends.local.client import LocalTrainingClient
from mint_train.errors import DataError, JudgeError, MintTrainError, OptionError, UserError
from mint_train.plugin import Samples
from mint_train.report.curves import Run, read_runs
from mint_train.report.page import make_page
from mint_train.report.samples import completed_prompts, samples_of
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.samples import read_samples, sample_files, samples_file, write_samples
from mint_train.sampling.new_rounds import new_rounds
from mint_train.sampling.policy import open_policy
from mint_train.sampling.round_plan import Plan
from mint_train.settings.merge import load_settings
from mint_train.settings.sampling import Sampling
from mint_train.training.runner import Runner
from mint_train.training.watching import Watcher, Watching

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "How long is the Danube?"},
    {"prompt": [{"role": "user", "content": "What does a car weigh?"}]},
    {"prompt": "How tall is a giraffe?", "note": "of no use to the model"},
]
JUDGE = """
import random

import numpy
import torch


def score(prompt, completion):
    random.random(), numpy.random.rand(), torch.rand(1)
    return float(len(completion.split()))
"""


@mint_train.loss(extends="dpo")
def shaken(batch, logprobs):
    """A loss whose figures show each random number that somebody else draws."""
    noise = torch.rand(1).item()
    return -sum(map(torch.sum, logprobs)) * (1 + noise) / len(logprobs), {"noise": noise}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a run that is sampled before its first step, every two, and after its last."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "words_of_samples.py").write_text(JUDGE)
    rows = [{**row, "chosen": "ten metres", "rejected": "no"} for row in PROMPTS] * 2
    return {
        "data": str(write_lines(folder / "pairs.jsonl", rows)), "backend": "local", "progress": "quiet",
        "steps": 5, "batch_size": 2, "lr": 1e-2, "save_every": 2,
        "sample_prompts": str(write_lines(folder / "prompts.jsonl", PROMPTS)), "sample_tokens": 12,
        "judge": "function", "judge_options": {"file": str(folder / "words_of_samples.py")},
    }  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert mint_train.train("dpo", output=folder, **given).status == "done"
    return folder


def mean_in(folder: Path, step: int) -> float:
    scores = [line["score"] for line in lines(samples_file(folder, step))]
    return float(sum(scores) / len(scores))


def test_the_samples_are_what_the_policy_of_each_step_writes(unbroken: Path, given: dict[str, Any]) -> None:
    assert list(sample_files(unbroken)) == [0, 2, 4, 5]
    for step in (0, 4):
        name = f"{unbroken}@{step}" if step else str(unbroken / "base_model")
        with open_policy(name, {"backend": "local"}, print) as policy:
            tokens = [policy.prompt_tokens(row["prompt"]) for row in PROMPTS]
            drawn = dict(policy.sampler.draw(tokens, Sampling(1, 12, 0.0, stop=(policy.end_token("x"),))))
            texts = [policy.text_of(drawn[index][0]) for index in range(3)]
        written = lines(samples_file(unbroken, step))
        assert [line["completion"] for line in written] == texts
        assert [line["score"] for line in written] == [len(text.split()) for text in texts]
    assert written[1] == {
        "step": 4, "prompt": PROMPTS[1]["prompt"], "completion": texts[1], "ended": drawn[1][0].ended,
        "source": f"{given['sample_prompts']}:2", "score": len(texts[1].split()),
    }  # fmt: skip
    texts_of = [{line["completion"] for line in lines(samples_file(unbroken, step))} for step in (0, 5)]
    assert texts_of[0] != texts_of[1], "otherwise nothing is shown by this run"


def test_their_mean_score_is_a_metric(unbroken: Path) -> None:
    means = {step: mean_in(unbroken, step) for step in (0, 2, 4, 5)}
    found = {line["step"]: line["metrics"].get("sample_score") for line in lines(unbroken / "metrics.jsonl")}
    assert found == {1: None, 2: means[2], 3: None, 4: means[4], 5: means[5]}
    assert RunFolder(unbroken).read_description().metrics["sample_score"].better == "higher"
    curve = read_runs([unbroken])[0].curve("sample_score")
    assert dict(zip(curve.steps, curve.values, strict=True)) == means


def test_nothing_of_the_training_changes(given: dict[str, Any], tmp_path: Path) -> None:
    """Though the judge draws random numbers from where the loss draws its own."""
    plain = {name: value for name, value in given.items() if not name.startswith(("sample", "judge"))}
    found = []
    for name, settings in (("sampled", given), ("plain", plain)):
        torch.manual_seed(1)
        mint_train.train(shaken, output=tmp_path / name, **settings)
        found.append(metrics(tmp_path / name))
    scores = [line["metrics"].pop("sample_score", None) for line in found[0]]
    assert [score is not None for score in scores] == [False, True, False, True, True]
    assert found[0] == found[1]
    assert len({line["metrics"]["noise"] for line in found[1]}) == 5
    assert adapter(tmp_path / "sampled") == adapter(tmp_path / "plain")


def test_sampling_leaves_the_model_in_its_mode(tmp_path: Path) -> None:
    settings = load_settings({"loss": "none", "backend": "local", "gradient_checkpointing": True})
    client = choose_backend(settings).open_client(tmp_path, print)
    assert isinstance(client, LocalTrainingClient)
    assert client.model.training, "gradient checkpointing works in no other"
    with client.open_sampler("any") as sampler:
        list(sampler.draw([[1, 2, 3]], Sampling(1, 2, 0.0)))
    assert client.model.training


class KilledError(BaseException):
    """Stands for the end of the process, which nothing catches."""


@pytest.mark.parametrize(
    ("owner", "name", "when", "again"),
    [
        (Watcher, "keep", 3, [4, 5]), (RunFolder, "append_step", 5, [5]), (Runner, "finish", 1, []),
    ],
)  # fmt: skip
def test_a_killed_run_loses_no_sample_and_repeats_none_of_its_checkpoint(
    unbroken: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    owner: Any, name: str, when: int, again: list[int],
) -> None:  # fmt: skip
    real, complete = getattr(owner, name), Watcher.complete
    calls: list[str] = []
    sampled: list[int] = []

    def dying(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == when:
            raise KilledError
        return real(*arguments, **named)

    def noting(self: Watcher, client: Any, step: int) -> Any:
        sampled.append(step)
        return complete(self, client, step)

    with monkeypatch.context() as broken:
        broken.setattr(owner, name, dying)
        with pytest.raises(KilledError):
            mint_train.train("dpo", output=tmp_path / "run", **given)
    monkeypatch.setattr(Watcher, "complete", noting)
    monkeypatch.chdir(Path(given["data"]).parent)  # whose files a resume may run
    assert mint_train.resume(tmp_path / "run").status == "done"
    assert sampled == again
    assert read_samples(tmp_path / "run") == read_samples(unbroken)
    assert metrics(tmp_path / "run") == metrics(unbroken)


def test_a_run_that_loses_patience_is_sampled_where_it_stops(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mint_train.training.selecting.Selecting.out_of_patience", property(stops_after_three)
    )
    mint_train.train("dpo", output=tmp_path / "run", **given, eval_fraction=0.4, eval_every=1)
    assert list(sample_files(tmp_path / "run")) == [0, 2, 3]


def stops_after_three(selecting: Any) -> bool:
    return any(line["step"] == 3 for line in selecting.folder.evaluations())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"sample_every": 2}, "--sample-every needs --sample-prompts FILE"),
        ({"judge": "length"}, "--judge needs --sample-prompts FILE or --rounds N"),
        ({"sample_prompts": "PROMPTS", "judge_options": {"a": 1}}, "--judge-set needs --judge NAME"),
        ({"sample_prompts": "missing.jsonl"}, r"--sample-prompts: .*missing\.jsonl: no such file"),
        ({"sample_prompts": "EMPTY"}, "--sample-prompts: .*the file holds no rows"),
        ({"sample_prompts": "-"}, "--sample-prompts=-: .*resumed reads the prompts again; write"),
        ({"sample_prompts": "PROMPTS", "judge": "nobody"}, 'no judge "nobody" is installed'),
        ({"sample_prompts": "PROMPTS", "judge": "length", "judge_options": {"a": 1}}, 'has no option "a"'),
    ],
)
def test_what_is_missing_or_stands_alone_is_refused(
    options: dict[str, Any], problem: str, given: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").touch()
    files = {"PROMPTS": given["sample_prompts"], "EMPTY": str(tmp_path / "empty.jsonl")}
    known = {name: files.get(str(value), value) for name, value in options.items()}
    with pytest.raises(UserError, match=problem):
        Watching.of(load_settings({"loss": "dpo", **known}))


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.samples: list[Samples] = []

    @mint_train.hookimpl
    def notice(self, text: str, warning: bool) -> None:
        self.notices.append(f"warning: {text}" if warning else text)

    @mint_train.hookimpl
    def sampled(self, samples: Samples) -> None:
        self.samples.append(samples)


def test_a_prompt_that_fills_the_window_is_left_out_by_name_and_the_others_are_told(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, long = Heard(), {"prompt": "word " * 40}
    monkeypatch.setattr(LocalTrainingClient, "window", 40)
    prompts = write_lines(tmp_path / "prompts.jsonl", [long, *PROMPTS])
    settings = {**given, "sample_prompts": prompts, "steps": 1, "judge": None, "judge_options": {}}
    mint_train.train("dpo", output=tmp_path / "run", observers=[heard], **settings)
    samples = read_samples(tmp_path / "run")
    assert [line["source"] for line in samples] == [f"{prompts}:{line}" for line in (2, 3, 4)] * 2
    assert "score" not in samples[0]
    (left_out,) = [text for text in heard.notices if text.startswith("Left out, as the model cannot read it")]
    assert f"{prompts}:1: its" in left_out
    assert any(
        text.startswith(f"Samples: 3 prompts of {prompts}, completed before") for text in heard.notices
    )
    assert [told.step for told in heard.samples] == [0, 1]
    assert [one.prompt for one in heard.samples[0].completions] == [
        "How long is the Danube?", "What does a car weigh?", "How tall is a giraffe?",
    ]  # fmt: skip
    assert heard.samples[0].mean_score is None
    write_lines(prompts, [long])
    with pytest.raises(DataError, match="sample_prompts: no prompt can be completed"):
        mint_train.train("dpo", output=tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()


def test_a_judge_that_fails_ends_a_run_before_its_first_step_and_later_costs_a_warning(
    given: dict[str, Any], tmp_path: Path
) -> None:
    def judged_by(name: str, calls: int, failing: str, **more: Any) -> Any:
        (tmp_path / f"{name}.py").write_text(
            "calls = []\n\n\ndef score(completion):\n    calls.append(1)\n"
            f"    return 1.0 if len(calls) <= {calls} else {failing}\n"
        )
        own = {"judge_options": {"file": str(tmp_path / f"{name}.py")}, "output": tmp_path / name, "steps": 2}
        return mint_train.train("dpo", **{**given, **own, **more})

    with pytest.raises(JudgeError, match=r"samples after step 0: .*must be finite"):
        judged_by("fails_at_once", 0, "float('nan')")
    assert not (tmp_path / "fails_at_once" / "metrics.jsonl").exists()
    heard = Heard()
    assert judged_by("fails_later", 3, "1 / 0", observers=[heard]).status == "done"
    assert [line["score"] for line in read_samples(tmp_path / "fails_later")] == [1.0] * 3 + [None] * 3
    (warning,) = [text for text in heard.notices if text.startswith("warning")]
    assert warning.startswith("warning: samples after step 2: ")
    assert "ZeroDivisionError" in warning
    assert warning.endswith("; they have no score")


def test_sampling_that_fails_later_costs_a_warning(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, heard = Watcher.complete, Heard()

    def full(self: Watcher, client: Any, step: int) -> Any:
        if step == 2:
            raise MintTrainError("not enough memory")
        return complete(self, client, step)

    monkeypatch.setattr(Watcher, "complete", full)
    mint_train.train("dpo", output=tmp_path / "run", observers=[heard], **{**given, "steps": 3})
    assert list(sample_files(tmp_path / "run")) == [0, 3]
    assert "warning: samples after step 2: not enough memory; they are left out" in heard.notices


def test_a_resume_keeps_the_prompts_and_the_judge(
    unbroken: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(unbroken, tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"names .*words_of_samples\.py for its loss or its judge"):
        mint_train.resume(run, steps=6)
    monkeypatch.chdir(Path(given["data"]).parent)
    with pytest.raises(OptionError, match=r"sample_prompts .*would make it a different run"):
        mint_train.resume(run, steps=6, sample_prompts=given["data"])
    with pytest.raises(OptionError, match="judge length: this run was started with function"):
        mint_train.resume(run, steps=6, judge="length")
    for changed, text in (
        (given["sample_prompts"], '{"prompt": "Say it."}'),
        (given["judge_options"]["file"], "def score(completion): return 1"),
    ):
        before = Path(changed).read_text()
        Path(changed).write_text(text)
        try:
            with pytest.raises(UserError, match=f"{re.escape(changed)} has changed since this run began"):
                mint_train.resume(run, steps=6)
        finally:
            Path(changed).write_text(before)
    mint_train.resume(run, steps=8, sample_every=7)
    assert list(sample_files(run)) == [0, 2, 4, 5, 7, 8]


def test_rounds_sample_in_each_round_and_need_no_second_judge(given: dict[str, Any], tmp_path: Path) -> None:
    known = {name: value for name, value in given.items() if name != "data"}
    plan = Plan(
        1, given["sample_prompts"], given["judge"], given["judge_options"], 60.0, Sampling(), "pair", {}
    )
    for name, prompts in (("watched", given["sample_prompts"]), ("not", None)):
        settings = load_settings(
            {**known, "loss": "dpo", "output": tmp_path / name, "sample_prompts": prompts}
        )
        rounds = new_rounds(settings, plan)
        assert (Watching.of(rounds.settings({})) is not None) == (prompts is not None)


def words(prompt: str, completions: Sequence[str]) -> list[float | None]:
    assert prompt in {"How long is the Danube?", "What does a car weigh?", "How tall is a giraffe?"}
    return [float(len(text.split())) for text in completions]


def test_the_judge_may_be_a_function_of_the_program(
    unbroken: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    own = {**given, "judge": words, "judge_options": {}, "steps": 3}
    mint_train.train("dpo", output=tmp_path / "run", **own)
    with pytest.raises(UserError, match='no judge "words" is installed'):
        mint_train.resume(tmp_path / "run", steps=5)
    mint_train.resume(tmp_path / "run", steps=5, judge=words)
    assert list(sample_files(tmp_path / "run")) == [0, 2, 3, 4, 5]
    assert lines(samples_file(tmp_path / "run", 5)) == lines(samples_file(unbroken, 5))


def test_the_report_shows_each_text_once_with_its_steps(unbroken: Path) -> None:
    (run,) = read_runs([unbroken])
    page = make_page([run])
    assert "Completions as it trained" in page
    assert "sample score" in page
    for line in run.samples:
        assert line["completion"].replace("'", "&#39;") in page


def test_the_report_folds_many_texts_and_many_prompts() -> None:
    def run_of(texts: list[str], prompts: int = 1) -> Run:
        samples = [
            {"step": 10 * step, "prompt": f"Say {prompt}.", "completion": text, "score": step / 10}
            for step, text in enumerate(texts)
            for prompt in range(prompts)
        ]
        return Run("run", Path(), None, [], [], [], samples)  # type: ignore[arg-type]

    def whens(texts: list[str]) -> list[list[str]]:
        (prompt,) = completed_prompts(run_of(texts))
        return [[entry["when"] for entry in prompt[part]] for part in ("first", "between", "last")]

    assert whens(["a", "a", "b"]) == [
        ["before the first step, and up to step 10: score 0.1"], [], ["after step 20: score 0.2"],
    ]  # fmt: skip
    first, between, last = whens(list("abcdefg"))
    assert (len(first), len(between), len(last)) == (1, 3, 3)
    assert last[-1] == "after step 60: score 0.6"
    assert whens(["a", "b", "a"])[2] == ["after step 10: score 0.1", "after step 20: score 0.2"]
    found = samples_of([run_of(["a"], prompts=9)])
    assert (len(found["shown"]), len(found["folded"])) == (6, 3)
    assert found["folded"][-1]["prompt"] == "Say 8."
    assert samples_of([run_of([""])])["shown"][0]["first"][0]["text"] == "(empty)"


def test_the_command_line(
    run_cli: Callable[..., Any], given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run_cli(
        "--loss", "dpo", "--data", given["data"], "--steps", 1, "--sample-prompts", given["sample_prompts"],
        "--judge", "length", "--judge-set", "prefer=near", "--judge-set", "target=4", "--output", "run",
        "--sample-tokens", 4, "--sample-every", 3,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    told = "completed before the first step, every 3 steps, and after the last."
    assert f"Samples: 3 prompts of {given['sample_prompts']}, {told}" in ended.out
    (step,) = [line for line in ended.out.splitlines() if line.startswith("Step 1:")]
    assert f"sample_score={mean_in(tmp_path / 'run', 1):.3g}" in step
    assert RunFolder(tmp_path / "run").read_description().settings["judge_options"] == {
        "prefer": "near", "target": "4",
    }  # fmt: skip


def test_a_text_may_hold_any_line_separator(tmp_path: Path) -> None:
    line = {"prompt": "one\u2028two\x85three", "completion": "four\u2029five\n", "score": None}
    write_samples(tmp_path, 3, [line])
    assert read_samples(tmp_path) == [{**line, "step": 3}]
