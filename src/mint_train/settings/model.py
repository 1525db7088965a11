"""The settings of a run: one model for command line, environment, config file and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator

from mint_train.settings.booleans import keep_booleans_apart
from mint_train.settings.fields import (
    JUDGE_SECONDS,
    MOST,
    Arguments,
    Columns,
    Count,
    Data,
    FilePath,
    HeldOut,
    JudgeName,
    JudgeOptions,
    JudgeSeconds,
    Names,
    PathName,
    Rank,
    SourceName,
    without_credentials,
)

Quantization = Literal["int8", "nf4"]
MINT_DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
DEFAULT_STEPS = 3
MAX_SEED = 2**63 - 1
"""What torch and the service's API take: a signed integer of 64 bits."""
SECRET_FIELDS = frozenset({"api_key"})
LAYER_KINDS = ("attention", "mlp", "unembed")
"""The kinds of layers that both backends know by a word."""
OPTION_NAMES = {"from_checkpoint": "--from", "judge_options": "--judge-set"}
"""Options that are not called like their field."""


def option_name(field: str) -> str:
    """Return the command-line option of a field."""
    return OPTION_NAMES.get(field, "--" + field.replace("_", "-"))


class Settings(BaseModel):
    """Everything that decides a run. Each field except the key and `options` is a command-line option."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _kinds = field_validator("*", mode="wrap")(keep_booleans_apart)

    loss: str = Field(description="The loss, by its name in `mint-train losses`.")
    data: Data = Field(
        default=(),
        description="Rows: a file (JSON Lines, JSON, CSV, Parquet, Arrow; gzip or Zstandard), a quoted "
        "pattern of files, - for standard input, or hf:org/name:split; by default the loss's bundled rows. "
        "Repeatable; a weight behind each (a.jsonl:0.7) is its share of an epoch.",
    )
    columns: Columns = Field(
        default_factory=dict,
        description="Columns of the data that have other names: prompt=question,chosen=good; prompt= "
        "ignores the column prompt.",
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        default="fail",
        description="What to do with an unusable row: stop the run, or skip, count and list it.",
    )
    max_row_bytes: int = Field(
        default=16_000_000,
        ge=1,
        le=10**18,  # what can be asked of a file
        description="Bytes of a row, decompressed, above which it is not read and counts as unusable.",
    )
    special_tokens: Literal["allow", "split", "fail"] = Field(
        default="split",
        description="How a special token in a text of the data is read: as plain text (split), as that "
        "token (allow), or as a bad row (fail).",
    )
    render: Literal["recipe", "template", "raw"] = Field(
        default="recipe",
        description="How rows become tokens: the recipe's form, text alone (recipe); what the chat template "
        "writes of the whole conversation (template); or texts that are rendered already (raw).",
    )
    chat_template: FilePath = Field(
        default=None, description="File with a chat template to use instead of the model's own."
    )
    chat_template_kwargs: Arguments = Field(
        default_factory=dict,
        description="Arguments of the chat template, such as enable_thinking=false; a row's own come first.",
    )
    train_turns: Literal["all", "last"] = Field(
        default="all",
        description="With --render template: which of the assistant's turns in a completion are trained.",
    )
    eval_data: HeldOut = Field(
        default_factory=dict,
        description="Held-out rows to evaluate on, before the first step and after the last. Repeatable "
        "with names: helpful=FILE.",
    )
    eval_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Fraction of --data to hold out and evaluate on instead: the same rows for every loss "
        "and seed.",
    )
    eval_every: Count | None = Field(default=None, description="Steps between further evaluations.")
    select_by: str | None = Field(
        default=None,
        min_length=1,
        description="Figure of the held-out rows whose best state is the run's result, and is never "
        "deleted: METRIC, SET/METRIC, with :max or :min where the loss does not say which is better.",
    )
    patience: Count | None = Field(
        default=None,
        description="Evaluations in a row without a better --select-by figure after which the run stops.",
    )
    sample_prompts: SourceName = Field(
        default=None,
        description="Prompts, in any form that --data takes, to complete before the first step, at each "
        "checkpoint and after the last step, so that it shows how the completions change.",
    )
    sample_every: Count | None = Field(
        default=None,
        description="Steps between completions of --sample-prompts; by default --save-every.",
    )
    sample_tokens: Count = Field(
        default=256, description="Maximum tokens of a completion of --sample-prompts."
    )
    judge: JudgeName = None
    judge_options: JudgeOptions = Field(default_factory=dict)
    judge_timeout: JudgeSeconds = JUDGE_SECONDS
    backend: Literal["auto", "mint", "local"] = Field(
        default="auto", description="auto: MinT if MINT_API_KEY is set, else this machine."
    )
    model: PathName = Field(
        default=None,
        description="Base model: a folder, or a hub name, perhaps with @REVISION [MINT_BASE_MODEL]. Default "
        f"on MinT: {MINT_DEFAULT_MODEL}; locally: a tiny starter model.",
    )
    rank: Rank = Field(default=16, description="LoRA rank [MINT_LORA_RANK].")
    lora_alpha: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Embedded backend: LoRA's alpha, 32 by default as on MinT; a service has its own.",
    )
    lora_targets: Names = Field(
        default_factory=tuple,
        description="Layers that get an adapter: attention, mlp, unembed, or on the embedded backend linear "
        "layers by name, such as q_proj,v_proj; all of them by default.",
    )
    from_checkpoint: PathName = Field(
        default=None,
        description="Adapter to begin with: a run folder (RUN, RUN@STEP or RUN@best), a state on the "
        "service (tinker://...), or on the embedded backend a PEFT folder or hub name.",
    )
    from_optimizer: bool = Field(
        default=False, description="Begin with the optimiser's moments of --from too, not its weights alone."
    )
    steps: Count | None = Field(
        default=None,
        description=f"Optimiser steps [MINT_<LOSS>_STEPS]; {DEFAULT_STEPS} on bundled rows, else one epoch.",
    )
    epochs: Count | None = Field(default=None, description="Passes over the data, instead of --steps.")
    batch_size: Count = Field(default=8, description="Groups (for DPO: pairs) per step.")
    accumulate: Count = Field(
        default=1,
        description="Batches per step: each gives a loss, and the step uses their mean. For one loss over "
        "all of them, raise --batch-size instead.",
    )
    lr: float = Field(
        default=1e-5, gt=0, le=1, allow_inf_nan=False, description="Learning rate [MINT_<LOSS>_LR]."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Learning-rate schedule after the warm-up."
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=MOST,
        description="Steps W before the full learning rate: step s of them has --lr times s / (W + 1).",
    )
    adam_beta1: float = Field(
        default=0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient per step."
    )
    adam_beta2: float = Field(
        default=0.95, ge=0, lt=1, description="AdamW's decay of the mean squared gradient per step."
    )
    adam_eps: float = Field(
        default=1e-12, gt=0, allow_inf_nan=False, description="AdamW's epsilon, added to the root."
    )
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="AdamW's weight decay.")
    grad_clip: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Maximum gradient norm; 0 turns clipping off."
    )
    pipeline: bool = Field(
        default=True,
        description="Submit requests before earlier ones have finished, where that is faster.",
    )
    max_length: int | None = Field(
        default=None,
        ge=2,
        le=MOST,
        description="Maximum tokens of prompt and completion together; completions are cut to fit.",
    )
    group_by_length: bool = Field(
        default=False,
        description="Put groups of similar length into one step, for servers that pad or compile.",
    )
    seed: int = Field(
        default=0, ge=0, le=MAX_SEED, description="Seed of the adapter and of the data's order."
    )
    save_every: Count = Field(
        default=100, description="Steps between checkpoints; the last step is always saved."
    )
    keep: Count | None = Field(
        default=None,
        description="Number of newest checkpoints to keep, beside the best by --select-by; all by default.",
    )
    price_file: FilePath = Field(
        default=None,
        description="TOML or YAML file with the price of a million tokens of each kind: a dry run and the "
        "run's end then say what it costs.",
    )
    token_budget: int | None = Field(
        default=None,
        ge=1,
        le=10**18,
        description="Tokens of all kinds that the run, or all of --rounds, may send: it stops at a "
        "checkpoint before the step that would pass them.",
    )
    max_retries: int = Field(
        default=5,
        ge=0,
        le=MOST,
        description="Times in a row that the run rolls back to its last checkpoint when the service fails.",
    )
    trust_gradients: bool = Field(
        default=False,
        description="Train on a service whose gradients cannot be measured, and so not be proved right.",
    )
    keep_adapters: bool = Field(
        default=False,
        description="Unload no adapter from the service: for SkyRL on several processes, which that stops.",
    )
    second_adapter: bool = Field(
        default=True,
        description="On a service, let a second adapter compute reference logprobs while the first steps "
        "are taken; without it all of them come before the first step.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Embedded backend: dtype of the base model; auto: bfloat16 on CUDA, else float32.",
    )
    quantize: Quantization | None = Field(
        default=None,
        description="Embedded backend: keep the base model's linear layers in 8 bits (int8) or 4 (nf4): "
        "less memory, and logprobs a little off; needs bitsandbytes.",
    )
    max_tokens_in_flight: Count | None = Field(
        default=None,
        description="Embedded backend: tokens whose activations are kept at once; by default as many as "
        "fit in half of the free memory. A larger batch costs a second forward pass.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Embedded backend: use less memory, for about a third more time."
    )
    output: Path | None = Field(
        default=None, description="Run folder to write; by default a new folder in runs/."
    )
    overwrite: bool = Field(default=False, description="Replace the run in --output.")
    progress: Literal["auto", "plain", "json", "quiet"] = Field(
        default="auto",
        description="What is printed; auto: a live display on a terminal, else one plain line per step.",
    )
    track: Names = Field(
        default_factory=tuple,
        description="Observers to report to, separated by commas: tensorboard, wandb, mlflow, trackio, or "
        "your own.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The loss's options.")
    base_url: Annotated[str | None, BeforeValidator(without_credentials)] = Field(
        default=None, description="URL of the service [MINT_BASE_URL]."
    )
    api_key: SecretStr | None = Field(default=None, description="Key of the service, from MINT_API_KEY only.")

    def public(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values without the secrets."""
        return self.model_dump(mode="json", exclude=set(SECRET_FIELDS))
