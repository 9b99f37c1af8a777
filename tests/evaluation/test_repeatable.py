"""The same report again: in this process and another, in batches of any size, whatever the global state, and back."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_tiny import TOKENIZER, random_sae, tiny_contexts, tiny_decoder, tiny_encoder
from torch import Tensor

from monosema.coders import SAE, BatchTopK
from monosema.evaluation import evaluate
from monosema.models import LanguageModel


def measured(model: LanguageModel, contexts: Tensor, **options: Any) -> dict[str, Any]:
    sae = random_sae(dtype=str(model.dtype).removeprefix("torch."))
    return evaluate(sae, model, contexts, progress=False, **options).to_dict(per_latent=True)


def text() -> Tensor:
    """11 contexts of documents that begin inside them, so that intervals are there."""
    return tiny_contexts(tiny_decoder(torch.float32), n=11)


def flat(plain: Any, path: str = "") -> dict[str, Any]:
    """Every value of the JSON by its path."""
    if isinstance(plain, dict):
        return {key: value for name, own in plain.items() for key, value in flat(own, f"{path}/{name}").items()}
    return flat(dict(enumerate(plain)), path) if isinstance(plain, list | tuple) else {path: plain}


def near(found: Any, value: Any, bound: float) -> bool:
    """Within ``bound``; what is no float is the same."""
    return math.isclose(found, value, rel_tol=bound, abs_tol=bound) if isinstance(value, float) else found == value


def test_twice_in_a_process_and_in_another_it_is_the_same_to_the_last_bit():
    model, contexts = tiny_decoder(torch.float32), text()
    torch.manual_seed(1)
    first = measured(model, contexts, batch_size=4)
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert measured(model, contexts, batch_size=4) == first
    here = Path(__file__).parent
    script = (
        "from test_repeatable import *\n"
        f"torch.set_num_threads({torch.get_num_threads()}); torch.manual_seed(3)\n"
        "model, contexts, drawn = tiny_decoder(torch.float32), text(), random.getstate()\n"
        "print(json.dumps(measured(model, contexts, batch_size=4)))\n"
        "assert random.getstate() == drawn  # here, as the type checks of tests draw from it\n"
    )
    paths = [str(here), str(here.parent), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert flat(json.loads(done.stdout)) == flat(json.loads(json.dumps(first)))


# Batches of another size may add float64 sums in another order. That moves a logit by at most 2 · n · 2^-53 · Σ|a·b|
# added over the model's maps, below 5e-12 (n ≤ 24, Σ|a·b| ≤ 900 in all), and so a mean loss. A score divides two such
# differences, and its interval comes from means that leave documents out, whose divisor may be as small as 0.01: 1e-9.
# The decoder's norms are in float32 whatever the model, and round by 2^-24 = 6e-8 of values, which a score enlarges.
@pytest.mark.parametrize(("kind", "bound"), [("decoder", 1e-5), ("encoder", 1e-9)])
def test_batches_of_any_size_give_every_field_alike(kind: str, bound: float):
    model, contexts = tiny_decoder() if kind == "decoder" else tiny_encoder(TOKENIZER), text()
    whole = flat(measured(model, contexts, batch_size=11))
    assert len([name for name in whole if "/intervals/" in name]) > 20 and len(whole) > 300
    for batch_size in (1, 3, 7, None):
        found = flat(measured(model, contexts, batch_size=batch_size))
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            assert near(found[name], value, bound), (batch_size, name)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 500])
def test_rows_in_steps_of_any_size_give_every_field_alike(batch_size: int):
    rows = torch.randn(200, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    whole, found = (
        flat(evaluate(random_sae(), activations=rows, batch_size=size).to_dict(per_latent=True))
        for size in (200, batch_size)
    )
    for name, value in whole.items():
        assert near(found[name], value, 1e-11), name  # the order of float64 sums of 200 rows: 200 · 2^-53 · 200


def global_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "device": torch.get_default_device(),
    }


def test_nothing_global_and_nothing_handed_in_is_changed(contexts: Tensor):
    model, coder = tiny_decoder(), SAE(16, 24, activation=BatchTopK(k=2), dtype="float64")
    coder.bind("blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre", {"kept": [1]})
    coder.activation.set_threshold(0.25)
    coder.train()
    model.hf.train()
    model.hf.model.layers[0].eval()
    for parameter in list(coder.parameters())[::2] + list(model.hf.parameters())[::3]:
        parameter.requires_grad_(False)
    modules = [each for root in (coder, model.hf) for each in root.modules()]

    def own_state() -> list[Any]:
        tensors = [*coder.state_dict().values(), *model.hf.state_dict().values()]
        parameters = [*coder.parameters(), *model.hf.parameters()]
        hooks = [(len(each._forward_hooks), len(each._forward_pre_hooks)) for each in modules]
        flags = [each.training for each in modules]
        grads = [(each.requires_grad, each.grad) for each in parameters]
        return [[each.tolist() for each in tensors], hooks, flags, grads, coder.metadata, coder.hook_name]

    for enabled in (True, False):
        before, own = global_state(), own_state()
        with torch.set_grad_enabled(enabled):
            inside = global_state()
            first = evaluate(coder, model, contexts, progress=False)
            assert global_state() == inside
        assert (global_state(), own_state()) == (before, own)
    torch.set_default_dtype(torch.float64)
    try:
        again = evaluate(coder, model, contexts, progress=False)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert flat(again.to_dict(per_latent=True)) == flat(first.to_dict(per_latent=True))


def test_dropout_is_off_whatever_mode_the_model_is_in(contexts: Tensor):
    model = tiny_decoder()
    for block in model.hf.model.layers:
        block.self_attn.attention_dropout = 0.5
    still = evaluate(random_sae(), model, contexts, progress=False)
    model.hf.train()
    with torch.no_grad():
        assert not torch.equal(model(contexts), model(contexts)), "else there is no dropout"
    assert flat(evaluate(random_sae(), model, contexts, progress=False).to_dict()) == flat(still.to_dict())
