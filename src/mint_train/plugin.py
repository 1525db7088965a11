"""Everything that a plugin imports from mint-train; all other modules may change.

- **Making a loss.** `loss` turns a function into a loss; `hookimpl` marks the hooks of a module or a class.
- **Rows.** `Form` describes one form of row, `combine` joins forms of prompts (`PROMPTS`) with forms of
  answers, and `Forms` holds all that a loss reads. `text`, `number`, `truth`, `completion`, `prompt`,
  `chat_messages` and `dialogue` read one field and raise `RowError` where it is wrong.
- **Datums.** `flatten` gets a `Renderer`, which builds a `Datum` of a prompt and a completion; `attach` adds
  numbers to it, and `build_datum` builds one from token ids.
- **Batches.** `Batch` holds the `Group`s of a step. `sequence_logprobs`, `mean_logprobs`, `log_ratios` and
  `reference_sequence_logprobs` sum over its tokens; `packed_logprobs`, `packed_reference_logprobs` and
  `segment_sums` are for a loss that weighs tokens itself.
- **Contracts.** `require_group_size`, `require_trained`, `require_same_prompt` and `require_distinct` refuse
  a batch with a `ContractError`.
- **Options.** `Options` is the base of a loss's options; `NeededReference` and `OptionalReference` are the
  types of the option `reference`, `NO_REFERENCE` its value for none.
- **Metrics.** `Metric` describes a number that a loss returns.
- **Observers.** `RunRecord`, `StepRecord`, `Evaluation`, `Checkpoint` and `RunResult` are what an observer's
  hooks get.
"""

from mint_train.batches.batch import Batch
from mint_train.batches.contracts import (
    require_distinct,
    require_group_size,
    require_same_prompt,
    require_trained,
)
from mint_train.batches.datums import AttachedDatum, attach, build_datum
from mint_train.batches.groups import Group
from mint_train.batches.logprobs import (
    log_ratios,
    mean_logprobs,
    packed_logprobs,
    packed_reference_logprobs,
    reference_sequence_logprobs,
    sequence_logprobs,
)
from mint_train.batches.sums import segment_sums
from mint_train.errors import ContractError, DataError, DoesNotFit, RowError
from mint_train.plugins.authoring import loss
from mint_train.plugins.hookspecs import CONTRACT_VERSION, hookimpl
from mint_train.plugins.options import NO_REFERENCE, NeededReference, OptionalReference, Options
from mint_train.rendering.renderer import Renderer
from mint_train.rows.forms import Form, Forms, combine
from mint_train.rows.messages import ChatMessage, chat_messages, completion, number, prompt, text, truth
from mint_train.rows.prompts import PROMPTS, Prompt, dialogue, is_dialogue, split_shared
from mint_train.rows.row import kind
from mint_train.run_folder.metric import Metric
from mint_train.run_folder.records import Checkpoint, Evaluation, RunRecord, RunResult, StepRecord
from mint_train.sdk import Datum

__all__ = [
    "CONTRACT_VERSION",
    "NO_REFERENCE",
    "PROMPTS",
    "AttachedDatum",
    "Batch",
    "ChatMessage",
    "Checkpoint",
    "ContractError",
    "DataError",
    "Datum",
    "DoesNotFit",
    "Evaluation",
    "Form",
    "Forms",
    "Group",
    "Metric",
    "NeededReference",
    "OptionalReference",
    "Options",
    "Prompt",
    "Renderer",
    "RowError",
    "RunRecord",
    "RunResult",
    "StepRecord",
    "attach",
    "build_datum",
    "chat_messages",
    "combine",
    "completion",
    "dialogue",
    "hookimpl",
    "is_dialogue",
    "kind",
    "log_ratios",
    "loss",
    "mean_logprobs",
    "number",
    "packed_logprobs",
    "packed_reference_logprobs",
    "prompt",
    "reference_sequence_logprobs",
    "require_distinct",
    "require_group_size",
    "require_same_prompt",
    "require_trained",
    "segment_sums",
    "sequence_logprobs",
    "split_shared",
    "text",
    "truth",
]
