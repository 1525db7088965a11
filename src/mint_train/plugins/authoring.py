"""`@loss`: a whole loss plugin from one function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from mint_train.errors import LossError, PluginError, nearest
from mint_train.plugins.hookspecs import LossSpec, hookimpl

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

    from mint_train.batches.batch import Batch

COMPUTE_ARGUMENTS = tuple(inspect.signature(LossSpec.compute_loss).parameters)[1:]
CLAIMS = ("ORDER_MATTERS", "UNTRAINED_DATUMS", "STOPS_GRADIENT")
"""What a plugin may say of itself to the conformance kit; `mint_train.testing` explains each."""


class FunctionLoss:
    """A loss plugin whose `compute_loss` is one function; what it leaves out, the loss it extends answers."""

    def __init__(
        self,
        function: Callable[..., Any],
        extends: str,
        options: type[BaseModel] | None,
        reference: Callable[[Any], str | None] | str | None,
        step_line: Mapping[str, str] | None,
        claims: Mapping[str, Any] | None = None,
    ) -> None:
        self.arguments = tuple(inspect.signature(function).parameters)
        for argument in self.arguments:
            if argument not in COMPUTE_ARGUMENTS:
                raise PluginError(
                    f'{function.__name__}: a loss has no argument "{argument}"'
                    f"{nearest(argument, COMPUTE_ARGUMENTS)}; it may take {', '.join(COMPUTE_ARGUMENTS)}"
                )
        for claim, value in (claims or {}).items():
            if claim not in CLAIMS:
                raise PluginError(
                    f'{function.__name__}: no claim is called "{claim}"{nearest(claim, CLAIMS)}'
                )
            setattr(self, claim, value)
        self.function = function
        self.EXTENDS = extends
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self._options = options
        self._reference = reference
        self._step_line = step_line

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    @hookimpl
    def loss_options(self) -> type[BaseModel] | None:
        """Give the options passed to `@loss`, if any."""
        return self._options

    @hookimpl
    def compute_loss(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        options: BaseModel,
        state: MutableMapping[str, float],
    ) -> Any:
        """Call the function with the arguments that it names."""
        available = {"batch": batch, "logprobs": logprobs, "options": options, "state": state}
        result = self.function(**{name: available[name] for name in self.arguments})
        if result is None:
            # pluggy would silently take the extended loss's answer instead
            raise LossError(f'the loss "{self.__name__}" returned nothing: it must return the loss')
        return result

    @hookimpl
    def reference(self, options: BaseModel) -> str | None:
        """Give the reference passed to `@loss`, if any."""
        return self._reference(options) if callable(self._reference) else self._reference

    @hookimpl
    def step_line(self) -> Mapping[str, str] | None:
        """Give the metrics of the step line passed to `@loss`, if any."""
        return self._step_line


def loss(
    *,
    extends: str,
    options: type[BaseModel] | None = None,
    reference: Callable[[Any], str | None] | str | None = None,
    step_line: Mapping[str, str] | None = None,
    claims: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], FunctionLoss]:
    """Make a function `(batch, logprobs, options, state) -> loss or (loss, metrics)` a loss plugin.

    The function names the arguments that it needs, in any order; its docstring's first line is its
    description in `mint-train losses`.

    Args:
        extends: the loss whose data, contract and options it inherits.
        options: its own options model, where it has one.
        reference: the reference model it needs, or a function of its options that says so.
        step_line: the metrics of the step line, with their formats.
        claims: what the conformance kit must know of it, such as `{"STOPS_GRADIENT": True}`.

    Raises:
        PluginError: the function has an argument that a loss cannot have, or a claim is unknown.

    Example:
        >>> @loss(extends="dpo")
        ... def margin_of_one(batch, logprobs):
        ...     '''Push each chosen one nat above its rejected.'''
        ...     scores = sequence_logprobs(logprobs, batch)
        ...     return torch.relu(1 - (scores[::2] - scores[1::2])).mean()
    """
    return lambda function: FunctionLoss(function, extends, options, reference, step_line, claims)
