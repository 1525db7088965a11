"""Write the sections of losses.md from the losses' own docstrings and options, between the page's marks.

Run it after a change: `python docs/make_losses_page.py`. A test fails while the sections are stale. The
results further down the page come from `python benchmarks/bundled_pairs.py --write docs/losses.md`.
"""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

from pydantic.fields import FieldInfo

from mint_train.batches.vocabulary import QUANTITIES
from mint_train.errors import OptionError
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.plugins.docstrings import describe_loss

PAGE = Path(__file__).with_name("losses.md")
BEGIN, END = "<!-- sections: docs/make_losses_page.py -->", "<!-- /sections -->"
KINDS = {
    "Losses on pairs": ("mint-train-dpo", "mint-train-preferences"),
    "Losses on rated completions": ("mint-train-kto",),
    "Losses on rankings": ("mint-train-ranking",),
    "Losses on sampled completions": ("mint-train-policy-gradient",),
    "Losses on demonstrations": ("mint-train-sft",),
}
"""By heading, the distributions whose losses stand under it."""


def losses_page() -> str:
    """Return the page with its sections made anew."""
    page = PAGE.read_text(encoding="utf-8")
    made = "\n\n".join([BEGIN, *(kind(title, names) for title, names in KINDS.items()), END])
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: made, page, flags=re.DOTALL)


def kind(title: str, distributions: tuple[str, ...]) -> str:
    """Lay out the losses of some distributions, with links to each at the top."""
    entries = entry_points(group="mint_train.losses")
    names = sorted(one.name for one in entries if one.dist is not None and one.dist.name in distributions)
    links = ", ".join(f"[{name}](#{name})" for name in names)
    return "\n\n".join([f"## {title}", f"{links}.", *map(section, names)])


def section(name: str) -> str:
    """Lay out one loss: what it is, its formula, its paper, when to use it, its options and their source."""
    plugin = load_plugin(name)
    text, parts = describe_loss(plugin.plugin)
    formula = re.sub(r"`(\w+=\w+)`", r"\1", parts["Formula"])
    loss = Loss.of(plugin)
    lines = [
        f"- Formula: `{formula}`",
        f"- Paper: {parts['Paper']}",
        f"- Use: {parts['Use']}",
        f"- Reference: {reference(loss, name)}",
        *vocabulary(loss),
        *options(loss.options_model.model_fields),
        *([f"- Defaults: {parts['Defaults']}"] if "Defaults" in parts else []),
    ]
    return "\n\n".join([f"### {name}", text, "\n".join(lines)])


def reference(loss: Loss, name: str) -> str:
    """Say whether a loss compares the policy with a reference."""
    if "reference" not in loss.options_model.model_fields:
        return "none"
    try:
        Loss.of(load_plugin(name), {"reference": "none"})
    except OptionError:
        return f"needed; `{loss.reference}` by default"
    return f"optional; `{loss.reference or 'none'}` by default"


def vocabulary(loss: Loss) -> list[str]:
    """Say what a loss needs of the whole vocabulary, where it needs anything."""
    needs = "; ".join(f"`{name}`, {QUANTITIES[name].text}" for name in loss.vocabulary)
    return [f"- Vocabulary: {needs} (on the embedded backend only)"] if needs else []


def options(fields: dict[str, FieldInfo]) -> list[str]:
    """List a loss's options with their defaults and their text; the reference has a line of its own."""
    own = {name: field for name, field in fields.items() if name != "reference"}
    return [
        "- Options:" if own else "- Options: none",
        *(f"  - `{name}={shown(field.default)}`: {field.description}" for name, field in own.items()),
    ]


def shown(value: object) -> str:
    """Write a default as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


if __name__ == "__main__":
    PAGE.write_text(losses_page(), encoding="utf-8")
