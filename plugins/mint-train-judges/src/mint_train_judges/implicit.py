"""The reward that a policy trained by DPO holds itself: its log-ratio to the policy that it began as."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from mint_train.plugin import Candidates, LogRatio, Options, hookimpl


class ImplicitOptions(Options):
    """The run and how its log-ratio is scaled."""

    run: str = Field(min_length=1, description="A run folder, RUN@STEP, or a checkpoint in one.")
    beta: float = Field(default=0.1, gt=0, description="What the log-ratio is multiplied by.")


class Implicit:
    """beta times the log-ratio of a trained run to the policy before its first step."""

    Options = ImplicitOptions

    def __init__(self, options: ImplicitOptions) -> None:
        self.options = options
        self.log_ratio = LogRatio(options.run)

    @hookimpl
    def judge_versions(self) -> dict[str, str]:
        """Name the checkpoint, which is a later one where the run goes on."""
        return {self.options.run: self.log_ratio.version}

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[list[float]]:
        """Score each completion by its log-ratio."""
        asked = [(one.prompt, text) for one in batch for text in one.completions]
        ratios = iter(self.log_ratio.of(asked))
        return [[self.options.beta * next(ratios) for _ in one.completions] for one in batch]
