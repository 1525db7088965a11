"""What a run and the commands on it write, by its name in the run folder."""

from __future__ import annotations

from mint_train.settings.data_items import KEPT_ROWS

STARTING = ".starting"
"""The file that stands in the folder of a new run until it has its `run.json`."""
RUN_FILE = "run.json"
CONFIG_FILE = "run.toml"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
CHECKPOINTS_FILE = "checkpoints.jsonl"
TOKENS_FILE = "tokens.jsonl"
SKIPPED_FILE = "skipped_rows.jsonl"
WIN_RATES_FILE = "win_rates.jsonl"
REPORT = "report"
REPORT_SUFFIXES = (".png", ".html")
FILES = (
    *(RUN_FILE, CONFIG_FILE, METRICS_FILE, EVALUATIONS_FILE, CHECKPOINTS_FILE, TOKENS_FILE),
    *(SKIPPED_FILE, WIN_RATES_FILE, *(f"{REPORT}{suffix}" for suffix in REPORT_SUFFIXES)),
)
EVALUATION_ROWS = "evaluations"
"""The folder with a file per evaluation: a line for each held-out row."""
ADAPTER = "adapter"
BASE_MODEL = "base_model"
"""The folder of a base model that was made for the run."""
CHECKPOINTS = "checkpoints"
OBSERVERS = "observers"
REFERENCE_FOLDER = "reference"
"""The folder of the reference logprobs, those of held-out rows too."""
SAMPLES = "samples"
"""The folder of completions of `--sample-prompts`."""
FOLDERS = (
    *(EVALUATION_ROWS, ADAPTER, BASE_MODEL, CHECKPOINTS),
    *(OBSERVERS, REFERENCE_FOLDER, KEPT_ROWS, SAMPLES),
)
PARTS = (STARTING, *FILES, *FOLDERS)
