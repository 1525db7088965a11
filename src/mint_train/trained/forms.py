"""The forms that a run's weights are exported in, and the commands that serve each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mint_train.backends.hub_model import split_revision
from mint_train.backends.peft_folder import PeftConfig
from mint_train.errors import OptionError, nearest
from mint_train.observers.model_card import ADAPTER, GGUF, GGUF_FILE, MERGED, MODELFILE, Kind
from mint_train.run_folder.parts import BASE_MODEL

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks that `vllm serve --max-lora-rank` takes."""
OUTPUT_LAYER = "lm_head"
HUB = "hub:"


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a run's weights."""

    name: str
    """As `--to` takes it."""
    kind: Kind
    noun: str
    suffix: str
    """Behind the run's name, the folder that it is written to."""


PEFT = Form("peft", ADAPTER, "adapter", "adapter")
MERGED_MODEL = Form("merged", MERGED, "merged model", "merged")
GGUF_MODEL = Form("gguf", GGUF, "GGUF file", "gguf")
FORMS = {form.name: form for form in (PEFT, MERGED_MODEL, GGUF_MODEL)}


def find_target(to: str | Sequence[str]) -> tuple[Form, str | None]:
    """Return the form that `--to` names, and the repository on the hub that gets it, or None.

    Raises:
        OptionError: a form is unknown, two are named, or the repository is not a name of the hub's.
        UserError: nothing can be uploaded from here.
    """
    words = (to,) if isinstance(to, str) else tuple(to)
    repositories = [word.removeprefix(HUB) for word in words if word.startswith(HUB)]
    forms = [find_form(word) for word in words if not word.startswith(HUB)]
    if len(repositories) > 1 or len(forms) > 1:
        raise OptionError(f"--to {' --to '.join(words)}: give one form and one repository at most")
    for repository in repositories:
        from mint_train.trained.hub import check_repository

        check_repository(repository)
    return forms[0] if forms else PEFT, repositories[0] if repositories else None


def find_form(name: str) -> Form:
    """Return the form that `--to` names.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in FORMS:
        raise OptionError(
            f"--to {name}: it is none of {', '.join(FORMS)}, hub:ORG/NAME{nearest(name, FORMS)}"
        )
    return FORMS[name]


def serving_lines(form: Form, folder: Path, base: str) -> list[str]:
    """Return the commands that serve exported weights, each behind the name of its program.

    Args:
        form: the weights' form.
        folder: where they are.
        base: the base model, hub name or folder.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-._") or "mine"
    if form is GGUF_MODEL:
        return [
            line("llama.cpp", "llama-server", "--model", folder / GGUF_FILE),
            line("Ollama", "ollama", "create", name, "--file", folder / MODELFILE),
        ]
    if form is MERGED_MODEL:
        return [line("vLLM", "vllm", "serve", folder)]
    return adapter_lines(folder, base, name)


def adapter_lines(folder: Path, base: str, name: str) -> list[str]:
    """Return the command that serves an adapter, unless vLLM would refuse it."""
    config = PeftConfig.read(folder)
    rank = next((rank for rank in VLLM_RANKS if rank >= config.rank), None)
    if rank is None or OUTPUT_LAYER in config.targets:
        return []  # not every model of vLLM's takes an adapter of the output layer
    made = folder / BASE_MODEL
    model, revision = (made, None) if made.is_dir() else split_revision(base)
    adapter = ("--enable-lora", "--max-lora-rank", rank, "--lora-modules", f"{name}={folder}")
    pinned = () if revision is None else ("--revision", revision)
    return [line("vLLM", "vllm", "serve", model, *pinned, *adapter)]


def line(program: str, *words: object) -> str:
    """Return a command, quoted for a shell, behind the program's name."""
    return f"{program}: {shlex.join(map(str, words))}"
