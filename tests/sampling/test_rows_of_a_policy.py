"""Rows of what a policy writes: read back without flags, made once, whatever stops the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from few_rows import PAIRS, lines, write_lines

import mint_train
from mint_train.backends.base import Sample
from mint_train.errors import DataError, JudgeError, MintTrainError, OptionError, PluginError, UserError
from mint_train.groups.build import build_dataset
from mint_train.groups.examples import find_data, read_examples
from mint_train.groups.prompts import read_prompts
from mint_train.judging.judge import Judge, open_judge
from mint_train.losses.loss import Loss
from mint_train.plugin import Candidates, Judged, hookimpl
from mint_train.plugins.discovery import NamedPlugin, load_plugin
from mint_train.sampling.making import Made, Making, RowWriter, make_rows, require_rows
from mint_train.sampling.policy import Policy, open_policy, reading_settings
from mint_train.settings.model import Settings
from mint_train.settings.sampling import Sampling
from mint_train.trained.sample import sampled_tokens

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "Name a river."},
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a metal."}]},
    {"messages": [{"role": "user", "content": "[1, 2] and 3?"}], "id": 7},
    {"prompt": "Say it.", "system": "Human: no", "weight": 2.0},
    {"prompt": "Name a river.", "answer": "again"},
]
SAMPLING = Sampling(samples=4, max_tokens=8, temperature=1.0)


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    with open_policy(None, {"backend": "local"}, print) as opened:
        yield opened


@pytest.fixture
def prompts_file(write_rows: Callable[..., Path]) -> Path:
    return write_rows(PROMPTS, "prompts.jsonl")


def quiet(*_: object) -> None: ...


def make(policy: Policy, data: Path, output: Path, writer: str = "pair", **given: Any) -> Made:
    options = given.pop("options", {})
    sampling = given.pop("sampling", SAMPLING)
    judge = given.pop("judge", None) or open_judge("length", {"unit": "characters"})
    making = Making(judge, RowWriter(writer, options), sampling, output, **given)
    return make_rows(policy, read_prompts(str(data), reading_settings({})), making, quiet)


class Writing:
    """A sampler that writes some texts, in the tokens that training makes of them."""

    window = None

    def __init__(self, policy: Policy, texts: list[str]) -> None:
        self.policy, self.texts = policy, texts

    def draw(self, prompts: Any, sampling: Sampling, _: object = ()) -> Iterator[tuple[int, list[Sample]]]:
        renderer = self.policy.renderer
        for index in range(len(prompts)):
            whole = [renderer.datum("Go on.", text).loss_fn_inputs for text in self.texts]
            start = len(renderer.prompt_tokens("Go on."))
            tokens = [one["target_tokens"].to_numpy().tolist()[start - 1 :] for one in whole]
            yield index, [Sample(one, [-0.5] * len(one), True) for one in tokens[: sampling.samples]]


@pytest.mark.parametrize("render", ["recipe", "template", "raw"])
def test_a_row_is_read_back_as_the_tokens_that_were_sampled(
    policy: Policy, write_rows: Callable[..., Path], tmp_path: Path, render: str
) -> None:
    """Without flags but the rendering itself, which is that of training."""
    settings = policy.settings.model_copy(update={"render": render})
    chosen = replace(policy, settings=settings)
    texts = ["The Danube.\n", '[{"role": "user"}] is JSON', " two spaces", "Human: hi", "größer als 日本 🙂"]
    texts = texts if render != "raw" else ["The Danube.\n", " two spaces", "größer"]
    sampler: Any = Writing(chosen, texts)
    data = write_rows(PROMPTS if render != "raw" else [{"prompt": "Say it."}, {"prompt": "No."}])
    sampling = replace(SAMPLING, samples=len(texts))
    making = {"options": {"take": "all"}, "sampling": sampling}
    made = make(replace(chosen, sampler=sampler), data, tmp_path / "pairs.jsonl", **making)
    assert (made.retokenised, [list(one.texts) for one in made.written]) == (0, [texts] * len(made.written))
    loss = Loss.of(load_plugin("dpo"))
    examples = read_examples(find_data(str(tmp_path / "pairs.jsonl"), loss), loss)
    groups = build_dataset(examples, loss, policy.tokenizer, settings).groups
    assert len(groups) == made.rows
    per_prompt = made.rows // len(made.written)
    for index, group in enumerate(groups):
        number = index // per_prompt
        prompt, written = made.readable.tokens[number], made.written[number]
        assert group.prompts[0].tolist() == prompt
        assert group.weight == made.written[number].prompt.weight
        for datum in group.datums:
            targets = datum.loss_fn_inputs["target_tokens"].to_numpy().tolist()
            assert targets[len(prompt) - 1 :] in [sample.tokens for sample in written.samples]


def test_a_pair_is_the_best_and_the_worst_with_where_it_comes_from(
    policy: Policy, prompts_file: Path, tmp_path: Path
) -> None:
    made = make(policy, prompts_file, tmp_path / "pairs.jsonl", keep_all=True)
    told_apart = [
        (written, scores)
        for written, scores in zip(made.written, made.scores, strict=True)
        if len({score for score in scores if score is not None}) > 1
    ]
    for row, (written, scores) in zip(lines(tmp_path / "pairs.jsonl"), told_apart, strict=True):
        known = [score for score in scores if score is not None]
        assert (row["chosen_score"], row["rejected_score"]) == (max(known), min(known))
        assert -len(row["chosen"]) == max(known)
        assert [one["text"] for one in row["samples"]] == list(written.texts)
        assert [one["score"] for one in row["samples"]] == scores
        assert row["sampled_with"] == {"seed": 0, "temperature": 1.0, "render": "recipe", "judge": "length"}
    assert not list(tmp_path.glob("pairs.jsonl.*"))


@pytest.mark.parametrize(
    ("writer", "loss", "datums"),
    [("pair", "dpo", {2}), ("rank", "listmle", {2, 3, 4}), ("rate", "kto", {2}), ("rollouts", "grpo", {4})],
)
def test_each_kind_of_rows_is_read_by_its_losses(
    policy: Policy, prompts_file: Path, tmp_path: Path, writer: str, loss: str, datums: set[int]
) -> None:
    output = tmp_path / "rows.jsonl"
    made = make(policy, prompts_file, output, writer, keep_all=True)
    opened = Loss.of(load_plugin(loss))
    examples = read_examples(find_data(str(output), opened), opened)
    groups = build_dataset(examples, opened, policy.tokenizer, Settings(loss="any")).groups
    assert len(groups) == made.rows
    assert {len(group.datums) for group in groups} <= datums
    if writer == "rollouts":
        for row, written in zip(lines(output), made.written, strict=True):
            assert row["completion_tokens"] == [one.tokens for one in written.samples]
            assert row["old_logprobs"] == [one.logprobs for one in written.samples]


class KilledError(Exception):
    """Stands for the end of the process."""


class Killing:
    """A sampler that dies after some prompts, and counts what it is asked for."""

    def __init__(self, sampler: Any, after: int) -> None:
        self.sampler, self.after = sampler, after
        self.written: list[int] = []

    @property
    def window(self) -> int | None:
        return self.sampler.window

    def draw(
        self, prompts: Any, sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, list[Sample]]]:
        for number, found in enumerate(self.sampler.draw(prompts, sampling, done)):
            if number == self.after:
                raise KilledError
            self.written.append(found[0])
            yield found


@pytest.mark.parametrize("after", range(5))
def test_a_killed_command_goes_on_and_writes_the_same(
    policy: Policy, prompts_file: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(policy, prompts_file, tmp_path / "whole.jsonl")
    output = tmp_path / "pairs.jsonl"
    first, second = Killing(policy.sampler, after), Killing(policy.sampler, 99)

    def stopped(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as broken:
        broken.setattr("mint_train.sampling.making.judge_all", stopped)  # where all samples are there
        with pytest.raises(KilledError):
            make(replace(policy, sampler=first), prompts_file, output)
    assert not output.exists()
    journal = tmp_path / "pairs.jsonl.samples"
    with journal.open("a") as file:
        file.write('{"prompt": 3, "ent')  # as a kill tears a line
    make(replace(policy, sampler=second), prompts_file, output)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(first.written + second.written) == [0, 1, 2, 3], "nothing is sampled twice"
    assert not journal.exists()


def test_what_is_judged_is_not_judged_again(
    policy: Policy, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_train.sampling.collecting.JUDGED_AT_ONCE", 1)
    judge = open_judge("length")
    asked: list[str] = []
    real = judge.score

    def score(batch: Any) -> Any:
        asked.append(batch[0].question)
        if len(asked) == 3:
            raise KilledError
        return real(batch)

    monkeypatch.setattr(judge, "score", score)
    with pytest.raises(KilledError):
        make(policy, prompts_file, tmp_path / "pairs.jsonl", judge=judge)
    make(policy, prompts_file, tmp_path / "pairs.jsonl", judge=judge)
    assert [asked.count(question) for question in dict.fromkeys(asked)] == [1, 1, 2, 1]


class Versioned:
    """A judge of a model that may change."""

    def __init__(self, version: str) -> None:
        self.version = version

    @hookimpl
    def judge_versions(self) -> dict[str, str]:
        return {"the model": self.version}

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[list[float]]:
        return [[1.0] * len(one.completions) for one in batch]


def test_a_judge_of_another_version_judges_again_what_was_sampled(
    policy: Policy, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pairs.jsonl"
    for version, again in (("1", False), ("1", False), ("2", True)):
        judge = Judge(NamedPlugin("versioned", Versioned(version), "a test"))
        make(policy, prompts_file, output, judge=judge)
        said = f"the model has changed since {output}.scores was begun: all completions are judged again."
        assert (said in capsys.readouterr().err) == again
    with pytest.raises(JudgeError, match='the judge "versioned" gave the versions'):
        Judge(NamedPlugin("versioned", Versioned(3), "a test"))  # type: ignore[arg-type]


def test_a_judge_whose_file_has_changed_judges_again_what_was_sampled(
    policy: Policy, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / "changing_judge.py", tmp_path / "pairs.jsonl"
    for body, tells_apart in (("return 1", False), ("return len(completion)", True)):
        file.write_text(f"def score(completion): {body}\n")
        capsys.readouterr()
        judge = open_judge("function", {"file": str(file)})
        sampler = Killing(policy.sampler, 99)
        made = make(replace(policy, sampler=sampler), prompts_file, output, judge=judge)
        assert bool(made.rows) is tells_apart
    assert sampler.written == [], "what was sampled is kept"
    said = capsys.readouterr().err
    assert f"{file} has changed since {output}.scores was begun: all completions are judged again." in said
    assert all(row["chosen_score"] > row["rejected_score"] for row in lines(output))


@pytest.mark.parametrize("kind", ["function", "plugin"])
def test_scores_of_two_judges_of_one_name_are_not_mixed(
    policy: Policy, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The first one fails behind the first prompt; the second one prefers what the first did not."""

    def judge(sign: float, version: str) -> Judge:
        judged = open_judge(lambda _, completions: [sign * len(one) for one in completions])
        return judged if kind == "function" else Judge(NamedPlugin("mine", Signed(sign), version))

    monkeypatch.setattr("mint_train.sampling.collecting.JUDGED_AT_ONCE", 1)
    output, first = tmp_path / "pairs.jsonl", judge(1.0, "mine 1.0")
    real, asked = first.score, list[Any]()

    def score(batch: Any) -> Any:
        asked.append(batch)
        if len(asked) == 2:
            raise KilledError
        return real(batch)

    monkeypatch.setattr(first, "score", score)
    with pytest.raises(KilledError):
        make(policy, prompts_file, output, judge=first)
    made = make(policy, prompts_file, output, judge=judge(-1.0, "mine 2.0"))
    assert all(score < 0 for scores in made.scores for score in scores if score is not None)


class Signed:
    """A judge by length."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[list[float]]:
        return [[self.sign * len(text) for text in one.completions] for one in batch]


def test_the_prompts_are_not_overwritten(policy: Policy, prompts_file: Path) -> None:
    before = prompts_file.read_bytes()
    with pytest.raises(OptionError, match=r"prompts\.jsonl holds the prompts; name another file"):
        make(policy, prompts_file, prompts_file, overwrite=True)
    assert prompts_file.read_bytes() == before


def test_a_command_that_asks_for_something_else_does_not_go_on(
    policy: Policy, prompts_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "pairs.jsonl"
    with pytest.raises(KilledError):
        make(replace(policy, sampler=Killing(policy.sampler, 2)), prompts_file, output)
    with pytest.raises(
        OptionError, match=r"samples was begun with sampling: temperature 1\.0, not 0\.5: go on"
    ):
        make(policy, prompts_file, output, sampling=replace(SAMPLING, temperature=0.5))
    make(policy, prompts_file, output, sampling=replace(SAMPLING, temperature=0.5), overwrite=True)
    with pytest.raises(OptionError, match=r"pairs\.jsonl exists; name another file, or add --overwrite"):
        make(policy, prompts_file, output)


def test_several_turns_of_the_user_are_no_prompt_alone(write_rows: Callable[..., Path]) -> None:
    data = write_rows([{"prompt": ["Say it.", "Again."]}], "prompts.jsonl")
    with pytest.raises(
        DataError, match=r'prompts.jsonl:1: field "prompt": is a list of 2 texts, .* messages$'
    ):
        read_prompts(str(data), reading_settings({}))


def test_a_prompt_that_fills_the_window_is_left_out_by_name(
    policy: Policy, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy.sampler.client.model.config, "max_position_embeddings", 60)
    data = write_rows([{"prompt": "Go on."}, {"prompt": "Why? " * 40}], "prompts.jsonl")
    made = make(policy, data, tmp_path / "pairs.jsonl")
    assert made.rows == 1
    (line,) = made.readable.lines()
    assert "prompts.jsonl:2: its" in line
    assert "tokens fill the model's window of 60" in line
    with pytest.raises(DataError, match=r"no prompt can be completed: .*prompts.jsonl:1"):
        make(policy, write_rows([{"prompt": "Why? " * 40}], "prompts.jsonl"), tmp_path / "none.jsonl")


def test_completions_that_say_nothing_give_no_row(policy: Policy, prompts_file: Path, tmp_path: Path) -> None:
    class Silent:
        window = None

        def draw(self, prompts: Any, sampling: Sampling, _: object) -> Any:
            for index in range(len(prompts)):
                yield index, [Sample([2], [-0.5], True)] * sampling.samples

    silent: Any = Silent()
    made = make(replace(policy, sampler=silent), prompts_file, tmp_path / "pairs.jsonl")
    assert (made.rows, made.without_row) == (0, 4)
    assert "4 prompts, 16 completions, mean score none: 0 cut at --max-tokens, 16 empty" in made.lines()[0]
    with pytest.raises(
        JudgeError, match="no row was made: all 16 completions are empty; take more --samples"
    ):
        require_rows(made)
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("texts", "scores", "reason"),
    [
        (["Yes.", "No."], {}, "the judge left out all 8 completions; take another judge"),
        (["Yes.", " ", "\n"], {"Yes.": 1}, "no prompt has two completions to compare; take more --samples"),
        (["Yes.", "Yes."], {"Yes.": 1}, "each prompt are the same text; take a higher --temperature"),
        (
            ["Yes.", "No.", "So."],
            {"Yes.": 1, "No.": 1},
            "the judge tells no prompt's .* apart; take",
        ),
        (["Yes.", "No."], {"Yes.": 1, "No.": 2}, "the row writer takes none .*; see its options"),
    ],
)
def test_why_no_row_was_made_is_said(
    policy: Policy,
    prompts_file: Path,
    tmp_path: Path,
    texts: list[str],
    scores: dict[str, int],
    reason: str,
) -> None:
    def own(prompt: str, completions: list[str]) -> list[int | None]:
        return [scores.get(text) for text in completions]

    making = {
        "judge": open_judge(own),
        "sampling": replace(SAMPLING, samples=len(texts)),
        "options": {"take": "threshold=2"},
    }
    sampler: Any = Writing(policy, texts)
    made = make(replace(policy, sampler=sampler), prompts_file, tmp_path / "pairs.jsonl", **making)
    with pytest.raises(JudgeError, match=f"^no row was made: .*{reason}"):
        require_rows(made)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, with a state after each."""
    folder = tmp_path_factory.mktemp("policies")
    mint_train.train(
        "dpo", data=write_lines(folder / "pairs.jsonl", PAIRS), batch_size=2, lr=1e-2, steps=2, save_every=1,
        output=folder / "run", progress="quiet", backend="local",
    )  # fmt: skip
    return folder / "run"


def first_words(name: str | None, **given: Any) -> list[int]:
    with open_policy(name, {"backend": "local"} | given, print) as opened:
        tokens = opened.prompt_tokens("Go on.")  # the starter model is sure of no answer
        return sampled_tokens(opened.sampler, [tokens], Sampling(1, 12, 0.0))[0][0]


def test_a_policy_is_a_run_a_step_of_it_an_adapter_or_a_model(
    run: Path, starter_model_folder: Path, tmp_path: Path
) -> None:
    last, first = first_words(str(run)), first_words(f"{run}@1")
    base = first_words(str(run / "base_model"))
    assert len({tuple(words) for words in (last, first, base)}) == 3
    assert first_words(str(run / "checkpoints" / "step-000001")) == first
    assert first_words(None) == base == first_words(None, model=str(starter_model_folder))
    adapter = Path(shutil.copytree(run / "adapter", tmp_path / "adapter"))
    assert first_words(str(adapter), model=str(run / "base_model")) == last


def test_a_policy_of_another_model_is_refused(run: Path, starter_model_folder: Path) -> None:
    with pytest.raises(OptionError, match=r"--model .*: .*run is of .*base_model; leave --model out"):
        first_words(str(run), model=str(starter_model_folder))
    with pytest.raises(MintTrainError, match=r"--model .*nowhere"):
        first_words("./nowhere")


def test_a_name_without_a_run_is_said_to_be_taken_for_a_model(tmp_path: Path) -> None:
    gone = tmp_path / "runs" / "gone"
    taken = f"{gone} holds no run, so it was taken for a base model: --model {gone}: this folder does not"
    with pytest.raises(UserError, match=taken), open_policy(str(gone), {"backend": "local"}, print):
        pass


def test_the_command_line(run_cli: Any, prompts_file: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "def score(completion): return len(completion) if completion else None\n"
    )
    common = ("pairs", prompts_file, "--judge", "function", "--set", "file=judge.py", "--max-tokens", 8)
    ended = run_cli(*common, "--from", run, "--samples", 3, "--output", "pairs.jsonl")
    assert ended.status == 0, ended.err
    assert "Prompts that stand in an earlier row too, left out: 1" in ended.out
    assert "4 prompts, 12 completions, mean score " in ended.out
    assert "Written to pairs.jsonl.\nNext: mint-train --loss LOSS --data pairs.jsonl\n" in ended.out
    assert "Sampled: 4 of 4 prompts" in ended.err
    rows = lines(tmp_path / "pairs.jsonl")
    assert rows[0]["sampled_from"] == str(run)
    ended = run_cli(*common, "--output", "rows.jsonl", "--rank", "--rate")
    assert (ended.status, ended.err) == (
        2,
        "mint-train: --rank and --rate are both given; give one of them\n",
    )
    ended = run_cli(*common, "--output", "rows.jsonl", "--pair", "median")
    assert ended.status == 2
    assert ended.err.endswith(": must be best-worst, best-random, all or threshold=NUMBER\n")
    ended = run_cli(*common, "--output", "rows.jsonl", "--samples", 1)
    assert ended.status == 1
    assert "no row was made: no prompt has two completions to compare; take more --samples\n" in ended.err
    assert json.loads((tmp_path / "rows.jsonl.scores").read_text().splitlines()[0])["judge"] == "function"


class OddWriter:
    """A row writer that makes what it is given, and whose note fails."""

    def __init__(self, made: Any) -> None:
        self.made = made

    @hookimpl
    def rows(self) -> Any:
        return self.made

    @hookimpl
    def rows_note(self) -> str:
        raise ValueError("out of\nink")


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (["a row"], "made a row that is text; give an object with fields"),
        ([[("prompt", "a")]], "made a row that is a list; give an object with fields"),
        ([{"answer": torch.tensor(1)}], "made a row that cannot be written as JSON: Object of type Tensor"),
        ([{"weight": float("nan")}], "made a row that cannot be written as JSON: Out of range float values"),
        ([{"answer": "\ud800"}], "made a row that cannot be written as JSON: 'utf-8' codec can't encode"),
        (None, r"failed in rows at making.py:\d+: TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_what_a_row_writer_does_wrong_is_one_line(
    made: Any, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = NamedPlugin("odd", OddWriter(made), "a test")
    monkeypatch.setattr("mint_train.sampling.making.create_plugin", lambda *_: link)
    writer = RowWriter("odd", {})
    with pytest.raises(PluginError, match=f'^the row writer "odd" {problem}') as raised:
        writer.rows(Judged({"prompt": "a"}, ["b"], [1.0], [[1]], [[-0.5]], 0))
    assert "\n" not in str(raised.value)
    with pytest.raises(PluginError, match=r'^the row writer "odd" failed in rows_note at .*: out of ink$'):
        writer.note()
