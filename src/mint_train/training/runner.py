"""The training loop: read it in one sitting."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mint_train.backends.base import Future, TrainingClient
from mint_train.batches.batch import Batch
from mint_train.batches.groups import Groups
from mint_train.errors import MintTrainError, ServiceError
from mint_train.groups.order import Order
from mint_train.losses.custom_loss import CustomLoss
from mint_train.losses.loss import Loss
from mint_train.observers.registry import Observers
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import Checkpoint, RunResult, RunStatus, StepRecord
from mint_train.sdk import types
from mint_train.training.evaluation import Evaluator
from mint_train.training.interrupts import Interrupts
from mint_train.training.pipelining import Pipelining

OBJECTS_PER_COLLECTION = 100_000
"""Objects made between two searches for garbage, while a run lasts."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries to reach a service; the first pause is two, and each next one twice as long."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A step whose requests are on their way."""

    step: int
    custom_loss: CustomLoss
    adam_params: types.AdamParams
    requests: tuple[Future[Any], ...]


@dataclass
class Runner:
    """Trains one adapter: groups in, steps, checkpoints out."""

    loss: Loss
    observers: Observers
    client: TrainingClient
    groups: Groups
    folder: RunFolder
    steps: int
    batch_size: int
    order: Order
    """Which groups make up a step."""
    adam_params: Callable[[int], types.AdamParams]
    """The optimiser's parameters of a step."""
    sampler_name: str
    reopen: Callable[[], TrainingClient]
    """Opens another client with the fresh adapter that the run began with."""
    accumulate: int = 1
    """Batches per step."""
    evaluator: Evaluator | None = None
    """Evaluates on held-out groups before the first step and after the last."""
    eval_every: int | None = None
    """Steps between further evaluations."""
    save_every: int = 100
    keep: int | None = None
    """Newest checkpoints to keep; None for all."""
    max_retries: int = 0
    """Times in a row that a failure of the service takes the run back to its last checkpoint."""
    pipelining: Pipelining | None = None
    """Whether a step may be submitted before the one before it is known to be done; None awaits each."""
    finished: int = 0
    retries: int = 0
    loss_state: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    in_flight: deque[Submitted] = field(default_factory=deque)
    step_ended: float = field(default_factory=time.perf_counter)

    def run(self) -> RunResult:
        """Train until the last step, an interrupt or an error; whatever happens, the state is saved.

        Raises:
            MintTrainError: a step failed, or the service again and again. The run folder is whole and holds
                the last good state.
        """
        try:
            with Interrupts(self.observers.warn) as interrupts, rare_collections():
                while True:
                    try:
                        self.train(interrupts)
                        break
                    except ServiceError as error:
                        self.go_back(error, interrupts)
        except MintTrainError as error:
            self.finish("failed", str(error))
            raise
        return self.finish("done" if self.finished == self.steps else "interrupted")

    def train(self, interrupts: Interrupts) -> None:
        """Take the steps that are left, and save the state after the last."""
        self.evaluate()
        self.step_ended = time.perf_counter()
        for step in range(self.finished + 1, self.steps + 1):
            self.submit(step)
            self.collect(self.pipelining.most_in_flight if self.pipelining else 0)
            if interrupts.asked:
                break
            if step % self.save_every == 0 and step < self.steps:
                self.save()
            self.evaluate(step)
        self.save(sampler=True)

    def evaluate(self, step: int | None = None) -> None:
        """Evaluate after a step (without it, the last one) where that is due and not done yet."""
        step = self.finished if step is None else step
        due = step in (0, self.steps) or (self.eval_every is not None and step % self.eval_every == 0)
        if self.evaluator is None or not due:
            return
        self.collect()
        if any(line["step"] == step for line in self.folder.evaluations()):
            return  # before the run was resumed
        try:
            evaluation = self.evaluator.evaluate(self.client, step, self.loss_state)
        except ServiceError:
            raise
        except MintTrainError as error:
            self.keep_last_good_state()
            error.locate(f"evaluation after step {step}")
            raise
        self.folder.append_evaluation(evaluation)
        self.observers.hook.evaluated(evaluation=evaluation)
        self.step_ended = time.perf_counter()  # the next step does not pay for it

    def submit(self, step: int) -> None:
        """Send one optimiser step: loss, gradients, update. It blocks once, on the policy's logprobs."""
        batches = self.batches(step)
        adam_params = self.adam_params(step)
        state = dict(self.in_flight[-1].custom_loss.state if self.in_flight else self.loss_state)
        custom_loss = CustomLoss(self.loss, batches, state)
        try:
            for batch in batches:
                self.loss.check_batch(batch)
            backward = self.client.forward_backward_custom(custom_loss.step.data, custom_loss)
            if self.pipelining is None:
                backward.result()  # to wait for it always would cost a cycle of the service
            update = self.client.optim_step(adam_params)
        except ServiceError as error:
            error.locate(f"step {step}")
            raise
        except MintTrainError as error:
            self.collect()
            self.keep_last_good_state()
            error.locate(f"step {step}")
            raise
        self.in_flight.append(Submitted(step, custom_loss, adam_params, (backward, update)))

    def collect(self, remaining: int = 0) -> None:
        """Await the oldest steps until no more than `remaining` are in flight, and record each."""
        while len(self.in_flight) > remaining:
            submitted = self.in_flight.popleft()
            try:
                for request in submitted.requests:
                    request.result()
            except MintTrainError as error:
                # what followed it on the service is not the run any more; its checkpoint is
                self.in_flight.clear()
                error.locate(f"step {submitted.step}")
                raise
            self.record(submitted)

    def record(self, submitted: Submitted) -> None:
        """Note a finished step in the run folder and tell the observers."""
        custom_loss = submitted.custom_loss
        self.finished, self.loss_state, self.metrics = submitted.step, custom_loss.state, custom_loss.metrics
        began, self.step_ended = self.step_ended, time.perf_counter()
        record = StepRecord(
            step=submitted.step,
            metrics=self.metrics,
            learning_rate=submitted.adam_params.learning_rate,
            tokens=int(custom_loss.step.lengths.sum()),
            seconds=self.step_ended - began,
        )
        if self.pipelining:
            self.pipelining.note(record.seconds)
        self.folder.append_step(record)
        self.observers.hook.step_finished(step=record)

    def batches(self, step: int) -> list[Batch]:
        """Return the batches of a step."""
        indices = self.order.step(step)
        starts = range(0, len(indices), self.batch_size)
        return [Batch(self.groups.take(indices[start : start + self.batch_size])) for start in starts]

    def save(self, *, sampler: bool = False) -> None:
        """Save weights and optimiser, and the weights for a sampler too where asked."""
        self.collect()
        saved = self.checkpoint
        if saved is not None and saved.step == self.finished:
            state = saved.state  # a service keeps a name once
        else:
            state = self.client.save_state(f"step-{self.finished:06d}").result().path
        weights = self.client.save_weights_for_sampler(self.sampler_name).result().path if sampler else None
        self.checkpoint = Checkpoint(self.finished, state, weights, self.loss_state)
        self.folder.append_checkpoint(self.checkpoint)
        self.retries = 0
        if self.keep is not None:
            for old in self.folder.forget_checkpoints(self.keep):
                self.client.delete_state(old)
        self.observers.hook.checkpoint_saved(checkpoint=self.checkpoint)

    def keep_last_good_state(self) -> None:
        """After a step that failed before it was sent, save the one before it, if the backend still can."""
        if self.finished and (self.checkpoint is None or self.checkpoint.step < self.finished):
            try:
                self.save()
            except MintTrainError:
                return

    def go_back(self, error: ServiceError, interrupts: Interrupts) -> None:
        """After a failure of the service, take up the last checkpoint on another client.

        Raises:
            ServiceError: it failed too often in a row, or the user does not want to wait.
        """
        while self.retries < self.max_retries:
            self.retries += 1
            step = self.checkpoint.step if self.checkpoint else 0
            self.observers.hook.run_rolled_back(step=step, problem=str(error))
            interrupts.pause(pause_seconds(self.retries))
            if interrupts.asked:
                break
            self.client.close()
            try:
                self.client = self.reopen()
                self.continue_from(self.checkpoint)
                return
            except ServiceError as another:
                error = another
        error.retries = self.retries
        raise error

    def continue_from(self, checkpoint: Checkpoint | None) -> None:
        """Load a checkpoint into the client, whose adapter is fresh, and forget what came after it."""
        if checkpoint is not None:
            self.client.load_state_with_optimizer(checkpoint.state).result()
        self.in_flight.clear()
        self.checkpoint = checkpoint
        self.finished = checkpoint.step if checkpoint else 0
        self.loss_state = dict(checkpoint.loss_state) if checkpoint else {}
        self.folder.keep_steps_until(self.finished)

    def finish(self, status: RunStatus, problem: str | None = None) -> RunResult:
        """Note the end in the run folder and tell the observers."""
        try:
            self.folder.set_status(status, finished_steps=self.finished, problem=problem)
        except MintTrainError:
            if problem is None:  # else a full disk, say, is what the run failed of
                raise
        result = RunResult(status, self.folder.path, self.finished, self.metrics, self.checkpoint)
        self.observers.hook.run_finished(result=result)
        return result


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for garbage less often: each step makes many objects, and hardly a circle of them."""
    before = gc.get_threshold()
    gc.freeze()  # what is loaded by now stays, and need not be walked through
    gc.set_threshold(OBJECTS_PER_COLLECTION, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def pause_seconds(tries: int) -> float:
    """Return how long to wait after so many failures in a row."""
    return float(min(2**tries, LONGEST_PAUSE))
