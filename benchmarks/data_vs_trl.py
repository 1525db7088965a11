"""Time and memory to prepare preference pairs (read, check, tokenise): mint-train beside TRL's DPOTrainer.

    python benchmarks/data_vs_trl.py --texts dpo_en_demo.json --trl-python trl/bin/python --rows 100000

Both sides read the same file of chat rows with the same tokenizer and their default settings, each in its
own process that does nothing else. Rounds alternate, and times are medians over rounds. The texts come from
a file of ShareGPT pairs (`conversations`, `chosen`, `rejected`); a number before each prompt and completion
makes every text unique, so that none is tokenised only once. The tokenizer is trained on the same texts
unless a folder is given.

`--render template` has our side render whole conversations by the chat template, as TRL does.

TRL's side is what `DPOTrainer.__init__` does with its data set: `load_dataset` and the trainer's own
`_prepare_dataset`, without a model. Both sides start each round with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
BAR = 3.0
VOCABULARY = 32_768
GIBIBYTE = 1024**2
"""In the unit of `ru_maxrss`, KiB."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, help="JSON file of ShareGPT pairs from which to make the rows")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--characters", type=int, help="cut each text to this length, for millions of rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer (default: train one)")
    parser.add_argument("--render", choices=["recipe", "template"], default="recipe", help="of our side")
    parser.add_argument("--trl-python", type=Path, help="Python with TRL (default: run only our side)")
    parser.add_argument("--work", type=Path, help="folder for files (default: a temporary one)")
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        print(json.dumps(prepare_ours(given) if given.side == "ours" else prepare_with_trl(given)))
        return 0
    if given.texts is None:
        parser.error("--texts is needed")
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        tokenizer = given.tokenizer or train_tokenizer(given.texts, work / "tokenizer")
        rows = write_rows(given.texts, given.rows, given.characters, work / f"rows-{given.rows}.jsonl")
        size = f"{given.rows:,} rows, {rows.stat().st_size / 1e9:.2f} GB"
        print(f"{size}, {os.cpu_count()} cores, --render {given.render}")
        pythons = {"ours": Path(sys.executable)}
        if given.trl_python:
            pythons["trl"] = given.trl_python
        rounds = [
            {
                side: run(python, [side, "--render", given.render], rows, tokenizer, work)
                for side, python in pythons.items()
            }
            for _ in range(given.rounds)
        ]
    report(rounds, given.rows)
    return 0


def report(rounds: list[dict[str, dict[str, Any]]], rows: int) -> None:
    for side in rounds[0]:
        seconds = statistics.median(one[side]["seconds"] for one in rounds)
        cpu = statistics.median(one[side]["cpu"] for one in rounds)
        memory = max(one[side]["memory"] for one in rounds)
        print(
            f"{side:5} {seconds:8.1f} s, {rows / seconds:7.0f} rows/s, {cpu:8.1f} CPU s, "
            f"peak {memory:5.2f} GiB, "
            f"{rounds[0][side]['groups']:,} rows kept, {rounds[0][side]['tokens']:,} tokens in a sample"
        )
    if "trl" in rounds[0]:
        wall, cpu = (
            statistics.median(one["trl"][figure] / one["ours"][figure] for one in rounds)
            for figure in ("seconds", "cpu")
        )
        print(f"{wall:6.2f} times faster than TRL (bar {BAR}: {'met' if wall >= BAR else 'NOT met'})")
        print(f"{cpu:6.2f} times less CPU time")


def run(python: Path, side: list[str], rows: Path, tokenizer: Path, work: Path) -> dict[str, Any]:
    """Run one side, with its options, in a fresh process with an empty cache."""
    cache = work / f"cache-{side[0]}"
    shutil.rmtree(cache, ignore_errors=True)
    environment = os.environ | {"MINT_TRAIN_CACHE": str(cache), "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [python, HERE, "--side", *side, "--texts", rows, "--tokenizer", tokenizer]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(cache, ignore_errors=True)
    return result


def prepare_ours(given: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from mint_train.groups.build import build_dataset
    from mint_train.groups.examples import read_examples
    from mint_train.losses.weighted_sum import open_loss
    from mint_train.rows.readers import open_data
    from mint_train.settings.model import Settings

    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    loss = open_loss("dpo", {})
    began, cpu = time.perf_counter(), time.process_time()
    examples = read_examples(open_data(given.texts), loss)
    settings = Settings(loss="dpo", max_length=1024, render=given.render)
    groups = build_dataset(examples, loss, tokenizer, settings).groups
    figures = measured(began, cpu)
    tokens = 0
    for index in range(0, len(groups), max(1, len(groups) // 1000)):
        tokens += sum(groups[index].trained_lengths) + len(groups[index].prompts[0])
    return figures | {"groups": len(groups), "tokens": tokens}


def prepare_with_trl(given: argparse.Namespace) -> dict[str, Any]:
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    args = DPOConfig(output_dir=str(Path(os.environ["HF_HOME"]) / "out"), report_to="none", bf16=False)
    trainer = DPOTrainer.__new__(DPOTrainer)  # preparing data needs only the tokenizer
    trainer._tokenizer = tokenizer
    began, cpu = time.perf_counter(), time.process_time()
    rows = load_dataset("json", data_files=str(given.texts), split="train")
    prepared = trainer._prepare_dataset(rows, tokenizer, args, "train")
    figures = measured(began, cpu)
    tokens = 0
    for index in range(0, len(prepared), max(1, len(prepared) // 1000)):
        tokens += sum(len(prepared[index][name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return figures | {"groups": len(prepared), "tokens": tokens}


def measured(began: float, cpu: float) -> dict[str, float]:
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIBIBYTE,
    }


def write_rows(texts: Path, count: int, characters: int | None, path: Path) -> Path:
    """Write rows of chat messages: the texts repeatedly, each preceded by the number of its row."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    made = [
        (
            [
                {"role": roles[turn["from"]], "content": turn["value"][:characters]}
                for turn in row["conversations"]
            ],
            row["chosen"]["value"][:characters] + ".",
            row["rejected"]["value"][:characters],
        )
        for row in json.loads(texts.read_text(encoding="utf-8"))
    ]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt, *answers = made[number % len(made)]
            first = prompt[0] | {"content": f"{number}: {prompt[0]['content']}"}
            chosen, rejected = ([{"role": "assistant", "content": f"{number}: {text}"}] for text in answers)
            row = {"prompt": [first, *prompt[1:]], "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(row) + "\n")
    return path


def train_tokenizer(texts: Path, folder: Path) -> Path:
    """Train a byte-level BPE as Qwen3's is built, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = json.loads(texts.read_text(encoding="utf-8"))
    words = [
        turn["value"] for row in rows for turn in (*row["conversations"], row["chosen"], row["rejected"])
    ]
    bpe.train_from_iterator(words, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[0], pad_token=special[0], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
