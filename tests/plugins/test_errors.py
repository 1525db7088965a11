"""What the author of a plugin meets when something is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mint_train import hookimpl, loss, sequence_logprobs
from mint_train.batches.logprobs import packed_logprobs
from mint_train.errors import LossError, PluginError
from mint_train.losses.custom_loss import CustomLoss
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.testing import make_batch, make_group, make_logprobs


def open_plugin(**attributes: Any) -> Loss:
    return Loss.of(NamedPlugin("mine", SimpleNamespace(**attributes), "mine 1.0"))


def write_distribution(folder: Path, name: str, loss_name: str, module: str, source: str) -> None:
    """Write what an installed distribution leaves on a path: its module and its dist-info."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[mint_train.losses]\n{loss_name} = {module}\n", encoding="utf-8")
    (folder / f"{module.partition(':')[0]}.py").write_text(source, encoding="utf-8")


def test_a_hook_of_a_wrong_name_is_refused_with_the_nearest() -> None:
    @hookimpl
    def compute_los(batch):
        return None

    with pytest.raises(PluginError, match=r'"mine" of mine 1\.0.*"compute_los".*did you mean "compute_loss"'):
        open_plugin(compute_los=compute_los)


def test_a_wrong_argument_is_refused_with_the_nearest() -> None:
    @hookimpl
    def compute_loss(batch, logprob):
        return None

    with pytest.raises(
        PluginError, match=r'no argument "logprob"; did you mean "logprobs"\?; its arguments: batch'
    ):
        open_plugin(compute_loss=compute_loss)


def default_in_flatten(example, renderer, options=None):
    return None


def keyword_in_flatten(example, *, renderer):
    return None


@pytest.mark.parametrize(
    ("flatten", "problem"),
    [
        (default_in_flatten, 'takes its argument "options" with a default; write a plain "options"'),
        (keyword_in_flatten, 'takes its argument "renderer" by keyword only; write a plain "renderer"'),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_argument_that_a_hook_is_not_always_given_is_refused(
    flatten: Callable[..., None], problem: str
) -> None:
    with pytest.raises(PluginError, match=f'^the loss "mine" of mine 1.0: hook "flatten" {problem}'):
        open_plugin(EXTENDS="dpo", flatten=hookimpl(flatten))


def test_a_hook_without_its_marker_is_refused() -> None:
    def flatten(example):
        return []

    with pytest.raises(PluginError, match='function "flatten" without @hookimpl'):
        open_plugin(flatten=flatten, loss_options=hookimpl(lambda: None))


@pytest.mark.parametrize("place", ["tryfirst", "trylast"])
def test_a_hook_that_asks_for_its_place_in_the_chain_is_refused(
    place: str, install_loss: Callable[[str, object], None]
) -> None:
    base = SimpleNamespace(EXTENDS="dpo", compute_loss=hookimpl(lambda: None, **{place: True}))
    install_loss("pushing", base)
    with pytest.raises(
        PluginError, match=rf'"pushing" of .*: hook "compute_loss" has @hookimpl\({place}=True\), but'
    ):
        open_plugin(EXTENDS="pushing", compute_loss=hookimpl(lambda: None))


def test_a_hook_that_wraps_its_bases_is_accepted() -> None:
    @hookimpl(wrapper=True)
    def compute_loss():
        value, metrics = yield
        return 2 * value, metrics

    batch, logprobs = make_batch(make_group([[3], [4]])), make_logprobs([[-1.0], [-2.0]])
    plain, _ = open_plugin(EXTENDS="dpo", data_note=hookimpl(lambda: None)).compute(batch, logprobs, {})
    doubled, _ = open_plugin(EXTENDS="dpo", compute_loss=compute_loss).compute(batch, logprobs, {})
    assert float(doubled.detach()) == pytest.approx(2 * float(plain.detach()))


def test_a_plugin_without_hooks_is_refused() -> None:
    with pytest.raises(PluginError, match="implements no hook"):
        open_plugin(something=1)


def test_another_contract_version_is_refused() -> None:
    with pytest.raises(PluginError, match="written for version 99 of the hook contract; this is version 2"):
        open_plugin(CONTRACT_VERSION=99, EXTENDS="dpo")


def test_an_argument_that_a_function_cannot_have_is_refused() -> None:
    with pytest.raises(PluginError, match=r'no argument "logprob".*did you mean "logprobs"'):

        @loss(extends="dpo")
        def mine(batch, logprob):
            return None


def test_a_loss_that_is_no_function_is_refused() -> None:
    for given in (partial(written_over, None), 7):
        kind = type(given).__name__
        with pytest.raises(PluginError, match=rf"^@mint_train.loss needs a function, not an? {kind}.*: put"):
            loss(extends="dpo")(given)  # type: ignore[arg-type]


def test_a_circle_is_refused(install_loss: Callable[[str, object], None]) -> None:
    install_loss("one", SimpleNamespace(EXTENDS="two", loss_options=hookimpl(lambda: None)))
    install_loss("two", SimpleNamespace(EXTENDS="one", loss_options=hookimpl(lambda: None)))
    with pytest.raises(PluginError, match="circle of losses: one extends two extends one"):
        Loss.of(NamedPlugin("one", SimpleNamespace(EXTENDS="two"), "a test"))


def test_a_base_that_is_not_installed_is_named() -> None:
    with pytest.raises(
        PluginError, match='"mine" extends "dop": no loss "dop" is installed; did you mean "dpo"'
    ):
        open_plugin(EXTENDS="dop")


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (lambda scores: float(scores.detach().sum()), "returned a float where a scalar tensor is needed"),
        (lambda scores: scores, r"returned a tensor of shape \[2\] where a scalar is needed"),
        (lambda scores: scores.detach().mean(), "is detached from the logprobs"),
        (lambda scores: (scores * float("nan")).mean(), "the loss is nan at rows:1"),
        (lambda scores: (scores.mean(), {"m": float("inf")}), 'metric "m" of the loss "mine" is inf'),
        (lambda scores: (scores.mean(), {"m": "text"}), 'metric "m" of the loss "mine" is not a number'),
        (lambda scores: (scores.mean(), {"m": scores}), 'metric "m" of the loss "mine" is not a number'),
        (lambda scores: scores[5].mean(), 'the loss "mine" failed|mine.*test_errors.py'),
    ],
)
def test_what_a_loss_must_not_return(returned: Callable[[torch.Tensor], Any], problem: str) -> None:
    @loss(extends="dpo")
    def mine(batch, logprobs):
        return returned(sequence_logprobs(logprobs, batch))

    opened = Loss.of(NamedPlugin("mine", mine, "a test"))
    with pytest.raises(LossError, match=problem):
        opened.compute(make_batch(make_group([[3], [4]])), make_logprobs([[-1.0], [-2.0]]), {})


def test_a_datum_that_gets_no_gradient_is_named() -> None:
    @loss(extends="dpo")
    def mine(batch, logprobs):
        return logprobs[0].sum()

    batch = make_batch(make_group([[3], [4]]))
    custom = CustomLoss(Loss.of(NamedPlugin("mine", mine, "a test")), [batch], {})
    with pytest.raises(LossError, match=r"does not depend on the logprobs of datum 1 \(rows:1\)"):
        custom(batch.data, make_logprobs([[-1.0], [-2.0]]))


def written_over(batch, logprobs):
    with torch.no_grad():
        logprobs[0].mul_(2)


def data_written_over(batch, logprobs):
    logprobs[1].data.add_(1)


def packed_written_over(batch, logprobs):
    packed_logprobs(logprobs).data.zero_()


def hooked(batch, logprobs):
    logprobs[0].register_hook(lambda gradient: -gradient)


def packed_hooked(batch, logprobs):
    packed_logprobs(logprobs).register_hook(lambda gradient: -gradient)


def entry_replaced(batch, logprobs):
    logprobs[0] = logprobs[0] * 0.5


def entry_removed(batch, logprobs):
    logprobs.pop()


def entries_swapped(batch, logprobs):
    logprobs.reverse()


@pytest.mark.parametrize(
    "change",
    [
        *(written_over, data_written_over, packed_written_over, hooked, packed_hooked),
        *(entry_replaced, entry_removed, entries_swapped),
    ],
    ids=lambda change: change.__name__,
)
def test_a_loss_that_changes_its_logprobs_is_refused(change: Callable[..., None]) -> None:
    @loss(extends="dpo")
    def mine(batch, logprobs):
        change(batch, logprobs)
        return (
            torch.stack([logprob.sum() for logprob in logprobs]).sum()
            + sequence_logprobs(logprobs, batch).sum()
        )

    batch = make_batch(make_group([[3], [4]]))
    custom = CustomLoss(Loss.of(NamedPlugin("mine", mine, "a test")), [batch], {})
    with pytest.raises(LossError, match='the loss "mine" changes the logprobs that it is given, so it would'):
        custom(batch.data, make_logprobs([[-1.0], [-1.0]]))


def test_a_loss_that_changes_what_it_asked_of_the_vocabulary_is_refused() -> None:
    @loss(extends="dpo", vocabulary=["entropy"])
    def mine(batch, logprobs, vocabulary):
        vocabulary["entropy"].data.neg_()
        return sequence_logprobs(logprobs, batch).sum() + vocabulary["entropy"].sum()

    batch = make_batch(make_group([[3], [4]]))
    custom = CustomLoss(Loss.of(NamedPlugin("mine", mine, "a test")), [batch], {})
    with pytest.raises(LossError, match='the loss "mine" changes the logprobs that it is given'):
        custom(batch.data, make_logprobs([[-1.0], [-1.0], [1.0], [2.0]]))


def weights_scaled(batch):
    batch.weights.mul_(0.01)


def weights_written_through_numpy(batch):
    batch.weights.numpy()[:] = 0


def lengths_raised(batch):
    batch.lengths.data.add_(1)


def array_of_a_group_cleared(batch):
    batch.groups[0].weights[0][:] = 0


def reference_shifted(batch):
    batch.reference_logprobs.sub_(1)


def reference_sums_doubled(batch):
    batch.groups[0].reference_sums.mul_(2)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (weights_scaled, "batch.weights"),
        (weights_written_through_numpy, "batch.weights"),
        (lengths_raised, "batch.lengths"),
        (array_of_a_group_cleared, "batch.weights"),
        (reference_shifted, "batch.reference_logprobs"),
        (reference_sums_doubled, "the reference_sums of its groups"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_loss_that_changes_its_batch_is_refused(change: Callable[..., None], what: str) -> None:
    @loss(extends="dpo")
    def mine(batch, logprobs):
        value = sequence_logprobs(logprobs, batch).sum()
        change(batch)
        return value

    batch = make_batch(make_group([[3], [4]], reference=[[-1.0], [-2.0]]))
    opened = Loss.of(NamedPlugin("mine", mine, "a test"))
    with pytest.raises(LossError, match=f'^the loss "mine" changes {re.escape(what)}, which others read too'):
        opened.compute(batch, make_logprobs([[-1.0], [-2.0]]), {})


def test_a_loss_may_keep_something_on_its_batch_and_read_it_without_gradients() -> None:
    @loss(extends="dpo")
    def mine(batch, logprobs):
        with torch.inference_mode():
            sums = [group.reference_sums for group in batch.groups]
        vars(batch)["of_my_own"] = torch.ones(len(sums))
        return sequence_logprobs(logprobs, batch).sum()

    batch = make_batch(make_group([[3], [4]], reference=[[-1.0], [-2.0]]))
    value, _ = Loss.of(NamedPlugin("mine", mine, "a test")).compute(
        batch, make_logprobs([[-1.0], [-2.0]]), {}
    )
    assert float(value.detach()) == -3.0


def test_a_loss_may_use_sums_and_single_tensors_together() -> None:
    @loss(extends="dpo")
    def mine(batch, logprobs):
        return (sequence_logprobs(logprobs, batch) ** 2).sum() + 3 * logprobs[0].sum()

    batch = make_batch(make_group([[3, 5], [4]]))
    custom = CustomLoss(Loss.of(NamedPlugin("mine", mine, "a test")), [batch], {})
    leaves = [x.requires_grad_() for x in make_logprobs([[-1.0, -2.0], [-2.0]])]
    value, _ = custom(batch.data, leaves)
    found = torch.autograd.grad(value, leaves)
    plain = (sequence_logprobs(leaves, batch) ** 2).sum() + 3 * leaves[0].sum()
    for gradient, expected in zip(found, torch.autograd.grad(plain, leaves), strict=True):
        assert torch.equal(gradient, expected)


def test_two_distributions_with_one_name_break_only_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Any
) -> None:
    source = '"""A clashing loss."""\n'
    write_distribution(tmp_path / "a", "first-losses", "clash", "clash_a", source)
    write_distribution(tmp_path / "b", "second-losses", "clash", "clash_b", source)
    for folder in ("a", "b"):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    chosen = run_cli("--loss", "clash")
    assert chosen.status == 2
    assert "first-losses 1.0" in chosen.err
    assert "second-losses 1.0" in chosen.err
    listed = run_cli("losses")
    assert listed.status == 0
    assert "BROKEN: 2 distributions bring it" in line_of(listed.out, "clash")
    assert "BROKEN" not in line_of(listed.out, "dpo")
    assert run_cli("check", "apo-zero-unpaired").status == 0


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import surely_not_installed\n", "No module named 'surely_not_installed'"),
        ("def broken(:\n", "SyntaxError"),
    ],
)
def test_a_broken_import_is_listed_and_breaks_nothing_else(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Any
) -> None:
    write_distribution(tmp_path / "a", "broken-losses", "broken", f"broken_loss_of_{len(source)}", source)
    monkeypatch.syspath_prepend(str(tmp_path / "a"))
    listed = run_cli("losses")
    assert listed.status == 0
    assert "BROKEN" in line_of(listed.out, "broken")
    assert reason in line_of(listed.out, "broken")
    assert "BROKEN" not in line_of(listed.out, "dpo")
    chosen = run_cli("--loss", "broken")
    assert chosen.status == 2
    assert 'the loss "broken" of broken-losses 1.0 cannot be imported' in chosen.err
    assert "Traceback" not in chosen.err


def line_of(listing: str, name: str) -> str:
    """Return the entry of a loss on one line; each begins with two spaces and goes on further in."""
    entries = (entry.split() for entry in re.split(r"\n(?=  \S|\n)", listing))
    return next(" ".join(words) for words in entries if words[:1] == [name])
