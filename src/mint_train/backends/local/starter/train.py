"""Train the starter model on its corpus and write it, in minutes on two cores.

    python -m mint_train.backends.local.starter.train

No run imports it. The seed decides everything but the roundings, which differ from machine to machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from mint_train.backends.local.starter.corpus import Exchange, exchanges
from mint_train.backends.local.starter_model import STARTER_FOLDER, WEIGHTS

VOCABULARY = 1024
END_OF_TEXT, START_OF_TURN, END_OF_TURN = SPECIAL = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXTS_FOR_TOKENIZER = 6000
ENGLISH_REPEATED = 6
"""How often the page of general English counts beside them: other people's texts are to stay short, too."""
UNTRAINED = -100

Conversation = tuple[list[int], list[int]]
"""Token ids, and for each the label: itself, or UNTRAINED."""


def main() -> None:
    """Train and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=STARTER_FOLDER, help="where to write it")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch", type=int, default=48, help="conversations a step")
    parser.add_argument("--lr", type=float, default=8e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    tokenizer = make_tokenizer(asked.seed)
    model = make_model()
    train(model, conversations(tokenizer, asked.seed, asked.batch), asked.steps, asked.lr)
    write(model, tokenizer, asked.output, corpus_digest(asked.seed))


def corpus_digest(seed: int) -> str:
    """Return the SHA-256 of the corpus's first texts, which change with its rules."""
    digest = hashlib.sha256()
    for question, answer in islice(exchanges(seed), TEXTS_FOR_TOKENIZER):
        digest.update(f"{question}\n{answer}\n".encode())
    return digest.hexdigest()


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the corpus and on a page of general English; give it the ChatML template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    english = Path(__file__).with_name("english.txt").read_text(encoding="utf-8").splitlines()
    drawn = islice(exchanges(seed, metric_share=0.5), TEXTS_FOR_TOKENIZER)
    texts = [
        text for exchange in drawn for text in (exchange.question, exchange.answer, f" {exchange.answer}")
    ]
    bpe.train_from_iterator([*texts, *english * ENGLISH_REPEATED], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model() -> Qwen3ForCausalLM:
    """Make a Qwen3-shaped model of about 200,000 parameters, float32."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END_OF_TURN),
        pad_token_id=SPECIAL.index(END_OF_TEXT),
    )
    return Qwen3ForCausalLM(config)


def conversations(tokenizer: Any, seed: int, batch: int) -> Iterator[list[Conversation]]:
    """Draw batches of conversations, of one exchange each or of two.

    Every other one is in the form of the recipe, whose last answer begins with a space; the others are what
    the chat template writes.
    """
    dice = random.Random(seed)  # noqa: S311 - no secret
    drawn = exchanges(seed)
    tokens = cache(lambda text: tokenizer.encode(text, add_special_tokens=False))
    while True:
        turns = 1 if dice.random() < 0.8 else 2
        yield [conversation(list(islice(drawn, turns)), dice.choice(("", " ")), tokens) for _ in range(batch)]


def conversation(
    exchanged: Sequence[Exchange], space: str, tokens: Callable[[str], list[int]]
) -> Conversation:
    """Render exchanges, with a space or nothing before the last answer."""
    ids: list[int] = []
    labels: list[int] = []
    for number, (question, answer) in enumerate(exchanged, start=1):
        prompt = tokens(f"{START_OF_TURN}user\n{question}{END_OF_TURN}\n{START_OF_TURN}assistant\n")
        ends = number == len(exchanged)
        completion = tokens(f"{space if ends else ''}{answer}{END_OF_TURN}")
        between = [] if ends else tokens("\n")
        ids += [*prompt, *completion, *between]
        labels += [*[UNTRAINED] * len(prompt), *completion, *between]
    return ids, labels


def train(model: Qwen3ForCausalLM, drawn: Iterator[list[Conversation]], steps: int, lr: float) -> None:
    """Train all weights with AdamW, the learning rate warming up and then falling along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.05, final_div_factor=1e3
    )
    model.train()
    started = time.perf_counter()
    for step, batch in enumerate(islice(drawn, steps), start=1):
        loss = mean_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 200 == 0:
            taken = time.perf_counter() - started
            sys.stderr.write(f"Step {step}: loss={loss.item():.4f}, {taken:.0f} s\n")
    model.eval()


def mean_loss(model: Qwen3ForCausalLM, batch: Sequence[Conversation]) -> torch.Tensor:
    """Compute the cross entropy of the trained tokens, the mean over them; only their logits are computed."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
    labels = torch.tensor([labels + [UNTRAINED] * (longest - len(labels)) for _, labels in batch])[:, 1:]
    # padding on the right needs no mask: no token before it attends to it
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    trained = labels != UNTRAINED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[trained]), labels[trained])


def write(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, corpus: str) -> None:
    """Write the folder that `save_starter_model` copies: the weights in float16, everything else as it is."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt", "corpus": corpus})
    # transformers before 5.9 finds neither this tokenizer class nor the nested rope_theta
    amend_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    amend_json(folder / "config.json", rope_theta=10000.0)


def amend_json(path: Path, **values: object) -> None:
    """Set top-level values in a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
