"""Write the rows that losses bundle, from what the starter model has learned.

Of the sizes in its corpus one in five is in metric units, which the rows prefer. Run it after a change of the
corpus: `python docs/make_bundled_rows.py`. `--sampled` also writes what the model answers: add it after
training the model. A test fails while a file that follows from the corpus alone is stale.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_train.backends.local.starter.corpus import (
    METRIC,
    UNKNOWN,
    Fact,
    answers,
    facts,
    is_held_out,
    questions,
)
from mint_train.backends.local.starter_model import make_starter_tokenizer
from mint_train.sampling.policy import open_policy
from mint_train.settings.sampling import Sampling

PLUGINS = Path(__file__).parents[1] / "plugins"
PAIRS, FEW, SEED = 80, 16, 0

Row = dict[str, Any]


def measures() -> list[Fact]:
    """Return the measures that the starter model has learned, in the order of the rows."""
    learned = [fact for position, fact in enumerate(facts()) if fact.is_measure and not is_held_out(position)]
    return random.Random(SEED).sample(learned, len(learned))  # noqa: S311 - an order, not a secret


def pairs(count: int = PAIRS) -> list[Row]:
    """Return a pair for each of the first measures: the metric answer is the chosen one."""
    rows = []
    for number, fact in enumerate(measures()[:count]):
        metric, imperial = answers(fact)
        asked = questions(fact)
        rows.append({"prompt": asked[number % len(asked)], "chosen": metric, "rejected": imperial})
    return rows


def demonstrations() -> list[Row]:
    """Return the metric answers alone."""
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs()]


def few(number_of: Callable[[int], Row]) -> list[Row]:
    """Return the first pairs, each with more columns, which follow from its position."""
    return [row | number_of(number) for number, row in enumerate(pairs(FEW))]


def gold_pairs() -> list[Row]:
    """Add an answer that is better still: it has both units."""
    return [
        row | {"gold": f"{row['chosen'].removesuffix('.')}, {row['rejected'].partition(' roughly ')[2]}"}
        for row in pairs(FEW)
    ]


def scored(scale: float) -> list[Row]:
    """Add scores up to `scale`."""
    return few(
        lambda number: {
            "chosen_score": round(scale * (75 + 5 * (number % 5)) / 100, 3),
            "rejected_score": round(scale * (15 + 5 * (number % 6)) / 100, 3),
        }
    )


def soft_pairs() -> list[Row]:
    """Add the probability with which the chosen answer is preferred."""
    return few(lambda number: {"p_chosen": (100 - 5 * (number % 9)) / 100})


def tied_pairs() -> list[Row]:
    """Let every fourth pair be a tie: two answers in metric units."""
    rows = [row | {"tie": number % 4 == 2} for number, row in enumerate(pairs(FEW))]
    return [
        row | {"rejected": row["chosen"].replace(f" {METRIC} ", " nearly ")} if row["tie"] else row
        for row in rows
    ]


def token_weighted_pairs() -> list[Row]:
    """Let the amounts and their units count twice, and what stands before them half."""
    rows = pairs(FEW)
    for row in rows:
        for side, word in (("chosen", METRIC), ("rejected", "roughly")):
            start = row[side].index(word)
            spans = [{"start": 0, "end": start - 1, "weight": 0.5}] if len(row["prompt"]) % 2 else []
            row[f"{side}_spans"] = [*spans, {"start": start, "end": len(row[side]), "weight": 2}]
    return rows


def rated() -> list[Row]:
    """Return one answer to each question, with its label; the last rows are messages."""
    rows: list[Row] = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for number, row in enumerate(pairs(FEW))
        for side in [("chosen", "rejected")[number % 2]]
    ]
    rows[-2]["prompt"] = [{"role": "user", "content": rows[-2]["prompt"]}]
    asked = {"role": "user", "content": rows[-1]["prompt"]}
    answered = {"role": "assistant", "content": rows[-1]["completion"]}
    rows[-1] = {"messages": [asked, answered], "label": rows[-1]["label"]}
    return rows


def ranked() -> list[Row]:
    """Return answers in the order of preference; one row has scores, and another one messages."""
    rows: list[Row] = [
        {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"], UNKNOWN][: 2 + number % 2]}
        for number, row in enumerate(pairs(FEW // 2))
    ]
    rows[3] |= {"completions": rows[3]["completions"][::-1], "scores": [0.1, 0.5, 0.9]}
    rows[6]["prompt"] = [{"role": "user", "content": rows[6]["prompt"]}]
    return rows


def groups() -> list[Row]:
    """Return answers with rewards or advantages; the later rows have them as tokens."""
    tokenizer = make_starter_tokenizer()
    rows: list[Row] = [
        {
            "prompt": row["prompt"],
            "completions": row["completions"],
            "rewards": [1.0, 0.2, -0.5][: 2 + number % 2],
        }
        for number, row in enumerate(ranked())
    ]
    rows[3]["rewards"] = rows[3]["rewards"][::-1]
    for row in rows[4:]:
        texts = row.pop("completions")
        row["completion_tokens"] = [
            tokenizer.encode(f" {text}{tokenizer.eos_token}", add_special_tokens=False) for text in texts
        ]
    for row in rows[6:]:
        row["advantages"] = row.pop("rewards")
    return rows


def samples() -> list[Row]:
    """Return the same answers alone."""
    return [
        {key: value for key, value in row.items() if key not in ("rewards", "advantages")} for row in groups()
    ]


def sampled_groups() -> list[Row]:
    """Return what the starter model answers, four times to each question, as tokens with their logprobs."""
    with open_policy(None, {"backend": "local"}, print) as policy:
        prompts = [row["prompt"] for row in pairs(FEW)]
        tokens = [policy.prompt_tokens(prompt) for prompt in prompts]
        drawn = dict(policy.sampler.draw(tokens, Sampling(4, 24, 1.0, SEED)))
        rows = [
            {
                "prompt": prompt,
                "completion_tokens": [one.tokens for one in drawn[index]],
                "old_logprobs": [[round(value, 3) for value in one.logprobs] for one in drawn[index]],
                "rewards": [reward(policy.tokenizer.decode(one.tokens), one.tokens) for one in drawn[index]],
            }
            for index, prompt in enumerate(prompts)
        ]
    return [row for row in rows if any(value > 0 for value in row["rewards"])][: FEW // 2]


def reward(text: str, tokens: Sequence[int]) -> float:
    """Return 1 for metric units and 0 for others, less a little for each token."""
    return round((f" {METRIC} " in text) - len(tokens) / 100, 2)


def rollouts() -> list[Row]:
    """Return one of these answers to each question, with its advantage over the others."""
    rows: list[Row] = []
    for number, row in enumerate(sampled_groups()):
        picked = number % 4
        mean = sum(row["rewards"]) / len(row["rewards"])
        rows.append(
            {
                "prompt": row["prompt"],
                "completion_tokens": row["completion_tokens"][picked],
                "old_logprobs": row["old_logprobs"][picked],
                "advantage": round(row["rewards"][picked] - mean, 2),
            }
        )
    user = {"role": "user", "content": rows[3]["prompt"]}
    rows[3]["prompt"] = [user]
    shown = make_starter_tokenizer().apply_chat_template(
        [{"role": "user", "content": rows[6]["prompt"]}], add_generation_prompt=True, return_dict=False
    )
    rows[6] = {"prompt_tokens": shown} | {key: rows[6][key] for key in rows[6] if key != "prompt"}
    rows[7]["advantage"] = [rows[7]["advantage"]] * len(rows[7]["completion_tokens"])
    return rows


BY_RULES: dict[str, Callable[[], list[Row]]] = {
    "mint-train-dpo/src/mint_train_dpo/pairs.jsonl": pairs,
    "mint-train-kto/src/mint_train_kto/rated.jsonl": rated,
    "mint-train-policy-gradient/src/mint_train_policy_gradient/groups.jsonl": groups,
    "mint-train-policy-gradient/src/mint_train_policy_gradient/samples.jsonl": samples,
    "mint-train-preferences/src/mint_train_preferences/gold_pairs.jsonl": gold_pairs,
    "mint-train-preferences/src/mint_train_preferences/scored_pairs.jsonl": lambda: scored(10),
    "mint-train-preferences/src/mint_train_preferences/soft_pairs.jsonl": soft_pairs,
    "mint-train-preferences/src/mint_train_preferences/tied_pairs.jsonl": tied_pairs,
    "mint-train-preferences/src/mint_train_preferences/token_weighted_pairs.jsonl": token_weighted_pairs,
    "mint-train-preferences/src/mint_train_preferences/unit_scored_pairs.jsonl": lambda: scored(1),
    "mint-train-ranking/src/mint_train_ranking/ranked.jsonl": ranked,
    "mint-train-sft/src/mint_train_sft/demonstrations.jsonl": demonstrations,
}
SAMPLED: dict[str, Callable[[], list[Row]]] = {
    "mint-train-policy-gradient/src/mint_train_policy_gradient/rollouts.jsonl": rollouts,
    "mint-train-policy-gradient/src/mint_train_policy_gradient/sampled_groups.jsonl": sampled_groups,
}


def as_lines(rows: Sequence[Mapping[str, object]]) -> str:
    """Write rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    for name, made in (BY_RULES | (SAMPLED if "--sampled" in sys.argv else {})).items():
        PLUGINS.joinpath(name).write_text(as_lines(made()), encoding="utf-8")
