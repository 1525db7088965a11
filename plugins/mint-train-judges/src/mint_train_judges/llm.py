"""A language model as the judge: behind an OpenAI-compatible endpoint, by pairs or by grades."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mint_train.plugin import Candidates, Options, cache_folder, hookimpl
from mint_train_judges.endpoint import Endpoint
from mint_train_judges.verdicts import fill, read_grade, read_outcome, read_template

Price = Annotated[float, Field(ge=0)]


class LanguageModel:
    """Asks a model which of two completions is better, in both orders, or how good each one is."""

    class Options(Options):
        """The endpoint, what it is asked, and what it costs."""

        model: str = Field(min_length=1, description="The judging model, as the endpoint calls it.")
        base_url: str | None = Field(
            default=None, description="Address of the endpoint, such as http://localhost:8000/v1."
        )
        key_variable: str = Field(
            default="OPENAI_API_KEY", min_length=1, description="Environment variable of the key."
        )
        ask: Literal["pairs", "grades"] = Field(
            default="pairs",
            description="pairs: compare every two completions, in both orders; grades: grade each alone.",
        )
        template: str | None = Field(
            default=None,
            description="File with the text to ask, with {prompt} and {first} and {second}, or {completion}.",
        )
        low: float = Field(default=1, description="The lowest grade.")
        high: float = Field(default=10, description="The highest grade.")
        temperature: float = Field(default=0.0, ge=0, description="The judging model's temperature.")
        max_tokens: int = Field(default=1024, ge=1, description="The most tokens of its answer.")
        concurrency: int = Field(default=8, ge=1, description="Requests in flight at once.")
        retries: int = Field(default=5, ge=0, description="Times that a failed request is repeated.")
        timeout: float = Field(default=120.0, gt=0, description="Seconds to wait for one answer.")
        cache: str | None = Field(
            default=None, description="Folder of answers that are not asked for again; by default the user's."
        )
        price_in: Price = Field(default=0.0, description="Price of a million tokens of a request.")
        price_out: Price = Field(default=0.0, description="Price of a million tokens of an answer.")

    def __init__(self, options: LanguageModel.Options) -> None:
        """Read the template and open the endpoint.

        Raises:
            PluginError: the template is wrong, or no key is set.
        """
        self.options = options
        self.unread = self.read = 0
        in_pairs = options.ask == "pairs"
        fields = {"prompt", "first", "second"} if in_pairs else {"prompt", "completion"}
        self.template = read_template(options.template, "pairwise.txt" if in_pairs else "score.txt", fields)
        self.endpoint = Endpoint(
            model=options.model,
            base_url=options.base_url,
            key_variable=options.key_variable,
            request={"temperature": options.temperature, "max_tokens": options.max_tokens},
            cache=Path(options.cache) if options.cache else cache_folder() / "judges",
            concurrency=options.concurrency,
            retries=options.retries,
            timeout=options.timeout,
        )

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[list[float | None]]:
        """Score by grades, or by the share of comparisons that a completion wins; a tie counts half."""
        if self.options.ask == "grades":
            return self._by_grades(batch)
        return self._by_pairs(batch)

    @hookimpl
    def judge_note(self) -> str:
        """Say what was asked, what could not be read, and what it cost."""
        endpoint, options = self.endpoint, self.options
        cost = (endpoint.tokens_in * options.price_in + endpoint.tokens_out * options.price_out) / 1e6
        priced = f", cost {cost:.4f}" if options.price_in or options.price_out else ""
        return (
            f"{options.model}: {endpoint.asked:,} requests, {endpoint.cached:,} answers from the cache, "
            f"{endpoint.tokens_in:,} tokens in, {endpoint.tokens_out:,} out{priced}; "
            f"{self.unread:,} of {self.read:,} answers without a verdict, left out"
        )

    def _by_grades(self, batch: Sequence[Candidates]) -> list[list[float | None]]:
        """Grade each completion alone."""
        bounds = {"low": f"{self.options.low:g}", "high": f"{self.options.high:g}"}
        answers = iter(
            self.endpoint.ask_all(
                [
                    fill(self.template, {"prompt": one.question, "completion": text, **bounds})
                    for one in batch
                    for text in one.completions
                ]
            )
        )
        grades = [
            [read_grade(next(answers), self.options.low, self.options.high) for _ in one.completions]
            for one in batch
        ]
        self._count([grade for each in grades for grade in each])
        return grades

    def _by_pairs(self, batch: Sequence[Candidates]) -> list[list[float | None]]:
        """Compare every two different completions of a prompt, in both orders."""
        questions: list[str] = []
        for one in batch:
            for first, second in combinations(sorted(set(one.completions)), 2):
                for pair in ((first, second), (second, first)):
                    sides = {"prompt": one.question, "first": pair[0], "second": pair[1]}
                    questions.append(fill(self.template, sides))
        outcomes = [read_outcome(answer) for answer in self.endpoint.ask_all(questions)]
        self._count(outcomes)
        found = iter(outcomes)
        scores: list[list[float | None]] = []
        for one in batch:
            won: dict[str, list[float]] = {text: [] for text in one.completions}
            for first, second in combinations(sorted(set(one.completions)), 2):
                forward, backward = next(found), next(found)
                if forward is None or backward is None:
                    continue  # one order alone would count the position of the answers
                result = (forward + 1 - backward) / 2
                won[first].append(result)
                won[second].append(1 - result)
            alone = len(won) == 1
            scores.append([mean(won[text], alone=alone) for text in one.completions])
        return scores

    def _count(self, read: Sequence[float | None]) -> None:
        """Count the answers, and those that held no verdict."""
        self.read += len(read)
        self.unread += sum(value is None for value in read)


def mean(outcomes: Sequence[float], *, alone: bool) -> float | None:
    """Return the share of comparisons won; a completion without another one is worth a tie."""
    if alone:
        return 0.5
    return sum(outcomes) / len(outcomes) if outcomes else None
