"""The training loop: read it in one sitting."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from mint_train.backends.base import Future
from mint_train.batches.batch import Batch
from mint_train.errors import MintTrainError, ServiceError
from mint_train.garbage import rare_collections
from mint_train.groups.step_count import is_due
from mint_train.losses.custom_loss import CustomLoss
from mint_train.run_folder.records import Checkpoint, Evaluation, RunResult, RunStatus, StepRecord
from mint_train.run_folder.samples import forget_samples
from mint_train.sdk import types
from mint_train.training.budget import TokenBudget
from mint_train.training.evaluation import Evaluator
from mint_train.training.interrupts import Interrupts
from mint_train.training.lr_schedule import adam_params
from mint_train.training.pipelining import Pipelining
from mint_train.training.preparing import Prepared, pause_seconds
from mint_train.training.run import Run
from mint_train.training.selecting import Selecting, read_selection


@dataclass(frozen=True, slots=True)
class Submitted:
    """A step whose requests are in flight."""

    step: int
    custom_loss: CustomLoss
    adam_params: types.AdamParams
    requests: tuple[Future[Any], ...]


class Runner:
    """Trains one adapter: groups in, steps, checkpoints out."""

    def __init__(self, run: Run, prepared: Prepared) -> None:
        """Begin before the first step; `continue_from` moves on to a checkpoint."""
        self.run = run
        self.client = prepared.client
        self.groups = prepared.dataset.groups
        self.steps, self.order = prepared.steps, prepared.order
        self.evaluators = [
            Evaluator(run.loss, part.groups, run.settings.batch_size, name)
            for name, part in prepared.held_out.items()
        ]
        self.watcher, self.ahead = prepared.watcher, prepared.ahead
        self.counts = run.counts
        self.budget = TokenBudget(run.settings.token_budget, run.counts, prepared.expected)
        self.budget_spent = False
        # without a service in between, a step is done once it is submitted: there is nothing to run ahead of
        remote = run.settings.pipeline and run.backend.remote
        self.pipelining = Pipelining.beginning(prepared.client.round_trip) if remote else None
        selection = read_selection(run.settings, run.loss.metrics, list(prepared.held_out))
        self.selecting = Selecting(run.folder, selection, run.settings.patience)
        self.finished = 0
        self.retries = 0
        self.loss_state: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.checkpoint: Checkpoint | None = None
        self.in_flight: deque[Submitted] = deque()
        self.step_ended = time.perf_counter()

    def train(self) -> RunResult:
        """Train until the last step, an interrupt or an error; whatever happens, a checkpoint is saved.

        Raises:
            MintTrainError: a step failed, or the service kept failing. The run folder is intact and holds
                the last good checkpoint, whatever is raised.
        """
        try:
            with Interrupts(self.run.observers.warn) as interrupts, rare_collections():
                while True:
                    try:
                        self.take_steps(interrupts)
                        break
                    except ServiceError as error:
                        self.roll_back(error, interrupts)
        except MintTrainError as error:
            self.finish("failed", str(error))
            raise
        except (Exception, KeyboardInterrupt) as error:  # what nobody foresaw, or a second Ctrl-C
            status: RunStatus = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self.finish(status, f"{type(error).__name__}: {error}")
            raise
        done = self.finished == self.steps or self.selecting.out_of_patience
        return self.finish("done" if done else "interrupted")

    def take_steps(self, interrupts: Interrupts) -> None:
        """Take the remaining steps, save a checkpoint after the last, and the weights of the best."""
        self.evaluate()
        self.watch(self.finished)
        self.step_ended = time.perf_counter()
        for step in range(self.finished + 1, self.steps + 1):
            self.budget_spent = not self.budget.allows(step)
            if self.selecting.out_of_patience or self.budget_spent:
                break
            self.submit(step)
            # samples are of the policy after the step, and not of a later one
            self.collect(self.pipelining.most_in_flight if self.pipelining and not self.watched(step) else 0)
            if interrupts.asked:
                break
            if step % self.run.settings.save_every == 0 and step < self.steps:
                self.save()
            self.evaluate(step)
        if self.watcher is not None and self.selecting.out_of_patience:
            self.watcher.watch(self.client, self.finished)
        best = self.selecting.best
        self.save(sampler=best in (None, self.finished))
        if line := self.selecting.describe():
            self.run.observers.notice(line)
        if best not in (None, self.finished):
            self.save_best(self.run.folder.checkpoint_after(best))

    def evaluate(self, step: int | None = None) -> None:
        """Evaluate after a step (by default the last one), if that is due and has not been done yet."""
        step = self.finished if step is None else step
        if not self.evaluators or not is_due(step, self.steps, self.run.settings.eval_every):
            return
        self.collect()
        done = {line.get("held_out", "") for line in self.run.folder.evaluations() if line["step"] == step}
        for evaluator in self.evaluators:
            if evaluator.name not in done:  # else before the run was resumed
                self.evaluate_on(evaluator, step)
        if step and self.selecting.best == step:
            self.save()
        self.step_ended = time.perf_counter()  # do not count evaluation time in the next step

    def evaluate_on(self, evaluator: Evaluator, step: int) -> None:
        """Evaluate on one held-out set, record the figures and tell the observers."""
        try:
            sent = self.counts.counting("evaluation", step)
            evaluation = evaluator.evaluate(self.client, step, self.loss_state, sent)
        except ServiceError:
            raise
        except MintTrainError as error:
            self.keep_last_good_state()
            error.locate(f"evaluation after step {step}")
            raise
        self.run.folder.append_evaluation(evaluation)
        self.run.observers.hook.evaluated(evaluation=evaluation)

    def watched(self, step: int) -> bool:
        """Return whether the prompts of `--sample-prompts` are completed after a step."""
        return self.watcher is not None and self.watcher.watching.is_due(step, self.steps)

    def watch(self, step: int) -> dict[str, float]:
        """Complete the prompts after a step, if that is due; return their mean score, if they have one."""
        if self.watcher is None or not self.watched(step):
            return {}
        return self.watcher.watch(self.client, step)

    def submit(self, step: int) -> None:
        """Submit one optimiser step: loss, gradients, update.

        It blocks once, on the policy's logprobs, unless the loss's gradients do not depend on them.
        """
        params = adam_params(self.run.settings, self.steps, step)
        state = dict(self.in_flight[-1].custom_loss.state if self.in_flight else self.loss_state)
        try:
            batches = self.batches(step)
            custom_loss = CustomLoss(self.run.loss, batches, state)
            for batch in batches:
                self.run.loss.check_batch(batch)
            tokens = int(custom_loss.step.lengths.sum())
            known = custom_loss.known_gradients() if self.client.takes_known_gradients else None
            if known is None:
                self.counts.add("forward", tokens, step)
            backward = self.client.forward_backward_custom(custom_loss.step.data, custom_loss, known)
            self.counts.add("backward", tokens, step)
            if self.pipelining is None:
                backward.result()  # waiting for it on every step would cost a cycle of the service
            self.settle()
            update = self.client.optim_step(params)
        except ServiceError as error:
            error.locate(f"step {step}")
            raise
        except MintTrainError as error:
            self.collect()
            self.keep_last_good_state()
            error.locate(f"step {step}")
            raise
        self.in_flight.append(Submitted(step, custom_loss, params, (backward, update)))

    def settle(self) -> None:
        """Before the adapter's policy changes, see to it that its reference logprobs do not depend on it."""
        if self.ahead is not None:
            self.ahead.settle(self.client)

    def collect(self, remaining: int = 0) -> None:
        """Await the oldest steps until at most `remaining` are in flight, and record each."""
        while len(self.in_flight) > remaining:
            submitted = self.in_flight.popleft()
            try:
                for request in submitted.requests:
                    request.result()
            except MintTrainError as error:
                # later in-flight steps were built on the failed one; only the checkpoint is valid
                self.in_flight.clear()
                error.locate(f"step {submitted.step}")
                raise
            self.record(submitted)

    def record(self, submitted: Submitted) -> None:
        """Record a finished step in the run folder and tell the observers."""
        custom_loss = submitted.custom_loss
        seconds = time.perf_counter() - self.step_ended
        self.metrics = {**custom_loss.metrics, **self.watch(submitted.step)}
        self.finished, self.loss_state = submitted.step, custom_loss.state
        self.step_ended = time.perf_counter()
        record = StepRecord(
            step=submitted.step,
            metrics=self.metrics,
            learning_rate=submitted.adam_params.learning_rate,
            tokens=int(custom_loss.step.lengths.sum()),
            seconds=seconds,
        )
        if self.pipelining and not (self.ahead and self.ahead.runs):
            self.pipelining.note(record.seconds)
        self.run.folder.append_step(record)
        self.run.observers.hook.step_finished(step=record)

    def batches(self, step: int) -> list[Batch]:
        """Return the batches of a step."""
        indices, size = self.order.step(step), self.run.settings.batch_size
        starts = range(0, len(indices), size)
        return [Batch(self.groups.take(indices[start : start + size])) for start in starts]

    def save(self, *, sampler: bool = False) -> None:
        """Save weights and optimiser, and also the weights alone for a sampler if asked."""
        self.collect()
        saved = self.checkpoint
        if saved is not None and saved.step == self.finished:
            state = saved.state  # the service refuses a second save under the same name
        else:
            state = self.client.save_state(f"step-{self.finished:06d}").result().path
        name = self.run.sampler_name
        weights = self.client.save_weights_for_sampler(name).result().path if sampler else None
        self.checkpoint = Checkpoint(self.finished, state, weights, self.loss_state)
        self.run.folder.append_checkpoint(self.checkpoint)
        self.retries = 0
        if self.run.settings.keep is not None:
            for old in self.run.folder.forget_checkpoints(self.run.settings.keep, self.selecting.best):
                self.client.delete_state(old)
        self.run.observers.hook.checkpoint_saved(checkpoint=self.checkpoint)

    def save_best(self, best: Checkpoint) -> None:
        """Save the weights of an earlier state as the run's result; nothing is trained after it."""
        self.client.load_state(best.state).result()
        weights = self.client.save_weights_for_sampler(self.run.sampler_name).result().path
        self.checkpoint = replace(best, sampler=weights)
        self.run.folder.append_checkpoint(self.checkpoint)
        self.run.observers.hook.checkpoint_saved(checkpoint=self.checkpoint)

    def keep_last_good_state(self) -> None:
        """After a step that failed before it was submitted, save the previous one, if still possible."""
        if self.finished and (self.checkpoint is None or self.checkpoint.step < self.finished):
            try:
                self.save()
            except MintTrainError:
                return

    def roll_back(self, error: ServiceError, interrupts: Interrupts) -> None:
        """After a service failure, reconnect and continue from the last checkpoint.

        Raises:
            ServiceError: the service failed too often in a row, or the user does not want to wait.
        """
        while self.retries < self.run.settings.max_retries:
            self.retries += 1
            step = self.checkpoint.step if self.checkpoint else 0
            self.run.observers.hook.run_rolled_back(step=step, problem=str(error))
            interrupts.pause(pause_seconds(self.retries))
            if interrupts.asked:
                break
            self.client.close()
            try:
                self.reconnect()
                return
            except ServiceError as another:
                error = another
        error.retries = self.retries
        raise error

    def reconnect(self) -> None:
        """Open another client, and continue from the last checkpoint with it.

        A service may have another version by now, which takes gradients in another form.
        """
        before = self.client.gradients
        unsettled = self.ahead is not None and not self.ahead.settled
        self.client = self.run.open_client(at_start=self.checkpoint is None or unsettled)
        if self.client.gradients != before:
            self.run.observers.notice(self.client.gradients.note)
            self.run.folder.update_description(gradients=self.client.gradients.form)
        self.continue_from(self.checkpoint)

    def continue_from(self, checkpoint: Checkpoint | None) -> None:
        """Load a checkpoint into the client, whose adapter is fresh, and drop what came after it."""
        if checkpoint is not None:
            self.settle()
            self.client.load_state_with_optimizer(checkpoint.state).result()
        self.in_flight.clear()
        self.checkpoint = checkpoint
        self.finished = checkpoint.step if checkpoint else 0
        self.loss_state = dict(checkpoint.loss_state) if checkpoint else {}
        self.run.folder.keep_steps_until(self.finished)
        forget_samples(self.run.folder.path, self.finished)

    def finish(self, status: RunStatus, problem: str | None = None) -> RunResult:
        """Record the end in the run folder and tell the observers."""
        folder = self.run.folder
        tokens = self.counts.by_kind
        cost = self.run.prices.cost(tokens) if self.run.prices else None
        try:
            folder.update_description(
                status=status,
                finished_steps=self.finished,
                problem=problem,
                tokens=tokens,
                cost=cost,
            )
        except MintTrainError:
            if problem is None:  # otherwise the run already failed; report that error, not this one
                raise
        evaluations = [] if problem else [Evaluation.of_line(line) for line in folder.evaluations()]
        result = RunResult(
            status, folder.path, self.finished, self.metrics, self.checkpoint, problem, evaluations
        )
        result = replace(result, tokens=tokens, cost=cost, budget_spent=self.budget_spent)
        self.run.observers.hook.run_finished(result=result)
        return result
