"""`@loss`: a whole loss plugin from one function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from mint_train.errors import LossError, PluginError, nearest
from mint_train.plugins.hookspecs import LossSpec, hookimpl
from mint_train.plugins.returned import shown

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

    from mint_train.batches.batch import Batch
    from mint_train.run_folder.metric import Metric

COMPUTE_ARGUMENTS = tuple(inspect.signature(LossSpec.compute_loss).parameters)[1:]
TRAITS = ("ORDER_MATTERS", "UNTRAINED_DATUMS", "STOPS_GRADIENT", "DATUMS_MAY_REPEAT", "LINEAR")
"""What a plugin may say of itself; `mint_train.testing` explains each."""


class FunctionLoss:
    """A loss plugin whose `compute_loss` is one function; all other hooks are the loss's that it extends."""

    def __init__(self, function: Callable[..., Any], extends: str, traits: Mapping[str, Any]) -> None:
        """Check the function's arguments and the traits.

        Raises:
            PluginError: it is not a function, has an argument that a loss cannot have, or an unknown trait.
        """
        if not (callable(function) and hasattr(function, "__qualname__")):
            raise PluginError(
                f"@mint_train.loss needs a function, not {shown(function)}: put it on a def that calls this"
            )
        self.arguments = tuple(inspect.signature(function).parameters)
        for argument in self.arguments:
            if argument not in COMPUTE_ARGUMENTS:
                raise PluginError(
                    f'{function.__name__}: a loss has no argument "{argument}"'
                    f"{nearest(argument, COMPUTE_ARGUMENTS)}; it may take {', '.join(COMPUTE_ARGUMENTS)}"
                )
        for trait, value in traits.items():
            if trait not in TRAITS:
                raise PluginError(
                    f'{function.__name__}: no trait is called "{trait}"{nearest(trait, TRAITS)}'
                )
            setattr(self, trait, value)
        self.function = function
        self.EXTENDS = extends
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    def answer(self, hook: str, function: Callable[..., Any]) -> None:
        """Let a function answer one more hook."""
        setattr(self, hook, hookimpl(function, specname=hook))

    def answer_with(self, hook: str, value: Any) -> None:
        """Let a value, or what a function makes of the options, answer one more hook; None leaves it out."""
        if callable(value):
            self.answer(hook, lambda options: value(options))
        elif value is not None:
            self.answer(hook, lambda: value)

    @hookimpl
    def compute_loss(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        options: BaseModel,
        state: MutableMapping[str, float],
        vocabulary: Mapping[str, torch.Tensor],
    ) -> Any:
        """Call the function with the arguments that it names."""
        available = {"batch": batch, "logprobs": logprobs, "options": options, "state": state}
        available["vocabulary"] = vocabulary
        result = self.function(**{name: available[name] for name in self.arguments})
        if result is None:
            # pluggy would silently take the extended loss's answer instead
            raise LossError(f'the loss "{self.__name__}" returned nothing: it must return the loss')
        return result


def loss(
    *,
    extends: str,
    options: type[BaseModel] | None = None,
    reference: Callable[[Any], str] | str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    vocabulary: Callable[[Any], Collection[str]] | Collection[str] | None = None,
    traits: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], FunctionLoss]:
    """Turn a function that returns a loss, or `(loss, metrics)`, into a loss plugin.

    The function names those of `batch`, `logprobs`, `options`, `state` and `vocabulary` that it needs, in any
    order. The first line of its docstring is its description in `mint-train losses`.

    Args:
        extends: the loss whose rows, contract and other hooks it inherits.
        options: its own options model, where it has one.
        reference: the reference that it needs, or a function of its options; else the option `reference`.
        metrics: what its own metrics are; those of the loss that it extends are described already.
        vocabulary: what it needs of the whole distribution at each token, such as `("entropy",)`, or a
            function of its options.
        traits: what it says of itself, such as `{"STOPS_GRADIENT": True}`; `mint_train.testing` lists them.

    Raises:
        PluginError: it is not a function, has an argument that a loss cannot have, or an unknown trait.

    Example:
        >>> @loss(extends="dpo")
        ... def margin_of_one(batch, logprobs):
        ...     '''Push each chosen completion one nat above its rejected one.'''
        ...     pairs = Pairs.of(batch, logprobs, reference=False)
        ...     return batch.mean(torch.relu(1 - pairs.margins)), pairs.metrics()
    """

    def make(function: Callable[..., Any]) -> FunctionLoss:
        made = FunctionLoss(function, extends, traits or {})
        # a hook that is left out is not implemented at all, so that it is inherited visibly
        if options is not None:
            made.answer("loss_options", lambda: options)
        made.answer_with("reference", reference)
        made.answer_with("metrics", metrics)
        made.answer_with("vocabulary", vocabulary)
        return made

    return make
