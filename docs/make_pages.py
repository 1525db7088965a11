"""Write the pages that come from the code: hooks.md from the hooks' docstrings, command-line.md from --help.

Run it after a change: `python docs/make_pages.py`. A test fails while a page is stale.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from click.testing import CliRunner

from mint_train.cli.main import cli
from mint_train.plugins.hookspecs import CONTRACT_VERSION, LossSpec, ObserverSpec
from mint_train.plugins.judge_hookspecs import JudgeSpec, RowWriterSpec
from mint_train.settings.model import Settings
from mint_train.settings.rounds import RoundsSettings

HERE = Path(__file__).parent
GENERATED = "<!-- Written by docs/make_pages.py from the code; do not edit. -->"


def hooks_page() -> str:
    """Lay out every hook with its signature and docstring."""
    parts = [
        GENERATED,
        "# The hooks",
        f"This is version {CONTRACT_VERSION} of the contract, as `plugins/hookspecs.py` and "
        "`judge_hookspecs.py` state it. "
        "[Write a loss in ten minutes](write-a-loss.md) shows it at work.",
        inspect.cleandoc(inspect.getmodule(LossSpec).__doc__ or ""),
    ]
    specs = {
        "Hooks of a loss": LossSpec,
        "Hooks of an observer": ObserverSpec,
        "Hooks of a judge": JudgeSpec,
        "Hooks of a row writer": RowWriterSpec,
    }
    for title, spec in specs.items():
        parts += [f"## {title}", inspect.cleandoc(spec.__doc__ or "")]
        parts += [hook_section(name, hook) for name, hook in vars(spec).items() if not name.startswith("_")]
    return "\n\n".join(parts) + "\n"


def hook_section(name: str, hook: object) -> str:
    """Lay out one hook."""
    signature = inspect.signature(hook)  # type: ignore[arg-type]
    own = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "self"])
    shown = str(own).replace("'", "")
    return f"### `{name}`\n\n```text\n{name}{shown}\n```\n\n{docstring_to_markdown(hook.__doc__ or '')}"


def docstring_to_markdown(docstring: str) -> str:
    """Turn a Google-style docstring into Markdown: sections become headings, their items a list."""
    lines: list[str] = []
    section = ""
    for line in inspect.cleandoc(docstring).splitlines():
        if line in ("Args:", "Returns:", "Raises:", "Example:"):
            section = line
            lines += [f"**{line[:-1]}**", "", *(["```pycon"] if line == "Example:" else [])]
        elif section == "Example:":
            lines.append(line[4:])
        elif section in ("Args:", "Raises:") and line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(":")
            lines.append(f"- `{name}`:{text}")
        elif section and line.startswith("    "):
            lines.append("  " + line.strip() if line.startswith("     ") else line.strip())
        else:
            lines.append(line)
    if section == "Example:":
        lines.append("```")
    return "\n".join(lines)


def command_line_page() -> str:
    """Lay out the help of the program and of each of its commands."""
    parts = [
        GENERATED,
        "# The command line",
        "Values come from the command line, then the environment, then `--config`, then the defaults. "
        "Exit status: 0 done; 1 the run failed; 2 what was given is wrong; 130 interrupted, state saved.",
    ]
    for arguments in ([], *([name] for name in sorted(cli.commands))):
        title = " ".join(["mint-train", *arguments])
        shown = CliRunner().invoke(cli, [*arguments, "--help"], prog_name="mint-train", terminal_width=100)
        parts.append(f"## `{title}`\n\n```text\n{shown.output.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """Lay out the fields of the settings."""
    lines = [GENERATED, "", "| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in (Settings.model_fields | RoundsSettings.model_fields).items():
        plain = field.is_required() or field.default_factory is not None or field.default is None
        default = "" if plain else f"`{field.default}`"
        text = (field.description or "").replace("|", "\\|").replace("<", "\\<")
        lines.append(f"| `{name}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


PAGES = {"settings.md": settings_page, "hooks.md": hooks_page, "command-line.md": command_line_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        HERE.joinpath(name).write_text(page(), encoding="utf-8")
