"""How a run renders its rows: the form, the chat template, and which turns are trained."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mint_train.errors import OptionError
from mint_train.run_folder.base_model import refuse_changed
from mint_train.run_folder.description import RunDescription
from mint_train.settings.model import Settings

Form = Literal["recipe", "template", "raw"]
Turns = Literal["all", "last"]
GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")
"""A tag that transformers adds to the language of templates."""
CLOCK = "strftime_now"
"""The function of chat templates that prints the time."""
PRINTED = re.compile(CLOCK + r"""\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")
"""A call of it."""


@dataclass(frozen=True)
class Rendering:
    """How prompts and completions become tokens."""

    form: Form = "recipe"
    template: str | None = None
    """A chat template instead of the model's own."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template gets in every row, such as `enable_thinking`."""
    turns: Turns = "all"
    """Which of the assistant's turns in a completion are trained."""

    @classmethod
    def of(cls, settings: Settings) -> Rendering:
        """Return what the settings ask for.

        Raises:
            OptionError: the chat template's file cannot be read, or has a syntax error.
        """
        path = settings.chat_template
        template = None if path is None else read_template(path)
        return cls(settings.render, template, dict(settings.chat_template_kwargs), settings.train_turns)

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """Return what decides the tokens, as JSON has it; the date counts where the template prints it."""
        return {
            "form": self.form,
            "template": self.template,
            "arguments": json.loads(json.dumps(dict(self.arguments), default=str)),
            "turns": self.turns,
            "date": str(today()) if self.prints_time(tokenizer) else None,
        }

    def prints_time(self, tokenizer: Any) -> bool:
        """Return whether the chat template asks for the time."""
        return asks_for_time(self.template or str(tokenizer.chat_template or ""))

    def call(self, more: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
        """Return the arguments of `apply_chat_template` for a row that gives some of its own."""
        arguments = {**self.arguments, **more}
        if self.prints_time(tokenizer):
            return arguments | {"chat_template": with_date(self.template or str(tokenizer.chat_template))}
        return arguments if self.template is None else arguments | {"chat_template": self.template}


@cache
def asks_for_time(template: str) -> bool:
    """Return whether a chat template calls the clock; kept, since it is asked for in every row."""
    return CLOCK in template


@cache
def today() -> datetime:
    """Return the midnight before this process began to render: one date in all rows of a run."""
    return datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)


@cache
def with_date(template: str) -> str:
    """Return a chat template that prints today's midnight wherever it would print the time."""
    return PRINTED.sub(lambda call: json.dumps(today().strftime(call["format"])), template)


def read_template(path: str | Path) -> str:
    """Read a chat template's file.

    Raises:
        OptionError: it cannot be read, or has a syntax error, with its line.
    """
    try:
        template = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(f"--chat-template {path}: {getattr(error, 'strerror', None) or error}") from error
    check_syntax(template, f"--chat-template {path}")
    return template


def template_digest(settings: Settings) -> str | None:
    """Return the SHA-256 of the chat template's file, hexadecimal; None where the model's own is used.

    Raises:
        OptionError: the file cannot be read, or has a syntax error.
    """
    if settings.chat_template is None:
        return None
    return hashlib.sha256(read_template(settings.chat_template).encode()).hexdigest()


def refuse_changed_template(recorded: RunDescription, settings: Settings) -> None:
    """Refuse a file of `--chat-template` that has changed since a run began.

    Raises:
        OptionError: the file cannot be read, or has a syntax error.
        UserError: the rows would become other tokens.
    """
    refuse_changed(settings.chat_template, recorded.chat_template, template_digest(settings))


def check_syntax(template: str, name: str) -> None:
    """Refuse a chat template that cannot be compiled.

    Raises:
        OptionError: with the line.
    """
    from jinja2 import Environment, TemplateSyntaxError

    try:
        # the extensions and tags that transformers gives a chat template
        Environment(autoescape=False, extensions=["jinja2.ext.loopcontrols"]).parse(  # noqa: S701
            GENERATION.sub("", template)
        )
    except TemplateSyntaxError as error:
        raise OptionError(f"{name}:{error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise OptionError(f"{name}: it is nested too deeply") from error
