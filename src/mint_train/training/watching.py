"""`--sample-prompts`: what the policy writes as it is trained, and a judge's scores of that."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mint_train.backends.base import Sample, TrainingClient
from mint_train.errors import MintTrainError, OptionError, ServiceError
from mint_train.groups.completions import JUDGED_AT_ONCE, PromptRenderer, RenderedPrompts, Written, score
from mint_train.groups.prompts import Prompts, read_prompts
from mint_train.groups.step_count import is_due
from mint_train.judging.judge import Judge, JudgeFunction, open_judge
from mint_train.observers.registry import Observers
from mint_train.rows.candidates import prompt_columns
from mint_train.run_folder.parts import SAMPLES
from mint_train.run_folder.records import Sampled, Samples
from mint_train.run_folder.samples import SAMPLE_SCORE, samples_file, write_samples
from mint_train.run_folder.token_counts import TokenCounts
from mint_train.settings.model import Settings, option_name
from mint_train.settings.sampling import Sampling

GREEDY = 0.0
"""The temperature: only what was learned changes a completion."""


@dataclass(frozen=True)
class Watching:
    """The prompts that a run completes as it trains, and the judge of its completions."""

    prompts: Prompts
    judge: Judge | None
    every: int
    """Steps from one time to the next."""
    sampling: Sampling

    @classmethod
    def of(cls, settings: Settings, judge: JudgeFunction | None = None) -> Watching | None:
        """Read the prompts and open the judge that some settings name; None without `--sample-prompts`.

        Args:
            settings: those of the run.
            judge: the judge, if it is a function of the calling program.

        Raises:
            OptionError: an option stands without the one that it is for.
            DataError: the prompts cannot be read.
            PluginError: no judge has this name, or it is broken.
        """
        refuse_lone_options(settings)
        if settings.sample_prompts is None:
            return None
        try:
            prompts = read_prompts(settings.sample_prompts, settings)
        except MintTrainError as error:
            error.locate("--sample-prompts")
            raise
        named = judge or settings.judge
        opened = named and open_judge(named, settings.judge_options, settings.judge_timeout)
        sampling = Sampling(1, settings.sample_tokens, GREEDY)
        return cls(prompts, opened or None, settings.sample_every or settings.save_every, sampling)

    def is_due(self, step: int, last: int) -> bool:
        """Return whether the prompts are completed after a step, of a run with a last one."""
        return is_due(step, last, self.every)


def refuse_lone_options(settings: Settings) -> None:
    """Refuse an option whose meaning another one would give.

    Raises:
        OptionError: naming both.
    """
    if settings.sample_prompts is None:
        for name in ("sample_every", "judge"):
            if getattr(settings, name) is not None:
                also = " or --rounds N" if name == "judge" else ""
                raise OptionError(f"{option_name(name)} needs --sample-prompts FILE{also}")
    if settings.judge_options and settings.judge is None:
        raise OptionError("--judge-set needs --judge NAME, whose option it is")


@dataclass(frozen=True)
class Watcher:
    """Completes the prompts of one run."""

    watching: Watching
    renderer: PromptRenderer
    readable: RenderedPrompts
    """The prompts as tokens."""
    folder: Path
    """The run's."""
    observers: Observers
    counts: TokenCounts

    def watch(self, client: TrainingClient, step: int) -> dict[str, float]:
        """Complete the prompts after a step, unless that is done; return the mean score, if there is one.

        What fails before the first step ends the run, as nothing is trained yet; later it costs a warning.

        Args:
            client: the policy, which does not change.
            step: the optimiser steps that it has taken.

        Raises:
            ServiceError: the service failed.
            MintTrainError: sampling or the judge failed before the first step, or the disk refuses.
        """
        if samples_file(self.folder, step).exists():
            return {}
        with kept_randomness():
            try:
                written = self.complete(client, step)
            except ServiceError:
                raise
            except MintTrainError as error:
                self.survive(error, step, "they are left out")
                return {}
            scores: list[float | None] = [None] * len(written)
            try:
                scores = self.scores_of(written)
            except MintTrainError as error:
                self.survive(error, step, "they have no score")
        samples = self.keep(step, written, scores)
        mean = samples.mean_score
        return {} if mean is None else {SAMPLE_SCORE: mean}

    def survive(self, error: MintTrainError, step: int, effect: str) -> None:
        """Warn of what failed, or raise it where no step has been taken."""
        error.locate(f"samples after step {step}")
        if step == 0:
            raise error
        self.observers.warn(f"{error}; {effect}")

    def complete(self, client: TrainingClient, step: int) -> list[Written]:
        """Complete the prompts, each once."""
        sampling = replace(self.watching.sampling, stop=self.readable.stop)
        drawn: dict[int, list[Sample]] = {}
        with client.open_sampler(f"{SAMPLES}-{step:06d}") as sampler:
            self.counts.add("prompts", sum(map(len, self.readable.tokens)), step)
            for index, samples in sampler.draw(self.readable.tokens, sampling):
                self.counts.add("sampled", sum(len(one.tokens) for one in samples), step)
                drawn[index] = samples
        return [
            Written(prompt, [self.renderer.text_of(one) for one in drawn[index]], drawn[index])
            for index, prompt in enumerate(self.readable.prompts)
        ]

    def scores_of(self, written: Sequence[Written]) -> list[float | None]:
        """Return the judge's score of each completion: None for an empty one, and without a judge."""
        judge = self.watching.judge
        if judge is None:
            return [None] * len(written)
        parts = [written[start : start + JUDGED_AT_ONCE] for start in range(0, len(written), JUDGED_AT_ONCE)]
        return [scores[0] for part in parts for scores in score(judge, part)]

    def keep(self, step: int, written: Sequence[Written], scores: Sequence[float | None]) -> Samples:
        """Write the samples into the run folder, and tell the observers."""
        lines, rows = [], []
        for one, scored in zip(written, scores, strict=True):
            lines.append(
                {
                    "step": step,
                    **prompt_columns(one.prompt.prompt),
                    "completion": one.texts[0],
                    "ended": one.samples[0].ended,
                    "source": str(one.prompt.source),
                    **({"score": scored} if self.watching.judge else {}),
                }
            )
            rows.append(Sampled(one.candidates().question, one.texts[0], scored))
        write_samples(self.folder, step, lines)
        samples = Samples(step, rows)
        self.observers.hook.sampled(samples=samples)
        return samples


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Restore the random numbers of all libraries: a judge may draw some, and training must not notice."""
    plain, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(of_numpy)
