"""Rounds of sampling and training: each begins where the last one ended, whatever stops them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from few_rows import lines, write_lines

from mint_train.backends.local.starter.corpus import facts, questions
from mint_train.errors import DataError, JudgeError, OptionError, UserError
from mint_train.sampling.new_rounds import new_rounds
from mint_train.sampling.policy import open_policy
from mint_train.sampling.round_plan import Plan, mixed_in
from mint_train.sampling.rounds import Rounds
from mint_train.settings.merge import load_settings
from mint_train.settings.prices import describe_tokens
from mint_train.settings.sampling import Sampling
from mint_train.trained.sample import sampled_tokens
from mint_train.training.runner import Runner


@contextmanager
def shown() -> Iterator[Any]:
    yield lambda *_: None


def plan_of(folder: Path, **given: Any) -> Plan:
    prompts = write_lines(folder / "prompts.jsonl", [{"prompt": f"Say {number}."} for number in range(4)])
    known: dict[str, Any] = {
        "rounds": 2, "prompts": str(prompts), "judge": "length", "judge_options": {"unit": "characters"},
        "judge_timeout": 60.0, "sampling": Sampling(4, 6, 1.0), "writer": "pair", "writer_options": {},
        "mix_previous": 0.25,
    }  # fmt: skip
    return Plan(**known | given)


def begin(folder: Path, plan: Plan | None = None, **given: Any) -> Rounds:
    known = {
        "loss": "dpo", "backend": "local", "steps": 2, "batch_size": 2, "lr": 1e-2, "progress": "quiet",
        "save_every": 1, "options": {"reference": "initial"}, "output": folder / "all",
    }  # fmt: skip
    return new_rounds(load_settings(known | given), plan or plan_of(folder))


def weights_in(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def what_was_made(folder: Path) -> dict[str, Any]:
    """The rows, scores, figures and weights of two rounds, without the names of folders and times."""
    made: dict[str, Any] = {"scores": lines(folder / "rounds.jsonl")}
    for name in ("round-001", "round-002"):
        rows = lines(folder / f"{name}.jsonl")
        made[name] = [{key: row[key] for key in row if key != "sampled_from"} for row in rows]
        steps = lines(folder / name / "metrics.jsonl")
        made[f"{name} figures"] = [(step["step"], step["metrics"]) for step in steps]
        made[f"{name} weights"] = weights_in(folder / name)
    return made


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    result = begin(folder).train(shown, lambda _: None)
    assert result.status == "done"
    return folder / "all"


def test_each_round_begins_with_the_state_that_the_last_one_reached(unbroken: Path) -> None:
    first, second = (
        json.loads((unbroken / name / "run.json").read_text()) for name in ("round-001", "round-002")
    )
    assert first["start"] is None
    assert Path(second["start"]["path"]) == (unbroken / "round-001" / "checkpoints" / "step-000002").resolve()
    assert lines(unbroken / "round-002.jsonl")[0]["sampled_from"] == str(unbroken / "round-001")
    assert [source["weight"] for source in second["data"]["sources"]] == [0.75, 0.25]
    assert [Path(source["path"]).name for source in second["data"]["sources"]] == [
        "round-002.jsonl", "round-001.jsonl",
    ]  # fmt: skip
    assert [line["round"] for line in lines(unbroken / "rounds.jsonl")] == [1, 2]
    seeds = [lines(unbroken / f"round-00{n}.jsonl")[0]["sampled_with"]["seed"] for n in (1, 2)]
    assert seeds == [0, 1], "each round draws other completions"
    assert weights_in(unbroken / "round-001") != weights_in(unbroken / "round-002")


def test_the_tokens_of_sampling_count_beside_those_of_training(unbroken: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(unbroken, tmp_path / "all")
    told: list[str] = []
    result = Rounds.read(folder).train(shown, told.append)
    sampled = [line["tokens"] for line in lines(folder / "rounds.jsonl")]
    for each, own in zip(result.rounds, sampled, strict=True):
        assert own["prompts"] > 0 < own["sampled"]
        trained = json.loads((each.folder / "run.json").read_text())["tokens"]
        assert each.tokens == own | trained
    whole = sum((Counter(each.tokens) for each in result.rounds), Counter())
    assert told[-1] == f"Tokens of all rounds: {describe_tokens(whole)}."


def test_rounds_keep_to_their_reference(
    unbroken: Path, tmp_path: Path, starter_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(starter_model_folder, "reference")
    rounds = begin(tmp_path, options={"reference": "reference"})
    assert rounds.given["options"] == {"reference": str(tmp_path / "reference")}
    monkeypatch.setattr(Rounds, "sample", stop_at_the_second_round(Rounds.sample))
    with pytest.raises(KeyboardInterrupt):
        rounds.train(shown, lambda _: None)
    monkeypatch.undo()
    (tmp_path / "reference" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json has changed since the run began with this reference"):
        Rounds.read(tmp_path / "all").train(shown, lambda _: None)


def stop_at_the_second_round(sample: Any) -> Any:
    def stopping(rounds: Rounds, number: int, *given: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        sample(rounds, number, *given)

    return stopping


def sent_by(folder: Path) -> int:
    """All tokens of the rounds in a folder, counted from its files alone."""
    sampled = sum(sum(line["tokens"].values()) for line in lines(folder / "rounds.jsonl"))
    return sampled + sum(
        line["tokens"] for path in folder.glob("round-*/tokens.jsonl") for line in lines(path)
    )


@pytest.mark.parametrize(
    ("part", "steps"),
    [("the last step", [2, 1]), ("the training of round 2", [2]), ("the completions of round 2", [2])],
)
def test_a_budget_bounds_all_rounds_and_a_larger_one_goes_on(
    unbroken: Path, tmp_path: Path, run_cli: Any, part: str, steps: list[int]
) -> None:
    whole = sent_by(unbroken)
    trained = sum(line["tokens"] for line in lines(unbroken / "round-002/tokens.jsonl"))
    written = lines(unbroken / "rounds.jsonl")[1]["tokens"]
    first, longest = whole - trained - sum(written.values()), 4 * 4 * 6
    budget = {
        "the last step": whole - 1,
        "the training of round 2": first + written["prompts"] + longest,
        "the completions of round 2": first + written["prompts"] + longest - 1,
    }[part]
    folder, told = tmp_path / "all", list[str]()
    result = begin(tmp_path, token_budget=budget).train(shown, told.append)
    assert (result.status, result.budget_spent) == ("interrupted", True)
    assert told[-1] == f"Continue the rounds with: mint-train resume {folder} --token-budget N"
    assert sent_by(folder) <= budget
    assert [len(lines(path)) for path in sorted(folder.glob("round-*/metrics.jsonl"))] == steps
    assert (folder / "round-002.jsonl").exists() == (part != "the completions of round 2")
    again = run_cli("resume", folder)
    assert (again.status, again.err.count("\n")) == (2, 1)
    assert again.err.startswith(
        f"mint-train: --token-budget {budget}: {sent_by(folder):,} have been sent, and"
    )
    ended = run_cli("resume", folder, "--token-budget", whole + longest)
    assert ended.status == 0, ended.err
    assert sent_by(folder) == whole
    assert what_was_made(folder) == what_was_made(unbroken)
    assert run_cli("resume", folder, "--lr", 1).status == 2


@pytest.mark.parametrize(
    "command",
    [
        "sample ROUNDS --prompt Hi.",
        "eval ROUNDS",
        "export ROUNDS --output adapter",
        "plot ROUNDS",
        "--loss dpo --from ROUNDS --output next",
        "winrate ROUNDS ROUNDS --data prompts.jsonl --judge length --output won.jsonl",
        "pairs prompts.jsonl --from ROUNDS --judge length --output rows.jsonl",
    ],
)
def test_where_one_run_is_asked_for_rounds_name_their_last(
    unbroken: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Hi."}])
    ended = run_cli(*(str(unbroken) if word == "ROUNDS" else word for word in command.split()))
    assert ended.status == 2
    last = unbroken / "round-002"
    assert ended.err.endswith(f"; it holds runs: name one of them, such as {last}\n"), ended.err
    assert ended.err.count("\n") == 1


def test_a_budget_without_room_for_the_first_completions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"^--token-budget 9: the next round's completions need .* at most; give"
    ):
        begin(tmp_path, token_budget=9).train(shown, lambda _: None)
    assert not (tmp_path / "all" / "rounds.jsonl").exists()


class KilledError(BaseException):
    """Stands for the end of the process, which nothing catches."""


def killing(real: Callable[..., Any], when: int) -> Callable[..., Any]:
    """A function that dies at its call of a number, and is itself before."""
    calls: list[int] = []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == when:
            raise KilledError
        return real(*arguments, **named)

    return call


WHERE = "mint_train.sampling"


@pytest.mark.parametrize(
    ("target", "when"),
    [
        (f"{WHERE}.journal.append_line", 3), (f"{WHERE}.journal.append_line", 12),
        (f"{WHERE}.making.judge_all", 2), (f"{WHERE}.making.write_rows", 2),
        (f"{WHERE}.rounds.append_line", 2), (f"{WHERE}.rounds.start_run", 2),
        ("mint_train.training.runner.Runner.submit", 2), ("mint_train.training.runner.Runner.submit", 4),
        ("mint_train.training.runner.Runner.save", 3), ("mint_train.training.runner.Runner.finish", 1),
    ],
)  # fmt: skip
def test_rounds_that_were_killed_go_on_and_make_the_same(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, when: int
) -> None:
    rounds = begin(tmp_path)
    module, _, name = target.rpartition(".")
    owner: Any = Runner if module.endswith("Runner") else __import__(module, fromlist=["_"])
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, killing(getattr(owner, name), when))
        with pytest.raises(KilledError):
            rounds.train(shown, lambda _: None)
    result = Rounds.read(tmp_path / "all").train(shown, lambda _: None)
    assert result.status == "done"
    assert what_was_made(tmp_path / "all") == what_was_made(unbroken)


METRIC_JUDGE = """
def score(completion):
    return float(any(unit in completion for unit in ("metre", "gram", "tonne", "litre", "Celsius")))
"""


def share_of_metric_answers(policy: str | None, questions: list[str]) -> float:
    with open_policy(policy, {"backend": "local"}, print) as opened:
        tokens = [opened.prompt_tokens(question) for question in questions]
        drawn = sampled_tokens(opened.sampler, tokens, Sampling(4, 24, 1.0, seed=9))
        texts = [text for each in drawn for text in opened.tokenizer.batch_decode(each)]
    return sum(" about " in text for text in texts) / len(texts)


def test_rounds_raise_the_score_on_prompts_that_they_have_not_seen(tmp_path: Path) -> None:
    asked = [questions(fact)[0] for fact in facts() if fact.is_measure]
    seen, unseen = asked[::10], asked[5::10]
    write_lines(tmp_path / "questions.jsonl", [{"prompt": question} for question in seen])
    (tmp_path / "metric_in_rounds.py").write_text(METRIC_JUDGE)
    plan = replace(
        plan_of(tmp_path), prompts=str(tmp_path / "questions.jsonl"), sampling=Sampling(8, 24, 1.0),
        mix_previous=0.0, judge="function", judge_options={"file": str(tmp_path / "metric_in_rounds.py")},
    )  # fmt: skip
    result = begin(tmp_path, plan, steps=8, batch_size=8, lr=1.5e-3).train(shown, lambda _: None)
    assert result.status == "done"
    scores = [line["mean_score"] for line in lines(tmp_path / "all" / "rounds.jsonl")]
    assert scores[0] < 0.3 < scores[1]
    assert share_of_metric_answers(None, unseen) < 0.3
    assert share_of_metric_answers(str(tmp_path / "all" / "round-002"), unseen) > 0.7


def test_the_reference_is_the_rounds_beginning_or_the_base_model(tmp_path: Path, unbroken: Path) -> None:
    rounds = Rounds.read(Path(shutil.copytree(unbroken, tmp_path / "all")))
    based = Rounds(rounds.place, rounds.plan, {**rounds.given, "options": {"reference": "base"}})
    assert based.own_settings(1)["options"] == {"reference": "initial"}
    assert based.own_settings(2)["options"] == {
        "reference": str(tmp_path / "all" / "round-001" / "base_model")
    }
    assert "options" not in rounds.own_settings(2)
    with pytest.raises(OptionError, match="reference=base cannot be taken with --from"):
        Rounds(rounds.place, rounds.plan, {**based.given, "from_checkpoint": "x"}).own_settings(2)


def test_earlier_rounds_without_a_row_of_an_epoch_are_not_mixed_in() -> None:
    """The oldest first; else the run would be refused once its rows are there."""

    def mixed(*counts: int, share: float = 0.25) -> list[int]:
        scored = [{"round": number, "rows": rows} for number, rows in enumerate(counts, start=1)]
        return mixed_in(share, scored, len(counts))

    assert mixed(2) == []
    assert mixed(8, 8, 8, 8) == [1, 2, 3]
    assert mixed(2, 1, 2) == [2]
    assert mixed(8, 8, share=0.0) == []


def test_foreign_rounds_run_no_code_and_send_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all").mkdir()
    foreign = tmp_path / "all" / "judge.py"
    foreign.write_text("def score(completion): return 1\n")

    def resumed(judge: str, options: dict[str, str], **settings: Any) -> Rounds:
        shutil.rmtree(tmp_path / "all")
        begin(tmp_path, plan_of(tmp_path, judge="length", judge_options={}), **settings)
        plan = json.loads((tmp_path / "all" / "rounds.json").read_text())
        plan["plan"] |= {"judge": judge, "judge_options": options}
        (tmp_path / "all" / "rounds.json").write_text(json.dumps(plan))
        foreign.write_text("x = 1\n")
        return Rounds.read(tmp_path / "all")

    with pytest.raises(OptionError, match=r"names .*judge\.py for its loss or its judge.*add --trust-loss"):
        resumed("function", {"file": str(foreign)})
    with pytest.raises(OptionError, match="names http://there/v1"):
        resumed("llm", {"base_url": "http://there/v1"})
    assert Rounds.read(tmp_path / "all", trusted=True).plan.judge_options == {"base_url": "http://there/v1"}
    (tmp_path / "own.py").write_text("x = 1\n")
    assert resumed("function", {"file": "own.py"}).plan.rounds == 2
    monkeypatch.setenv("MINT_API_KEY", "sk-of-a-test")
    with pytest.raises(OptionError, match=r"http://there, which MINT_BASE_URL does not name"):
        resumed("length", {}, base_url="http://there", backend="auto")


def test_what_is_wrong_with_rounds_is_said_before_their_folder_is_made(
    tmp_path: Path, unbroken: Path
) -> None:
    plan = plan_of(tmp_path)
    for wrong, problem in (
        (replace(plan, judge="lenght"), 'no judge "lenght" is installed; did you mean "length"'),
        (replace(plan, judge_options={"unit": "miles"}), "unit"),
        (replace(plan, prompts=str(tmp_path / "none.jsonl")), "no such file"),
        (replace(plan, prompts="-"), "--prompts -: each round reads the prompts again"),
    ):
        with pytest.raises(UserError, match=problem):
            begin(tmp_path, wrong)
    with pytest.raises(OptionError, match="betta"):
        begin(tmp_path, options={"betta": 1})
    other = Path(shutil.copytree(unbroken / "round-001" / "base_model", tmp_path / "other"))
    with pytest.raises(OptionError, match=r"--model .*other.*base_model"):
        begin(tmp_path, model=str(other), from_checkpoint=str(unbroken / "round-001"))
    assert not (tmp_path / "all").exists()


def test_prompts_that_change_between_rounds_are_refused(tmp_path: Path) -> None:
    rounds = begin(tmp_path)
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Another one."}])
    with pytest.raises(DataError, match=r"prompts\.jsonl has changed since these rounds began"):
        Rounds.read(rounds.folder).train(shown, lambda _: None)


def test_a_judge_is_mended_in_the_first_round_and_refused_later(tmp_path: Path) -> None:
    judge = tmp_path / "judge_of_rounds.py"
    judge.write_text("def score(completion): raise ValueError\n")
    plan = plan_of(tmp_path, judge="function", judge_options={"file": str(judge)})
    folder = begin(tmp_path, plan).folder
    with pytest.raises(JudgeError, match=r"judge_of_rounds\.py:1"):
        Rounds.read(folder, trusted=True).train(shown, lambda _: None)
    judge.write_text("def score(completion): return len(completion)\n")
    rounds = Rounds.read(folder, trusted=True)
    rounds.sample(1, shown, lambda _: None)
    rounds.train_round(1)
    judge.write_text("def score(completion): return -len(completion)\n")
    changed = r"judge_of_rounds\.py has changed since these rounds began; .* --from .*round-001"
    with pytest.raises(OptionError, match=changed):
        Rounds.read(folder, trusted=True).train(shown, lambda _: None)
    assert not (folder / "round-002.jsonl").exists()


def test_what_rounds_decide_is_refused(tmp_path: Path, unbroken: Path) -> None:
    with pytest.raises(OptionError, match="--data: --rounds trains on what is sampled"):
        begin(tmp_path, data="rows.jsonl")
    with pytest.raises(OptionError, match=r"holds rounds; mint-train resume .* goes on with them"):
        begin(tmp_path, output=unbroken)
    (tmp_path / "rounds.json").write_text("{}")
    with pytest.raises(UserError, match=r"rounds\.json is broken"):
        Rounds.read(tmp_path)


def test_the_command_line(run_cli: Any, tmp_path: Path) -> None:
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Say it."}, {"prompt": "Go on."}])
    command = ["--loss", "dpo", "--backend", "local", "--rounds", 1, "--steps", 1, "--output", "all"]
    ended = run_cli(*command, "--prompts", "prompts.jsonl")
    assert (ended.status, ended.err) == (2, "mint-train: --rounds needs --judge\n")
    ended = run_cli("--loss", "dpo", "--mix-previous", "0.5")
    assert (ended.status, ended.err) == (
        2,
        "mint-train: --mix-previous is for --rounds N, which is not given\n",
    )
    ended = run_cli(
        *command, "--prompts", "prompts.jsonl", "--judge", "length", "--judge-set", "unit=characters",
        "--samples", 3, "--max-tokens", 6,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "Round 1 of 1.\n2 prompts, 6 completions, mean score -" in ended.out
    assert ended.out.endswith("Rounds: all\n")
    ended = run_cli("resume", "all")
    assert ended.status == 0, ended.err
    ended = run_cli("resume", "all", "--steps", 3)
    assert (ended.status, "all holds rounds, which go on with the settings" in ended.err) == (2, True)
