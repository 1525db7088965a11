"""Set the losses' formulas as MathML when the site is built; losses.md has them as the docstrings do."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes

FORMULA = "Formula: "
GREEK = {
    name: chr(code)
    for name, code in zip(
        ("alpha", "beta", "gamma", "eta", "lambda", "nu", "sigma", "tau", "phi"),
        (0x3B1, 0x3B2, 0x3B3, 0x3B7, 0x3BB, 0x3BD, 0x3C3, 0x3C4, 0x3C6),
        strict=True,
    )
}
FUNCTIONS = set("log exp min max mean sum clip sort sg softmax product KL odds".split())  # noqa: SIM905
SIGNS = {"-": "\N{MINUS SIGN}", "<=": "\N{LESS-THAN OR EQUAL TO}", ">=": "\N{GREATER-THAN OR EQUAL TO}"}
TOKEN = re.compile(
    r"\d+(?:\.\d+)?(?:e-?\d+)?"  # a number
    r"|[A-Za-z]{2,}(?:-[A-Za-z]{2,})+|[A-Za-z]{2,}'s"  # a word of the text beside a formula
    r"|[A-Za-z]+'?(?:_[A-Za-z0-9]+)*"  # a name with its indices
    r"|<=|>=|\S"
)


def formula_html(text: str) -> str:
    """Return a formula with the words beside it as HTML: the mathematics in MathML, the words as they are."""
    tokens = TOKEN.findall(text)
    pieces: list[str] = []
    run: list[str] = []

    def close() -> None:
        if run:
            pieces.append(f"<math>{''.join(run)}</math>")
            run.clear()

    while tokens:
        if is_word(tokens):
            close()
            pieces.append(escape(tokens.pop(0)))
        elif tokens[0] in ",;:":
            close()
            pieces[-1:] = [f"{''.join(pieces[-1:])}{tokens.pop(0)}"]
        else:
            run.append(term(tokens))
    close()
    return " ".join(pieces)


def is_word(tokens: list[str]) -> bool:
    """Return whether the next token is a word: not a number, a sign, a letter, a function or an option."""
    token = tokens[0]
    if token == "a":  # noqa: S105 - the article, or a variable
        following = tokens[1:2]
        return bool(following) and len(following[0]) > 1 and following[0].isalpha() and is_word(following)
    bare = token.rstrip("'")
    return len(bare) > 1 and bare[0].isalpha() and "_" not in bare and bare not in {*GREEK, *FUNCTIONS}


def term(tokens: list[str]) -> str:
    """Take the next term with what raises it to a power, and return it in MathML."""
    base = factor(tokens)
    if tokens and tokens[0] == "^":
        tokens.pop(0)
        return f"<msup>{base}{factor(tokens)}</msup>"
    return base


def factor(tokens: list[str]) -> str:
    """Take a number, a name, a sign, or what stands in parentheses."""
    token = tokens.pop(0)
    if token == "(":  # noqa: S105 - a parenthesis
        inner: list[str] = []
        while tokens and tokens[0] != ")":
            word = is_word(tokens)
            inner.append(f"<mtext>&#160;{escape(tokens.pop(0))}&#160;</mtext>" if word else term(tokens))
        del tokens[:1]
        return f"<mrow>{sign('(')}<mrow>{''.join(inner)}</mrow>{sign(')')}</mrow>"
    if token[0].isdigit():
        return f"<mn>{token}</mn>"
    if token[0].isalpha():
        return name(token)
    return sign(token)


def sign(mark: str) -> str:
    """Return a sign in MathML; bars and parentheses stay as small as the letters between them."""
    small = ' stretchy="false"' if mark in "()|" else ""
    tight = ' lspace="0" rspace="0"' if mark in "|/" else ""
    return f"<mo{small}{tight}>{escape(SIGNS.get(mark, mark))}</mo>"


def name(token: str) -> str:
    """Return a variable with its indices, a function or an option in MathML."""
    base, *indices = token.split("_")
    letter = base.rstrip("'")
    if letter in FUNCTIONS or (len(letter) > 1 and letter not in GREEK):
        return f'<mi mathvariant="normal">{escape(token)}</mi><mspace width="0.17em"/>'
    variable = f"<mi>{GREEK.get(letter, letter)}</mi>"
    if base != letter:
        variable = f"<msup>{variable}<mo>&#8242;</mo></msup>"
    return f"<msub>{variable}<mi>{escape(','.join(indices))}</mi></msub>" if indices else variable


def set_formulas(app: Any, doctree: nodes.document, page: str) -> None:
    """Replace each formula of the page of losses, in HTML alone."""
    if page != "losses" or app.builder.format != "html":
        return
    for paragraph in doctree.findall(nodes.paragraph):
        text = paragraph.astext()
        if text.startswith(FORMULA):
            html = f"{FORMULA}{formula_html(text.removeprefix(FORMULA))}"
            paragraph.children = [nodes.raw("", html, format="html")]
