"""What the forward keeps for the backward, and what becomes of the memory that it does not keep."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from local.engine_models import MODERN, make_model, make_sequences, random_tokens

from mint_train.backends.local.packing import plan_packs
from mint_train.backends.local.recomputed import has_source, kept_for
from mint_train.backends.local.rotary import lean_rotations
from mint_train.backends.local.scoring import Scorer
from mint_train.backends.local.swiglu import SwiGlu, swiglu

ROUNDS = 40

FREE_BYTES = f"""
import ctypes, torch
from mint_train.backends.local.memory import keep_freed_memory
from mint_train.backends.local.temporaries import empty_output, empty_temporary

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]
library = ctypes.CDLL(None)
read = library.mallinfo2
read.restype = Info
keep_freed_memory()
like = torch.empty(())
def holes(temporary):
    before = read()
    kept = []
    for _ in range({ROUNDS}):
        passing = temporary(like, (1000, 1000))
        for size in range(24, 100, 8):
            library.malloc(size)  # what aligning leaves is soon taken
        kept += [like.new_empty(1000), like.new_empty(1000, 1000)]
        del passing
        passing = temporary(like, (1000, 1000))
        for size in range(24, 100, 8):
            library.malloc(size)  # what aligning leaves is soon taken
        kept += [like.new_empty(1000), empty_output(like, (1000, 1000))]
        del passing
    after = read()
    return (after.fordblks - after.keepcost - before.fordblks + before.keepcost) / 4e6
print(holes(lambda like, shape: like.new_empty(shape)), holes(empty_temporary))
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_each_layer_only_what_is_dear_is_kept_for_the_backward(dtype: torch.dtype) -> None:
    scorer = Scorer(make_model("qwen3").to(dtype))
    (pack,) = plan_packs(make_sequences(random_tokens([9, 7])), 100)
    storages: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        return storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with scorer.ready(), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        scorer.score(pack)
    weights = {parameter.untyped_storage().data_ptr() for parameter in scorer.model.parameters()}
    kept = Counter(
        tensor.numel() // pack.rows
        for pointer, tensor in storages.items()
        if pointer not in weights and tensor.is_floating_point() and tensor.numel() > 8 * pack.rows
    )
    layers, hidden, inner = (
        MODERN[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    heads = MODERN["num_attention_heads"] * MODERN["head_dim"]
    kv_heads = MODERN["num_key_value_heads"] * MODERN["head_dim"]
    of_a_layer = [hidden, hidden, heads, kv_heads, kv_heads, heads, inner, inner]
    # Beside the layers: the input of the last norm, and the gradient of the vocabulary's projection.
    expected = Counter(of_a_layer * layers + [hidden, hidden])
    if dtype is torch.bfloat16:  # whose attention keeps each segment's keys and values by themselves
        kept, expected = ({width: each[width] for width in (hidden, inner)} for each in (kept, expected))
    assert kept == expected


def operands() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, 8, requires_grad=True) for _ in range(2)]


def test_a_view_of_a_result_is_computed_again() -> None:
    gate, up = operands()
    result: Any = SwiGlu.apply(gate, up)
    view = result.transpose(0, 1)[1:, :, 2:5]
    compute, kept = kept_for(view)
    assert [tensor.data_ptr() for tensor in kept] == [gate.data_ptr(), up.data_ptr()]
    with torch.no_grad():
        again = compute(*kept)
    assert again.data_ptr() != view.data_ptr()
    assert torch.equal(again, view)


def test_a_result_that_was_changed_is_kept_itself() -> None:
    result: Any = SwiGlu.apply(*operands())
    result.mul_(2)
    compute, kept = kept_for(result)
    assert kept == (result,)
    assert compute(*kept) is result


def test_without_a_graph_a_result_keeps_nothing_alive() -> None:
    with torch.no_grad():
        given = [operand + 1 for operand in operands()]
        result: Any = SwiGlu.apply(*given)
        assert torch.equal(result, swiglu(*given))
    assert not has_source(result)


def test_rotated_queries_are_kept_where_their_input_is_not_kept_anyway() -> None:
    (rotate,) = lean_rotations(make_model("qwen3")).values()
    angles = torch.randn(2, 1, 3, 8).unbind()
    gate, up = (operand.unsqueeze(0) for operand in operands())
    computed: Any = SwiGlu.apply(gate, up)
    rotated, plain = rotate(computed, gate, *angles)
    assert not has_source(plain)
    compute, kept = kept_for(rotated)
    with torch.no_grad():
        assert torch.equal(compute(*kept), rotated)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")
def test_memory_of_a_freed_tensor_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", FREE_BYTES], capture_output=True, text=True, check=False)
    if "mallinfo2" in done.stderr:
        pytest.skip("the C library is not glibc, or an old one")
    before, now = (float(number) for number in done.stdout.split())
    assert now < 8 < before, done.stderr
