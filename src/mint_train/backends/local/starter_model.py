"""The starter model: a tiny Qwen3 that answers simple questions, and needs neither a key nor a download.

`starter/train.py` trained it, and wrote `starter/model`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

STARTER_FOLDER = Path(__file__).parent / "starter" / "model"
WEIGHTS = "model.safetensors"


def make_starter_tokenizer() -> PreTrainedTokenizerFast:
    """Load the starter model's tokenizer: a byte-level BPE with the ChatML chat template."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(STARTER_FOLDER)
    return tokenizer


def save_starter_model(folder: Path) -> None:
    """Save the model and its tokenizer in a folder that transformers, and servers built on it, can load.

    The weights, which are shipped in float16, are saved in float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in STARTER_FOLDER.iterdir():
        if path.name != WEIGHTS:  # a model that is in use may have mapped that file, which is replaced whole
            shutil.copyfile(path, folder / path.name)
    weights = {name: tensor.float() for name, tensor in load_file(STARTER_FOLDER / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
