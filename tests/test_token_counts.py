"""Tokens by kind: a dry run foretells them, a run counts what it sends; prices and a budget follow."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from few_rows import HELD_OUT, PAIRS, lines, write_lines

from mint_train.backends.local.client import LocalTrainingClient
from mint_train.errors import OptionError, ServiceError
from mint_train.groups.expected_tokens import ExpectedTokens
from mint_train.groups.inspection import inspect_data
from mint_train.groups.order import Order
from mint_train.groups.shares import Share
from mint_train.losses.weighted_sum import open_loss
from mint_train.run_folder.token_counts import TokenCounts
from mint_train.settings.merge import load_settings
from mint_train.settings.prices import TOKEN_KINDS, Cost, Prices, describe_tokens

RunCli = Callable[..., Any]


@pytest.fixture
def arguments(run_cli: RunCli, starter_model_folder: Path, tmp_path: Path) -> list[object]:
    """A run with every kind of tokens, in the current folder."""
    write_lines(tmp_path / "pairs.jsonl", PAIRS * 2)
    write_lines(tmp_path / "held_out.jsonl", HELD_OUT)
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Say six."}, {"prompt": "Say it again."}])
    return [
        "--loss", "dpo", "--set", "reference=initial", "--data", "pairs.jsonl",
        "--model", starter_model_folder,
        "--batch-size", 2, "--accumulate", 2, "--steps", 5, "--save-every", 2, "--group-by-length",
        "--eval-data", "held_out.jsonl", "--eval-every", 2, "--sample-prompts", "prompts.jsonl",
        "--sample-every", 3, "--sample-tokens", 4, "--price-file", write_prices(tmp_path), "--json",
    ]  # fmt: skip


def write_prices(folder: Path, **changed: object) -> Path:
    prices = dict.fromkeys(TOKEN_KINDS, 1.5) | changed
    table = "".join(f"{kind} = {json.dumps(price)}\n" for kind, price in prices.items() if price is not None)
    (folder / "prices.toml").write_text(f'currency = "EUR"\n[per_million_tokens]\n{table}')
    return folder / "prices.toml"


def events(ended: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.out.splitlines()]


def expected(run_cli: RunCli, arguments: list[object]) -> dict[str, Any]:
    ended = run_cli(*arguments, "--dry-run", "--examples", 0)
    assert ended.status == 0, ended.err
    return events(ended)[0]


@pytest.mark.parametrize(("loss", "most"), [("sft", "at most "), ("dpo", "")])
def test_a_dry_run_does_not_promise_the_forward_of_a_loss_that_needs_none(
    run_cli: RunCli, loss: str, most: str
) -> None:
    ended = run_cli("--loss", loss, "--dry-run", "--steps", 2)
    assert re.search(rf"tokens of the run +{most}\d", ended.out), ended.out
    assert re.search(rf"forward +{most}\d", ended.out)
    assert re.search(r"backward +\d", ended.out)
    refused = run_cli("--loss", loss, "--dry-run", "--steps", 2, "--token-budget", 1)
    assert refused.status == 2
    assert f"due around it {'may ' * bool(most)}need" in refused.err


def test_a_dry_run_foretells_what_a_run_counts(run_cli: RunCli, arguments: list[object]) -> None:
    foretold = expected(run_cli, arguments)
    ended = run_cli(*arguments, "--output", "run")
    assert ended.status == 0, ended.err
    counted = events(ended)[-1]["tokens"]
    assert set(counted) == set(TOKEN_KINDS)
    at_most = foretold["tokens_sent"].pop("sampled")
    assert 0 < counted.pop("sampled") <= at_most == 3 * 2 * 4, "before step 1, after steps 3 and 5"
    assert counted == foretold["tokens_sent"]
    described = json.loads(Path("run/run.json").read_text())
    assert described["cost"] == events(ended)[-1]["cost"]
    assert described["cost"]["amount"] == pytest.approx(1.5e-6 * sum(described["tokens"].values()))
    steps = [line["tokens"] for line in lines("run/metrics.jsonl")]
    assert counted["forward"] == counted["backward"] == sum(steps)
    trained = foretold["tokens"] - 2 * foretold["groups"]  # the first token of a datum is nobody's target
    assert counted["reference"] == trained + counted["evaluation"] / 4


def test_a_killed_run_goes_on_counting(
    run_cli: RunCli, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        """Stands for the end of the process."""

    optim_step = LocalTrainingClient.optim_step
    taken: list[int] = []

    def dies_at_the_fourth(self: LocalTrainingClient, params: Any) -> Any:
        taken.append(1)
        if len(taken) == 4:
            raise KilledError
        return optim_step(self, params)

    foretold = expected(run_cli, arguments)["tokens_sent"]
    with monkeypatch.context() as broken:
        broken.setattr(LocalTrainingClient, "optim_step", dies_at_the_fourth)
        with pytest.raises(KilledError):
            run_cli(*arguments, "--output", "run")
    sent = lines("run/tokens.jsonl")
    steps = {line["step"]: line["tokens"] for line in sent if line["kind"] == "forward"}
    with Path("run/tokens.jsonl").open("a") as file:
        file.write('{"step": 4, "ki')  # torn by the kill
    assert run_cli("resume", "run").status == 0
    counted = json.loads(Path("run/run.json").read_text())["tokens"]
    repeated = steps[3] + steps[4]  # the last checkpoint came after step 2
    assert counted["forward"] == counted["backward"] == foretold["forward"] + repeated
    assert counted["reference"] == foretold["reference"]


def test_a_rolled_back_step_is_paid_twice(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    optim_step = LocalTrainingClient.optim_step
    failed: list[int] = []

    def fails_once(self: LocalTrainingClient, params: Any) -> Any:
        if not failed:
            failed.append(1)
            raise ServiceError("the service is away")
        return optim_step(self, params)

    plain = train(steps=1).tokens
    monkeypatch.setattr(LocalTrainingClient, "optim_step", fails_once)
    monkeypatch.setattr("mint_train.training.runner.pause_seconds", lambda _: 0.0)
    assert train(steps=1, output=Path("again")).tokens == {kind: 2 * tokens for kind, tokens in plain.items()}


def test_a_budget_stops_at_a_checkpoint_and_a_larger_one_goes_on(
    run_cli: RunCli, arguments: list[object]
) -> None:
    whole = sum(expected(run_cli, arguments)["tokens_sent"].values())
    ended = run_cli(*arguments, "--output", "run", "--token-budget", whole - 1)
    assert ended.status == 130
    finished = events(ended)[-1]
    assert (finished["status"], finished["budget_spent"], finished["steps"]) == ("interrupted", True, 4)
    assert sum(finished["tokens"].values()) < whole
    assert finished["checkpoint"]["step"] == 4
    refused = run_cli("resume", "run")
    assert refused.status == 2
    assert refused.err.startswith(f"mint-train: --token-budget {whole - 1}: ")
    ended = run_cli("resume", "run", "--token-budget", whole, "--progress", "plain")
    assert ended.status == 0, ended.err
    assert "which cost" in ended.out
    too_little = run_cli(*arguments, "--output", "bounded", "--token-budget", 10)
    assert too_little.status == 2
    assert not Path("bounded").exists()
    foretold = run_cli(*arguments, "--token-budget", 10, "--dry-run")
    assert (foretold.status, foretold.err) == (2, too_little.err)


def test_the_budget_s_end_says_how_to_go_on(
    train: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = sum(train(steps=2).tokens.values())
    capsys.readouterr()
    assert train(steps=4, token_budget=tokens, output=Path("part"), progress="plain").steps == 2
    out = capsys.readouterr().out
    assert "The next step would pass --token-budget, so the run stops after step 2.\n" in out
    assert "continue with: mint-train resume part --token-budget N\n" in out


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"backwrd": 1}, 'nothing is called "backwrd"; did you mean "backward"?'),
        ({"forward": "cheap"}, "per_million_tokens.forward: input should be a number"),
        ({"forward": True}, "per_million_tokens.forward: input should be a number"),
        ({"forward": -1}, "per_million_tokens.forward: input should be greater than or equal to 0"),
        ({"backward": None}, 'no price for "backward", and there are such tokens'),
    ],
)
def test_wrong_prices_are_refused_with_file_and_key(
    run_cli: RunCli, tmp_path: Path, changed: dict[str, object], problem: str
) -> None:
    path = write_prices(tmp_path, **changed)
    for dry_run in ([], ["--dry-run"]):
        status, _, err = run_cli("--loss", "dpo", "--price-file", path, "--output", "run", *dry_run)
        assert status == 2
        assert err.startswith(f"mint-train: --price-file {path}: {problem}")
    assert not Path("run").exists()


@pytest.mark.parametrize("text", ["[]", "currency: USD", "currency: 1\nper_million_tokens: {}", "a: ["])
def test_a_file_that_holds_no_prices_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match=rf"^--price-file {path}: "):
        Prices.read(str(path))


def test_prices_in_yaml_and_how_sums_and_counts_read(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("currency: CNY\nper_million_tokens:\n  forward: 2\n  backward: 6.5\n")
    prices = Prices.read(str(path))
    assert prices.cost({"forward": 1_000_000, "backward": 2_000_000, "sampled": 0}) == Cost(15.0, "CNY")
    assert [str(Cost(amount, "CNY")) for amount in (1234.567, 0.00123456)] == ["1,234.57 CNY", "0.00123 CNY"]
    with pytest.raises(OptionError, match='no price for "sampled"'):
        prices.cost({"sampled": 1})
    assert describe_tokens({"backward": 5, "forward": 1000}) == "1,005 (1,000 forward, 5 backward)"


def test_counts_without_a_folder_are_kept_in_memory(tmp_path: Path) -> None:
    counts = TokenCounts()
    counts.counting("evaluation")(7)
    assert (counts.by_kind, counts.total) == ({"evaluation": 7}, 7)
    assert not list(tmp_path.iterdir())


def test_a_completion_s_length_is_no_budget(run_cli: RunCli) -> None:
    status, _, err = run_cli("--loss", "dpo", "--max-tokens", 9)
    assert status == 2
    assert err.endswith("which is not given; --token-budget bounds what a run sends\n")


# what a run will send


def expecting(dice: random.Random) -> ExpectedTokens:
    """A run of any length, with weights or without."""
    first, second = dice.randint(1, 9), dice.randint(1, 9)
    groups = first + second
    quota = dice.randint(1, groups - 1)
    shares = (Share("a", 1, range(first), quota), Share("b", 1, range(first, groups), groups - quota))
    every = dice.choice([None, 1, 2, 7])
    asked = {"eval_every": every, "save_every": dice.randint(1, 9), "sample_tokens": 5}
    settings = load_settings({"loss": "dpo", "batch_size": dice.randint(1, groups + 2)} | asked)
    lengths = dice.choice([None, [dice.randint(1, 9) for _ in range(groups)]])
    order = Order(groups, settings.batch_size, 3, lengths, dice.choice([(), shares]))
    prompts = dice.choice([(), (3, 4)])
    tokens = [dice.randint(1, 99) for _ in range(groups)]
    return ExpectedTokens(settings, dice.randint(1, 60), order, tokens, 1000, prompts, dice.random() < 0.5)


@pytest.mark.parametrize("seed", range(60))
def test_the_tokens_of_many_steps_are_those_of_each_step(seed: int) -> None:
    run = expecting(random.Random(seed))
    left = [run.of_step(step) for step in range(1, run.steps + 1)]
    assert run.after(0) == sum(left, run.before_first_step())
    for step in range(1, run.steps + 1):
        assert run.after(step) == sum(left[step:], Counter())
    enough = run.before_first_step().total()
    assert run.steps_within(enough - 1) == 0
    for step, sent in enumerate(left):
        assert run.steps_within(enough) == run.steps_within(enough + sent.total() - 1) == step
        enough += sent.total()
    assert run.steps_within(enough) == run.steps_within(enough * 2) == run.steps


@pytest.mark.parametrize("length", ["steps", "epochs"])
def test_a_dry_run_does_not_look_at_each_of_a_billion_steps(
    tokenizer: Any, short_pairs: Path, length: str
) -> None:
    asked = {"data": str(short_pairs), length: 10**9, "batch_size": 2, "token_budget": 10**18}
    report = inspect_data(load_settings({"loss": "dpo", **asked}), open_loss("dpo", {}), tokenizer)
    assert report.expected is not None
    assert report.expected.steps == (10**9 if length == "steps" else 3 * 10**9), "5 rows are 3 steps"
    epochs = report.expected.steps // 3
    assert report.expected.after(0)["forward"] // epochs == sum(report.group_tokens)
    assert report.expected.steps_within(10**18) == report.expected.steps


def test_the_largest_batch_is_a_step(tokenizer: Any, short_pairs: Path) -> None:
    asked = {"data": str(short_pairs), "batch_size": 10**9, "accumulate": 10**9}
    report = inspect_data(load_settings({"loss": "dpo", **asked}), open_loss("dpo", {}), tokenizer)
    assert report.expected is not None
    assert (report.steps, report.expected.after(0)["forward"]) == (1, sum(report.group_tokens))
