"""What a plugin imports from mint-train, and what the contract does with what a plugin leaves out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import Field

import mint_train.plugin
from mint_train.errors import ContractError, OptionError, PluginError
from mint_train.losses.loss import Loss
from mint_train.losses.term import Term
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugin import (
    NO_REFERENCE,
    PROMPTS,
    Batch,
    Form,
    Forms,
    Metric,
    NeededReference,
    OptionalReference,
    Options,
    Survey,
    combine,
    hookimpl,
    loss,
    require_distinct,
    require_group_size,
    require_same_prompt,
    require_trained,
)
from mint_train.plugins.discovery import NamedPlugin
from mint_train.run_folder.metric import shown_formats
from mint_train.testing import make_batch, make_group, make_logprobs

NAMES = """
CONTRACT_VERSION NO_REFERENCE PROMPTS Answers AttachedDatum Batch Candidates ChatMessage Checkpoint
Completion ContractError Conversation DataError Datum DoesNotFit Evaluation Form Forms Group JudgeError
Judged LogRatio Metric ModelVersion NeededReference OptionalReference Options PluginError Prompt
Renderer RowError
RunRecord RunResult Samples StepRecord Survey Vocabulary are_messages as_conversation attach build_datum
cache_folder
chat_messages combine compared_answers from_json graded_lists hookimpl import_file is_good kind
log_ratios loss mean_logprobs number over_completion packed_logprobs packed_reference_logprobs
read_answer read_answers reference_sequence_logprobs require_distinct require_group_size
require_same_prompt require_trained segment_sums sequence_logprobs single_answers text text_column
""".split()  # noqa: SIM905


def opened(plugin: object, options: dict[str, Any] | None = None) -> Loss:
    return Loss.of(NamedPlugin("mine", plugin, "a test"), options)


def extending(base: str = "dpo", **hooks: Any) -> SimpleNamespace:
    marked = {name: hookimpl(value) if callable(value) else value for name, value in hooks.items()}
    return SimpleNamespace(EXTENDS=base, **marked)


def test_the_names_that_plugins_rely_on() -> None:
    assert sorted(mint_train.plugin.__all__) == sorted(NAMES)
    for name in NAMES:
        assert hasattr(mint_train.plugin, name)


def test_the_list_of_losses_needs_no_torch() -> None:
    code = (
        "import sys; from mint_train.cli.main import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    for arguments in (["losses"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_loss_that_is_not_installed_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from mint_train.cli.main import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    arguments = ["--loss", "dpo+2*nix", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        2,
        'mint-train: no loss "nix" is installed; `mint-train losses` lists those that are\n',
    )


def no_datums(example: str) -> None:
    return None


def no_example(row: Any) -> None:
    return None


def forms(field: str) -> Forms:
    """The forms of rows of a prompt and a field."""
    return combine(PROMPTS, [Form(field, (field,), lambda row: row[field])], lambda _, value: value)


def read(loss: Loss, row: dict[str, Any]) -> tuple[Any, str | None]:
    reading = loss.read_row({"prompt": "Say it.", **row}, Survey())
    return reading.example, reading.form


def test_the_more_derived_of_forms_and_parser_reads_the_rows(
    install_loss: Callable[[str, object], None],
) -> None:
    install_loss("words", extending(row_forms=lambda: forms("word"), flatten=no_datums))
    from_forms = ("yes", "text prompts with word")
    assert read(opened(extending("words", data_note=lambda: None)), {"word": "yes"}) == from_forms
    parser = extending("words", parse_row=lambda row: row["word"].upper())
    assert read(opened(parser), {"word": "yes"}) == ("YES", "text prompts with word")
    assert read(opened(extending("words", parse_row=no_example)), {"word": "yes"}) == from_forms
    install_loss("parsed", parser)
    other = opened(extending("parsed", row_forms=lambda: forms("number")))
    assert read(other, {"number": 1}) == (1, "text prompts with number")


def test_metrics_are_merged_and_the_derived_description_counts() -> None:
    shown = Metric(".1f", shown=True)
    own = opened(extending(metrics=lambda: {"mean_margin": Metric(".3f"), "mine": shown})).metrics
    assert own["mine"] == shown
    assert own["mean_margin"] == Metric(".3f")
    assert own["pair_accuracy"].kind == "share"
    described = opened(extending(metrics=lambda: {"mean_margin": Metric()})).metrics
    assert "mean_margin" not in shown_formats(described)


def no_loss(batch: Batch, logprobs: Any) -> None:
    return None


def first_sum(batch: Batch, logprobs: Any) -> Any:
    return logprobs[0].sum()


def all_sums(batch: Batch, logprobs: Any) -> Any:
    return sum(logprob.sum() for logprob in logprobs)


class NeedsOne(Options):
    reference: NeededReference = "initial"


class TakesBoth(Options):
    reference: OptionalReference = NO_REFERENCE


def test_the_option_says_the_reference_where_no_hook_does() -> None:
    compute = {"compute_loss": no_loss}
    needing = extending(loss_options=lambda: NeedsOne, **compute)
    assert opened(needing).reference == "initial"
    assert opened(needing, {"reference": "some/model"}).reference == "some/model"
    with pytest.raises(OptionError, match="is defined against a reference"):
        opened(needing, {"reference": "none"})
    assert opened(extending(loss_options=lambda: TakesBoth, **compute)).reference is None
    assert opened(extending(loss_options=lambda: Options, **compute)).reference is None


def test_a_hook_may_say_that_there_is_no_reference() -> None:
    assert opened(extending(reference=lambda: NO_REFERENCE), {"reference": "initial"}).reference is None
    assert opened(extending(reference=lambda: None), {"reference": "initial"}).reference == "initial"


def test_options_that_an_inherited_hook_cannot_read_are_refused() -> None:
    class Other(Options):
        gamma: float = Field(default=1.0, description="A number.")

    with pytest.raises(
        PluginError, match=r'"mine" replaces the options of "kto" by Other, .* hook "datum_names"'
    ):
        opened(extending("kto", loss_options=lambda: Other))
    with pytest.raises(PluginError, match='hook "compute_loss" cannot read: derive it from DPOOptions'):
        opened(extending(loss_options=lambda: Other))
    opened(extending(loss_options=lambda: Other, compute_loss=no_loss))


def test_a_subclass_of_the_options_is_accepted() -> None:
    base = opened(extending(data_note=lambda: None)).options_model

    class More(base):  # type: ignore[misc, valid-type]
        gamma: float = Field(default=1.0, description="A number.")

    assert opened(extending(loss_options=lambda: More), {"gamma": 2}).option_values["gamma"] == 2


def test_the_trace_names_who_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINT_TRAIN_TRACE", "1")
    traced = opened(extending(reference=lambda: None, datum_names=lambda: ("better", "worse")))
    capsys.readouterr()
    assert traced.datum_names == ("better", "worse")
    assert traced.reference is None
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'mint-train: hook datum_names: answered by "mine" (implemented by "mine", "dpo")'
    assert lines[1] == 'mint-train: hook reference: answered by nobody (implemented by "mine")'


def test_a_note_is_about_the_named_loss_and_not_about_one_that_extends_it() -> None:
    batch = make_batch(make_group([[3], [4]]))
    (line,) = open_loss("dpo", {}).options_notes()
    assert line == "MinT's form: no reference. The paper's: --set reference=initial --set beta=0.1"
    assert len(line) < 80
    assert open_loss("dpo", {"reference": "initial"}).options_notes() == []
    silent = opened(extending(compute_loss=no_loss))
    assert (silent.options_notes(), silent.data_notes(batch)) == ([], [])
    own = opened(extending(options_note=lambda: "of its own", data_note=lambda: "of its data"))
    assert (own.options_notes(), own.data_notes(batch)) == (["of its own"], ["of its data"])


def test_nothing_is_traced_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    _ = opened(extending(reference=lambda: None)).datum_names
    assert capsys.readouterr().err == ""


def test_every_term_of_a_sum_is_heard() -> None:
    first = loss(extends="dpo", metrics={"one": Metric(shown=True)})(first_sum)
    second = extending(
        metrics=lambda: {"two": Metric(shown=True)},
        data_note=lambda: "from the second",
        compute_loss=all_sums,
    )
    terms = [Term(NamedPlugin("a", first, "a test")), Term(NamedPlugin("b", second, "a test"), weight=0.5)]
    summed = Loss(terms, "a+0.5*b")
    batch = make_batch(make_group([[3], [4]]))
    logprobs = make_logprobs([[-1.0], [-2.0]])
    assert {"a/loss", "b/loss", "one", "two"} <= shown_formats(summed.metrics).keys()
    assert "from the second" in summed.data_notes(batch)
    assert [link.name for link in summed.plugins] == ["dpo", "a", "b"]
    value, metrics = summed.compute(batch, logprobs, {})
    assert float(value.detach()) == pytest.approx(metrics["a/loss"] + 0.5 * metrics["b/loss"])


def test_a_bare_reference_is_meant_for_every_term_that_has_one() -> None:
    assert open_loss("dpo+0.2*sft", {"reference": "initial"}).reference == "initial"


SIDES = ("better", "worse")


def two_datums(batch: Batch) -> None:
    require_group_size(batch, 2, "pair", SIDES)


def two_or_more(batch: Batch) -> None:
    require_group_size(batch, 2, or_more=True)


def trained(batch: Batch) -> None:
    require_trained(batch, "pair", SIDES)


def distinct(batch: Batch) -> None:
    require_distinct(batch, "pair", SIDES)


@pytest.mark.parametrize(
    ("require", "group", "problem"),
    [
        (two_datums, [[3]], r"pair 1 has 1 datum; a pair is \[better, worse\]"),
        (two_datums, [[3], [4], [5]], r"pair 1 has 3 datums; a pair is \[better, worse\]"),
        (two_or_more, [[3]], "group 1 has 1 datum; a group is 2 or more"),
        (trained, [[3], []], "pair 1: its worse has no trained token"),
        (distinct, [[3], [3]], "pair 1: worse is equal to better"),
        (require_distinct, [[3], [4], [4]], "group 1: completion 2 is equal to completion 1"),
    ],
)
def test_a_contract_names_the_group(require: Callable[..., None], group: Any, problem: str) -> None:
    good = make_group([[3], [4]])
    require(make_batch(good))
    with pytest.raises(ContractError, match=problem) as refused:
        require(make_batch(good, make_group(group)))
    assert refused.value.group == 1


def test_two_prompts_in_a_group_are_refused() -> None:
    good, other = make_group([[3], [4]]), make_group([[3], [4]], prompt=[1, 9])
    mixed = mint_train.plugin.Group((good.datums[0], other.datums[1]), good.source)
    require_same_prompt(make_batch(good, other), "pair", SIDES)
    with pytest.raises(ContractError, match="pair 1: better and worse do not share their prompt"):
        require_same_prompt(make_batch(good, mixed), "pair", SIDES)
