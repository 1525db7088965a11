"""`mint-train export`: where a run's weights were written, or how to sample from those on the service."""

from __future__ import annotations

from mint_train.observers.terminal import echo
from mint_train.trained.export import Exported

SAMPLE_ON_THE_SERVICE = """\
import mint
from mint import types

service = mint.ServiceClient({address})
sampler = service.create_sampling_client(model_path="{path}")
tokenizer = sampler.get_tokenizer()
prompt = types.ModelInput.from_ints(tokenizer.encode("Hello"))
answer = sampler.sample(prompt, 1, types.SamplingParams(max_tokens=64)).result()
print(tokenizer.decode(answer.sequences[0].tokens))"""


def print_exported(done: Exported, *, merge: bool) -> None:
    """Print where the weights are; for a run on MinT, print how to sample from them."""
    if done.folder is None:
        address = "" if done.address is None else f'base_url="{done.address}"'
        echo(SAMPLE_ON_THE_SERVICE.format(address=address, path=done.checkpoint.sampler))
        return
    echo(f"The {'merged model' if merge else 'adapter'} after step {done.checkpoint.step}: {done.folder}")
