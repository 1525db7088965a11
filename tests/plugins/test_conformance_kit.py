"""The conformance kit finds what is wrong: one broken loss per check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field

import mint_train_dpo.plugin
from mint_train import hookimpl, loss, segment_sums, sequence_logprobs
from mint_train.batches.logprobs import packed_logprobs
from mint_train.errors import OptionError, PluginError, RowError
from mint_train.plugin import text
from mint_train.plugins.discovery import NamedPlugin
from mint_train.rendering.renderer import Renderer
from mint_train.run_folder.metric import Metric
from mint_train.testing import CHECKS, ConformanceError, check_loss, conformance_checks
from mint_train_dpo import Pairs


def failures(plugin: object) -> dict[str, str]:
    """Return what failed, by the check's name."""
    given = plugin if hasattr(plugin, "function") else NamedPlugin("broken", plugin, "a test")
    return {result.name: result.detail for result in check_loss(given) if not result.passed}


def extending(**hooks: Any) -> SimpleNamespace:
    """Make a plugin that extends dpo by some hooks."""
    marked = {name: hookimpl(hook) if callable(hook) else hook for name, hook in hooks.items()}
    return SimpleNamespace(EXTENDS="dpo", **marked)


def margins(batch: Any, logprobs: Any) -> torch.Tensor:
    scores = sequence_logprobs(logprobs, batch)
    return scores[::2] - scores[1::2]


def test_a_sound_function_passes_all() -> None:
    @loss(extends="dpo")
    def sound(batch, logprobs):
        return batch.mean(torch.nn.functional.softplus(-margins(batch, logprobs)))

    assert failures(sound) == {}
    assert [check.name for check in conformance_checks(sound)] == list(CHECKS)


def left_out(batch, logprobs):
    return batch.mean(sequence_logprobs(logprobs, batch)[::2]) + 0 * logprobs[1].sum()


def detached_part(batch, logprobs):
    scores = margins(batch, logprobs)
    return (scores * scores.detach()).mean()


def prompts_too(batch, logprobs):
    scores = segment_sums(packed_logprobs(logprobs), batch.lengths)
    return torch.nn.functional.softplus(scores[1::2] - scores[::2]).mean()


def overflowing(batch, logprobs):
    return torch.log(1 + torch.exp(-margins(batch, logprobs))).mean()


def by_position(batch, logprobs):
    scores = margins(batch, logprobs)
    return (torch.arange(1, len(scores) + 1) * torch.nn.functional.softplus(-scores)).mean()


def with_memory(batch, logprobs, memory=[0.0]):  # noqa: B006 - the fault is the point
    memory[0] += 1.0
    return memory[0] * torch.nn.functional.softplus(-margins(batch, logprobs)).mean()


def without_weights(batch, logprobs):
    return torch.nn.functional.softplus(-margins(batch, logprobs)).mean()


def weights_in_a_metric(batch, logprobs):
    return without_weights(batch, logprobs), {"margin": float(batch.mean(margins(batch, logprobs).detach()))}


def weighted_sum(batch, logprobs):
    return (batch.group_weights * torch.nn.functional.softplus(-margins(batch, logprobs))).mean()


def tensor_metric(batch, logprobs):
    scores = margins(batch, logprobs)
    return torch.nn.functional.softplus(-scores).mean(), {"margin": scores}


def mixed_up(batch, logprobs):
    pairs = Pairs.of(batch, logprobs, reference=False)
    return batch.mean(torch.nn.functional.softplus(pairs.margins)), pairs.metrics()


@pytest.mark.parametrize(
    ("function", "check", "detail"),
    [
        (mixed_up, "a step down the loss improves its metrics", "chosen and rejected are mixed up"),
        (left_out, "the gradient reaches every trained logprob", "never get a gradient"),
        (detached_part, "the gradient matches finite differences", "differences give"),
        (prompts_too, "logprobs without weight do not matter", "change the loss"),
        (prompts_too, "the gradient reaches every trained logprob", "not to be trained"),
        (overflowing, "float32 stays finite at margins of 1e4", "the loss is inf"),
        (by_position, "the order of groups does not matter", "changes the loss"),
        (
            lambda batch, logprobs: with_memory(batch, logprobs),
            "an evaluation changes nothing",
            "changes the loss",
        ),
        (without_weights, "weights of rows count as rows do", "does not use it"),
        (weights_in_a_metric, "weights of rows count as rows do", "at weight 2, not 2 times, the loss is"),
        (weighted_sum, "weights of rows count as rows do", "at weight 2, not 2 times, the loss is"),
        (tensor_metric, "metrics are plain finite floats", "make it a float"),
    ],
)
def test_broken_mathematics_is_found(function: Callable[..., Any], check: str, detail: str) -> None:
    found = failures(loss(extends="dpo")(function))
    assert detail in found[check]


def test_a_loss_may_say_that_lower_is_better() -> None:
    plugin = extending(
        compute_loss=lambda batch, logprobs: mixed_up(batch, logprobs),
        metrics=lambda: {
            "pair_accuracy": Metric(kind="share", better="lower"),
            **{name: Metric() for name in ("mean_margin", "mean_chosen_score", "mean_rejected_score")},
        },
    )
    assert failures(plugin) == {}


def test_traits_are_believed_and_inherited() -> None:
    plugin = extending(
        ORDER_MATTERS=True,
        STOPS_GRADIENT=True,
        compute_loss=lambda batch, logprobs: (
            by_position(batch, logprobs) + 0 * detached_part(batch, logprobs)
        ),
    )
    assert failures(plugin) == {}
    alone = loss(extends="dpo", traits={"UNTRAINED_DATUMS": (1,)})(left_out)
    assert failures(alone) == {}


def scores_kept(batch, logprobs, state):
    state["steps"] = 1.0
    return -batch.mean(sequence_logprobs(logprobs, batch)[::2])


def squared(batch, logprobs):
    return batch.mean(sequence_logprobs(logprobs, batch)[::2].square())


def alone(batch, logprobs):
    return -batch.mean(sequence_logprobs(logprobs, batch)[::2])


@pytest.mark.parametrize(
    ("function", "says_so", "passed", "detail"),
    [
        (squared, True, False, "with the logprobs: leave the trait LINEAR out"),
        (scores_kept, True, False, "it keeps steps as state"),
        (alone, True, True, "one gradient at 5 sets of logprobs"),
        (alone, False, True, "with the trait LINEAR a step takes one pass"),
        (scores_kept, False, True, "does not say that it is linear"),
        (squared, False, True, "does not say that it is linear"),
    ],
)
def test_a_loss_that_calls_itself_linear_is_tried(
    function: Callable[..., Any], says_so: bool, passed: bool, detail: str
) -> None:
    made = loss(extends="dpo", traits={"LINEAR": says_so})(function)
    (check,) = [one for one in conformance_checks(made) if str(one) == "a loss called linear is linear"]
    result = check.result()
    assert (result.passed, detail in result.detail) == (passed, True), result


def test_an_unknown_trait_is_refused() -> None:
    with pytest.raises(PluginError, match='no trait is called "ORDER_MATERS"; did you mean "ORDER_MATTERS"'):
        loss(extends="dpo", traits={"ORDER_MATERS": True})(left_out)


class Lax(mint_train_dpo.plugin.DPOOptions):
    model_config = ConfigDict(extra="ignore")
    beta: float = Field(default=1.0, description="A number.")


class Undocumented(mint_train_dpo.plugin.DPOOptions):
    beta: float = 1.0


@pytest.mark.parametrize(("model", "detail"), [(Lax, "accepts an unknown"), (Undocumented, "no description")])
def test_bad_options_are_found(model: type[BaseModel], detail: str) -> None:
    found = failures(extending(loss_options=lambda: model))
    assert detail in found["options are valid and documented"]


def test_options_without_defaults_are_an_option_error() -> None:
    class Needy(mint_train_dpo.plugin.DPOOptions):
        needed: float

    with pytest.raises(OptionError, match="needed"):
        check_loss(NamedPlugin("needy", extending(loss_options=lambda: Needy), "a test"))


def careless(row):
    return mint_train_dpo.plugin.PreferencePair(row["prompt"], row["chosen"], row["rejected"])


def lenient(row):
    if "prompt" not in row:
        raise RowError("prompt", "missing")
    return mint_train_dpo.plugin.PreferencePair(
        str(row["prompt"]), str(row.get("chosen")), str(row.get("rejected"))
    )


@pytest.mark.parametrize(
    ("parse", "detail"),
    [(careless, "parse_row at test_conformance_kit.py"), (lenient, '"prompt" set to null was accepted')],
)
def test_careless_parsing_is_found(parse: Callable[..., Any], detail: str) -> None:
    assert detail in failures(extending(parse_row=parse))["bad rows are refused with their field"]


def test_a_value_that_a_right_row_has_is_not_wrong() -> None:
    def read(row):
        sides = [text(row.get(side), side) for side in ("prompt", "chosen", "rejected")]
        if "tags" not in row or not isinstance(row["tags"], list):
            raise RowError("tags", "must be a list")
        return mint_train_dpo.plugin.PreferencePair(*sides)

    plugin = NamedPlugin("tagged", extending(parse_row=read), "a test")
    row = {"prompt": "Name a river.", "chosen": "The Danube.", "rejected": "Blue.", "tags": ["wet"]}

    def said(*rows):
        checks = {str(check): check for check in conformance_checks(plugin, rows=rows)}
        return checks["bad rows are refused with their field"].result().detail

    assert '"tags" set to an empty list was accepted; raise RowError, or give a row that has it' in said(row)
    assert "empty list" not in said(row, row | {"tags": []})


def test_a_module_is_checked_by_itself() -> None:
    check = conformance_checks(mint_train_dpo.plugin)[0]
    assert check() == "2 options"


def test_a_missing_contract_is_found() -> None:
    bare = {name: getattr(mint_train_dpo.plugin, name) for name in dir(mint_train_dpo.plugin)}
    del bare["check_batch"]
    found = failures(
        SimpleNamespace(**{name: hook for name, hook in bare.items() if not name.startswith("_")})
    )
    assert set(found) == {
        "a group of the wrong size is refused",
        "datums swapped between groups are refused",
        "a datum without trained tokens is refused",
        "equal datums in a group are refused",
    }


def test_max_length_is_tried() -> None:
    def deaf(example, renderer):
        return mint_train_dpo.plugin.flatten(example, Renderer(renderer.tokenizer))

    assert "tokens at" in failures(extending(flatten=deaf))["max-length is kept"]


def test_a_description_of_no_metric_is_found() -> None:
    plugin = extending(
        compute_loss=lambda batch, logprobs: torch.relu(1 - margins(batch, logprobs)).mean(),
        metrics=lambda: {"acuracy": Metric(".2f")},
    )
    assert '"acuracy" is described, but' in failures(plugin)["the described metrics are computed"]


def test_a_check_raises_under_pytest() -> None:
    checks = {check.name: check for check in conformance_checks(loss(extends="dpo")(by_position))}
    assert issubclass(ConformanceError, AssertionError)
    with pytest.raises(ConformanceError, match="another order"):
        checks["the order of groups does not matter"]()


def test_given_rows_are_used() -> None:
    rows = [{"prompt": prompt, "chosen": "yes indeed", "rejected": "no"} for prompt in ("a", "b")]
    results = {result.name: result for result in check_loss("dpo", rows=rows)}
    assert all(result.passed for result in results.values())
    assert results["rows become examples"].detail == "2 rows"


def keeps(name: str, made: Callable[[torch.Tensor], Any]) -> Callable[..., torch.Tensor]:
    """Make a loss on margins less a mean that it keeps."""

    def losing(batch, logprobs, state):
        scores = margins(batch, logprobs)
        state[name] = made(batch.mean(scores.detach()))
        return batch.mean(torch.nn.functional.softplus(float(state[name]) - scores))

    return losing


def test_a_tensor_that_is_kept_as_state_is_found() -> None:
    found = failures(loss(extends="dpo", traits={"STOPS_GRADIENT": True})(keeps("mean", torch.Tensor.clone)))
    assert found == {"metrics are plain finite floats": 'the state "mean" is a Tensor; make it a float'}


def test_state_that_moves_with_the_batch_is_named_where_differences_fail() -> None:
    found = failures(loss(extends="dpo")(keeps("mean", float)))
    assert list(found) == ["the gradient matches finite differences"]
    assert "it keeps mean as state" in found["the gradient matches finite differences"]
    assert failures(loss(extends="dpo", traits={"STOPS_GRADIENT": True})(keeps("mean", float))) == {}


def test_bundled_rows_that_lack_a_column_name_the_flag_for_others(run_cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "needy_rows.py"
    path.write_text(NEEDY, encoding="utf-8")
    ended = run_cli("check", path)
    assert ended.status == 1
    assert "these rows are bundled with dpo: give your own with --data" in ended.out
    assert ended.out.count("give your own with --data") == 1
    assert 'FAILED  examples become datums: as for "rows become examples"' in ended.out


NEEDY = """
import torch
from mint_train.plugin import RowError, hookimpl
from mint_train_dpo.rows import FORMS

EXTENDS = "dpo"

def read_score(row):
    if "score" not in row:
        raise RowError("score", "is missing")
    return row["score"], ["score"]

@hookimpl
def row_forms():
    return FORMS.extended(read_score, lambda pair, score: pair)
"""
