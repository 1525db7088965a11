"""What a user should know of how a model's rows are rendered, in a line."""

from __future__ import annotations

from typing import Any

from mint_train.rendering.options import Rendering
from mint_train.rendering.special_tokens import GuardedTokenizer
from mint_train.rendering.template_probe import TemplateProbe


def rendering_notes(tokenizer: Any, rendering: Rendering) -> list[str]:
    """Return a line where the recipe ends a turn as no server would, or where a template prints the date."""
    notes = []
    template = rendering.template or tokenizer.chat_template
    if rendering.form == "recipe" and template:
        end = TemplateProbe(GuardedTokenizer(tokenizer, "allow"), rendering).end_token
        if end is not None and end != tokenizer.eos_token_id:
            notes.append(
                f"Completions end with {tokenizer.eos_token}, where this model's chat template ends a turn "
                f"with {tokenizer.convert_ids_to_tokens(end)}: --render template trains what a server writes."
            )
    if rendering.form != "raw" and template and rendering.prints_time(tokenizer):
        notes.append("The chat template prints the date; all rows are rendered with today's.")
    return notes
