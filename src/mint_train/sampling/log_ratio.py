"""How much likelier a trained policy finds completions than the policy that its run began with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from weakref import finalize

from mint_train.backends.base import TrainingClient
from mint_train.backends.closing import closed_on_failure
from mint_train.backends.forward_logprobs import forward_logprobs
from mint_train.backends.start import adapter_sha256, load_start, run_and_step
from mint_train.observers.terminal import echo_problem
from mint_train.rendering.renderer import Renderer
from mint_train.rows.conversations import Prompt
from mint_train.run_folder.records import ON_THE_SERVICE
from mint_train.sampling.policy import NO_LOSS
from mint_train.sdk import Datum
from mint_train.trained.find import Trained, find_trained


class LogRatio:
    """Log-ratios of a run's policy to the one before its first step.

    Both policies are closed when nothing refers to it any more, or when the program ends.
    """

    def __init__(self, run: str) -> None:
        """Open both policies.

        Args:
            run: a run folder, `RUN@STEP`, or a checkpoint in one.

        Raises:
            UserError: the run or the checkpoint does not exist.
            BackendError: a policy cannot be loaded, or the service refuses.
        """
        found, step = run_and_step(run)
        self.trained: Trained = find_trained(
            run if found is None else str(found.path), step, {"loss": NO_LOSS}
        )
        self.before = self._open()
        if self.trained.start is not None:
            load_start(self.before, self.trained.start)
        with closed_on_failure(self.before):
            self.after = self._open()
            with closed_on_failure(self.after):
                self.after.load_state(self.trained.checkpoint.state).result()
        for policy in (self.before, self.after):
            finalize(self, policy.close)

    @cached_property
    def version(self) -> str:
        """The SHA-256 of the trained weights, hexadecimal, or where they are on a service.

        Raises:
            UserError: they are missing or unreadable.
        """
        state = self.trained.checkpoint.state
        return state if state.startswith(ON_THE_SERVICE) else adapter_sha256(state)

    def _open(self) -> TrainingClient:
        folder = self.trained.folder.path if self.trained.folder else Path()
        return self.trained.backend.open_client(folder, echo_problem, trains=False)

    @cached_property
    def renderer(self) -> Renderer:
        """The run's own rendering."""
        return Renderer.of(self.trained.settings, self.after.get_tokenizer())

    def of(self, asked: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Return the log-ratio of each completion given its prompt, summed over its tokens, nats.

        Raises:
            RowError: the run's rendering refuses a prompt or a completion.
            BackendError: a forward fails.
        """
        data = [self.renderer.datum(prompt, completion) for prompt, completion in asked]
        before, after = (sums(data, client) for client in (self.before, self.after))
        return [new - old for new, old in zip(after, before, strict=True)]


def sums(data: Sequence[Datum], client: TrainingClient) -> list[float]:
    """Return each datum's logprob, summed in float64 over its trained tokens."""
    weights = (datum.loss_fn_inputs["weights"].to_torch().double() for datum in data)
    return [
        float((logprobs.double() * own).sum())
        for logprobs, own in zip(forward_logprobs(data, client), weights, strict=True)
    ]
