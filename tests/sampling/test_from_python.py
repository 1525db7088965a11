"""Pairs, win rates and rounds as functions of a Python program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from few_rows import lines, write_lines

import mint_train
from mint_train.errors import DataError, JudgeError, MintTrainError, OptionError
from mint_train.settings.keywords import SettingsKeywords, TrainKeywords
from mint_train.settings.rounds import ONLY_ROUNDS

PROMPTS = ["Say it.", "Go on.", "Say it."]
DRAWN: dict[str, Any] = {"samples": 3, "max_tokens": 6, "backend": "local", "progress": "quiet"}


def shortest(prompt: str, completions: Sequence[str]) -> list[float | None]:
    assert prompt in PROMPTS
    assert all(map(str.strip, completions)), "a judge sees no empty completion"
    return [-float(len(text)) for text in completions]


def test_the_keywords_of_train_are_the_settings_of_a_run_and_of_rounds() -> None:
    own = get_type_hints(TrainKeywords).keys() - get_type_hints(SettingsKeywords).keys()
    assert own == ONLY_ROUNDS


def test_pairs_are_rows_to_train_on_with_their_scores(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = mint_train.pairs(PROMPTS, judge=shortest, **DRAWN)
    assert (made.output, len(made.scored), capfd.readouterr()) == (None, 2, ("", ""))
    for row, scored in zip(made.rows, made.scored, strict=True):
        assert row["prompt"] == scored.prompt
        assert row["chosen"] == min(filter(None, scored.completions), key=len)
    known = [score for scored in made.scored for score in scored.scores if score is not None]
    assert made.mean_score == pytest.approx(sum(known) / len(known))
    assert "2 prompts, 6 completions" in made.notes[0]
    assert not [note for note in made.notes if "--" in note]
    file = write_lines(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    again = mint_train.pairs(file, judge=shortest, output=tmp_path / "own.jsonl", **DRAWN)
    assert again.rows == made.rows == lines(tmp_path / "own.jsonl")
    by_name = mint_train.pairs(
        [{"prompt": text} for text in PROMPTS], judge="length", judge_options={"unit": "characters"}, **DRAWN
    )
    assert [row["chosen"] for row in by_name.rows] == [row["chosen"] for row in made.rows]
    ranked = mint_train.pairs(PROMPTS, judge=shortest, form="rank", **DRAWN)
    assert "chosen" not in ranked.rows[0]


def test_what_is_wrong_with_a_call_is_said_in_keywords(tmp_path: Path) -> None:
    def few(prompt: str, completions: Sequence[str]) -> list[float]:
        return [1.0]

    def broken(prompt: str, completions: Sequence[str]) -> list[float]:
        raise ValueError("no such thing")

    (tmp_path / "own.jsonl").touch()
    wrong: list[tuple[type[MintTrainError], str, dict[str, Any]]] = [
        (OptionError, r'pairs has no keyword "sampels"; did you mean "samples"', {"sampels": 3}),
        (OptionError, "judge is a number; give the name of a judge, or a function", {"judge": 3}),
        (OptionError, "judge_options: the judge shortest is a function", {"judge_options": {"unit": "x"}}),
        (OptionError, "pair is for preferences, and form is rank", {"pair": "all", "form": "rank"}),
        (OptionError, r"own\.jsonl exists; .* or add overwrite=True", {"output": tmp_path / "own.jsonl"}),
        (OptionError, "samples 0: it must be a whole number, 1 or more", {"samples": 0}),
        (OptionError, "samples True: it must be a whole number", {"samples": True}),
        (OptionError, "temperature inf: it must be a number, 0 or more", {"temperature": float("inf")}),
        (JudgeError, r'the judge "few" gave 1 score for \d completions of the prompt', {"judge": few}),
        (JudgeError, r'the judge "broken" .*ValueError: no such thing', {"judge": broken}),
        (JudgeError, "no row was made: no prompt has two .*; take more samples$", {"samples": 1}),
        (DataError, "prompts row 1: a row must be an object with fields, not a number", {"prompts": [1]}),
    ]  # fmt: skip
    for kind, problem, given in wrong:
        known = {"prompts": PROMPTS, "judge": shortest, **DRAWN} | given
        with pytest.raises(kind, match=problem) as refused:
            mint_train.pairs(known.pop("prompts"), **known)
        assert "--" not in str(refused.value)


def test_a_misspelt_keyword_of_sample_is_refused() -> None:
    problem = 'sample has no keyword "max_token"; did you mean "max_tokens"'
    assert problem in refusal(mint_train.sample, "runs/any", max_token=8)


def test_two_policies_are_compared(starter_model_folder: Path, tmp_path: Path) -> None:
    folder = str(starter_model_folder)
    won = mint_train.winrate(folder, folder, PROMPTS, judge=shortest, output=tmp_path / "won.jsonl", **DRAWN)
    assert (won.rate.raw.value, won.rate.ties) == (0.5, 1.0)
    assert won.rate.raw.low < 0.2 < 0.8 < won.rate.raw.high
    assert (won.matches, won.left_out) == (6, 0)
    assert won.rows == lines(tmp_path / "won.jsonl")


def test_rounds_are_judged_by_a_function_and_go_on_with_it(
    tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {key: value for key, value in DRAWN.items() if key != "backend"}
    calls: list[str] = []

    def shortest_or_stop(prompt: str, completions: Sequence[str]) -> list[float | None]:
        calls.append(prompt)
        if len(calls) == 3:
            raise KeyboardInterrupt  # in the second round
        return shortest(prompt, completions)

    with pytest.raises(KeyboardInterrupt):
        mint_train.train(
            "dpo",
            rounds=2,
            prompts=PROMPTS,
            judge=shortest_or_stop,
            backend="local",
            steps=1,
            output="all",
            **known,
        )
    for call in (run_cli("resume", "all").err, refusal(mint_train.resume, "all")):
        assert 'the judge "shortest_or_stop" of all is a function of a Python program; call ' in call
        assert 'mint_train.resume("all", judge=shortest_or_stop) there' in call
    assert "judge shortest: these rounds began with shortest_or_stop" in refusal(
        mint_train.resume, "all", judge=shortest
    )
    assert "which go on with the settings" in refusal(mint_train.resume, "all", lr=1e-3)
    result = mint_train.resume("all", judge=shortest_or_stop)
    assert (result.status, result.folder) == ("done", Path("all/round-002"))
    assert [(one.number, one.rows, one.folder.name) for one in result.rounds] == [
        (1, 2, "round-001"), (2, 2, "round-002"),
    ]  # fmt: skip
    scores = [line["mean_score"] for line in lines(tmp_path / "all" / "rounds.jsonl")]
    assert [one.mean_score for one in result.rounds] == scores


def test_a_judge_may_take_another_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])

    def moving(prompt: str, completions: Sequence[str]) -> list[float | None]:
        os.chdir(tmp_path / "elsewhere")
        return shortest(prompt, completions)

    known: dict[str, Any] = {"rounds": 2, "steps": 1, "prompts": "prompts.jsonl", "output": "all", **DRAWN}
    result = mint_train.train("dpo", judge=moving, **known)
    assert (result.status, result.folder) == ("done", tmp_path / "all/round-002")
    assert len(lines(tmp_path / "all/rounds.jsonl")) == 2
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_a_judge_that_takes_another_folder_when_it_is_opened_moves_no_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    code = f"import os\nos.chdir({str(tmp_path / 'elsewhere')!r})\n"
    code += "def score(completion):\n    return -float(len(completion))\n"
    (tmp_path / "judge_elsewhere.py").write_text(code)
    known: dict[str, Any] = {"rounds": 2, "steps": 1, "prompts": PROMPTS, "output": "all", **DRAWN}
    named = {"judge": "function", "judge_options": {"file": "judge_elsewhere.py"}}
    assert mint_train.train("dpo", **named, **known).status == "done"
    assert len(lines(tmp_path / "all/rounds.jsonl")) == 2
    assert not [*(tmp_path / "elsewhere").iterdir()]
    shutil.rmtree(tmp_path / "all/round-002")
    assert mint_train.resume(tmp_path / "all", trust_loss=True).status == "done", "from another folder"


def refusal(function: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(MintTrainError) as refused:
        function(*arguments, **named)
    return str(refused.value)
