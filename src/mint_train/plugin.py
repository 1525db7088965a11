"""Everything that a plugin imports from mint-train; all other modules may change.

- **Making a loss.** `loss` turns a function into a loss; `hookimpl` marks the hooks of a module or a class.
- **Rows.** `Form` describes one form of a row's answers, and `Forms` holds all that a loss reads, each with
  any form of a prompt (`PROMPTS`). A form returns `Answers`; `single_answers`, `compared_answers` and
  `graded_lists` are the forms of one answer, of two with a verdict and of lists with grades, and `combine` is
  for a loss that reads its answers whole. `text`, `number`, `chat_messages`, `read_answer`, `read_answers`,
  `is_good` and `from_json` read fields and raise `RowError` where one is wrong. A `Prompt` is a text,
  messages or a `Conversation`; a `Completion` is a text or messages.
- **Datums.** `flatten` gets a `Renderer`, which builds a `Datum` of a prompt and a completion; `attach` adds
  numbers to it, one, or one per token (`over_completion`), and `build_datum` builds one from token ids.
- **Batches.** `Batch` holds the `Group`s of a step, and `Batch.mean` averages a value of each by its row's
  weight. `sequence_logprobs`, `mean_logprobs`, `log_ratios` and `reference_sequence_logprobs` sum over its
  tokens; `packed_logprobs`, `packed_reference_logprobs` and `segment_sums` are for a loss that weighs tokens
  itself.
- **Contracts.** `require_group_size`, `require_trained`, `require_same_prompt` and `require_distinct` refuse
  a batch with a `ContractError`.
- **The vocabulary.** A `Vocabulary` holds what a loss asked about the whole distribution at each token.
- **Options.** `Options` is the base of a loss's options; `NeededReference` and `OptionalReference` are the
  types of the option `reference`, `NO_REFERENCE` its value for none.
- **Metrics.** `Metric` describes a number that a loss returns.
- **Judges.** `score` gets `Candidates`; a judge that cannot do its work raises `JudgeError`, and one that
  cannot be created `PluginError`. `as_conversation` gives the messages of any prompt, `import_file` imports
  a file of the user's, and `cache_folder` is where what is costly to get again may be kept. `LogRatio`
  compares a run's policy with the one that it began as, and `ModelVersion` keeps to one version of a model
  on the hub. A row writer gets `Judged`, and `text_column` is a completion as its row holds it.
- **Observers.** `RunRecord`, `StepRecord`, `Evaluation`, `Samples`, `Checkpoint` and `RunResult` are what an
  observer's hooks get.
"""

from mint_train.backends.hub_model import ModelVersion
from mint_train.batches.batch import Batch
from mint_train.batches.contracts import (
    require_distinct,
    require_group_size,
    require_same_prompt,
    require_trained,
)
from mint_train.batches.datums import AttachedDatum, attach, build_datum, over_completion
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
from mint_train.batches.vocabulary import Vocabulary
from mint_train.errors import ContractError, DataError, DoesNotFit, JudgeError, PluginError, RowError
from mint_train.plugins.authoring import loss
from mint_train.plugins.hookspecs import CONTRACT_VERSION, hookimpl
from mint_train.plugins.loss_files import import_file
from mint_train.plugins.options import NO_REFERENCE, NeededReference, OptionalReference, Options
from mint_train.rendering.renderer import Renderer
from mint_train.rows.answers import compared_answers, graded_lists, read_answer, read_answers
from mint_train.rows.candidates import Candidates, Judged, text_column
from mint_train.rows.conversations import Completion, Conversation, Prompt, as_conversation
from mint_train.rows.form import Answers, Form
from mint_train.rows.forms import Forms, combine
from mint_train.rows.messages import ChatMessage, are_messages, chat_messages
from mint_train.rows.prompts import PROMPTS
from mint_train.rows.row import kind
from mint_train.rows.single_answers import single_answers
from mint_train.rows.values import from_json, number, text
from mint_train.rows.verdicts import Survey, is_good
from mint_train.run_folder.metric import Metric
from mint_train.run_folder.records import Checkpoint, Evaluation, RunRecord, RunResult, Samples, StepRecord
from mint_train.sampling.log_ratio import LogRatio
from mint_train.sdk import Datum
from mint_train.settings.cache import cache_folder

__all__ = [
    "CONTRACT_VERSION",
    "NO_REFERENCE",
    "PROMPTS",
    "Answers",
    "AttachedDatum",
    "Batch",
    "Candidates",
    "ChatMessage",
    "Checkpoint",
    "Completion",
    "ContractError",
    "Conversation",
    "DataError",
    "Datum",
    "DoesNotFit",
    "Evaluation",
    "Form",
    "Forms",
    "Group",
    "JudgeError",
    "Judged",
    "LogRatio",
    "Metric",
    "ModelVersion",
    "NeededReference",
    "OptionalReference",
    "Options",
    "PluginError",
    "Prompt",
    "Renderer",
    "RowError",
    "RunRecord",
    "RunResult",
    "Samples",
    "StepRecord",
    "Survey",
    "Vocabulary",
    "are_messages",
    "as_conversation",
    "attach",
    "build_datum",
    "cache_folder",
    "chat_messages",
    "combine",
    "compared_answers",
    "from_json",
    "graded_lists",
    "hookimpl",
    "import_file",
    "is_good",
    "kind",
    "log_ratios",
    "loss",
    "mean_logprobs",
    "number",
    "over_completion",
    "packed_logprobs",
    "packed_reference_logprobs",
    "read_answer",
    "read_answers",
    "reference_sequence_logprobs",
    "require_distinct",
    "require_group_size",
    "require_same_prompt",
    "require_trained",
    "segment_sums",
    "sequence_logprobs",
    "single_answers",
    "text",
    "text_column",
]
