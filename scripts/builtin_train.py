"""Train the embedded language model on the Python standard library and its tests.

    python scripts/builtin_tokenizer.py --out build/builtin
    python scripts/builtin_train.py --out build/builtin --tokens 20_000_000
    python scripts/builtin_export.py --from build/builtin

The run resumes by itself from ``state.pt`` in ``--out``. The learning rate is constant, then falls linearly to
zero over the last ``--decay`` of the tokens, so a stopped run may be continued with a larger budget.
Hidden matrices are trained with Muon, embeddings and gains with Adam; modules held out by
``monosema.data.stdlib.is_heldout_name`` are never read.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from monosema.data.stdlib import HELDOUT_FRACTION, Module, is_heldout_name, stdlib_modules

CONTEXT_SIZE = 256
MATRIX_LEARNING_RATE = 0.02
OTHER_LEARNING_RATE = 0.003
WEIGHT_DECAY = 0.1
WARMUP_STEPS = 40
LIBRARY_REPEATS = 2
"""The library itself is read this many times for each reading of its tests."""


def new_model(vocabulary_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_SIZE,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        rms_norm_eps=1e-5,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).float()
    for layer in model.model.layers:  # branches start at zero: the stream starts as the embedding
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def token_stream(modules: list[Module], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    rows = tokenizer([m.text for m in modules], add_special_tokens=False)["input_ids"]
    return np.concatenate([np.array([tokenizer.bos_token_id, *row], dtype=np.int32) for row in rows])


def windows(library: np.ndarray, tests: np.ndarray, epoch: int) -> np.ndarray:
    """One epoch's windows ``[n, CONTEXT_SIZE + 1]`` at fresh offsets, shuffled."""
    generator = np.random.default_rng(epoch)
    parts = []
    for stream in [library] * LIBRARY_REPEATS + [tests]:
        start = int(generator.integers(CONTEXT_SIZE))
        n = (len(stream) - start - 1) // CONTEXT_SIZE
        index = start + CONTEXT_SIZE * np.arange(n)[:, None] + np.arange(CONTEXT_SIZE + 1)
        parts.append(stream[index])
    rows = np.concatenate(parts)
    return rows[generator.permutation(len(rows))]


def batches(library: np.ndarray, tests: np.ndarray, batch_size: int, first: int) -> Iterator[torch.Tensor]:
    """Batches ``[batch_size, CONTEXT_SIZE + 1]`` from batch number ``first`` on, without end."""
    epoch = 0
    while True:
        rows = windows(library, tests, epoch)
        n = len(rows) // batch_size
        for i in range(min(first, n), n):
            yield torch.from_numpy(rows[i * batch_size : (i + 1) * batch_size]).long()
        first = max(0, first - n)
        epoch += 1


def learning_rate_factor(step: int, n_steps: int, decay: float) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (n_steps - step) / (decay * n_steps)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--decay", type=float, default=0.4)
    parser.add_argument("--batch-size", type=int, default=16, help="contexts in a step")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--compile", action="store_true", help="compile the model (needs a C++ compiler)")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    library = [m for m in stdlib_modules() if not is_heldout_name(m.name, HELDOUT_FRACTION)]
    names = {m.name for m in stdlib_modules()}
    tests = [m for m in stdlib_modules(tests=True) if m.name not in names]
    library_tokens, test_tokens = token_stream(library, tokenizer), token_stream(tests, tokenizer)
    print(f"{len(library_tokens)} library tokens, {len(test_tokens)} test tokens", flush=True)

    model = new_model(len(tokenizer))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, momentum=0.95, weight_decay=WEIGHT_DECAY),
        torch.optim.Adam(others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.98), fused=True),
    ]
    base_rates = [MATRIX_LEARNING_RATE, OTHER_LEARNING_RATE]
    state_path, step = arguments.out / "state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    n_steps = arguments.tokens // (arguments.batch_size * CONTEXT_SIZE)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, steps {step} to {n_steps}", flush=True)
    forward = torch.compile(model) if arguments.compile else model

    started, losses = time.monotonic(), []
    for batch in batches(library_tokens, test_tokens, arguments.batch_size, first=step):
        if step >= n_steps:
            break
        for optimizer, rate in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, n_steps, arguments.decay)
        logits = forward(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        step += 1
        if step % 20 == 0:
            rate = len(losses) * batch[:, 1:].numel() / (time.monotonic() - started)
            print(f"step {step}/{n_steps} loss {np.mean(losses[-20:]):.4f} {rate:.0f} tok/s", flush=True)
        if step % arguments.checkpoint_every == 0 or step == n_steps:
            saved = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
            torch.save(saved, state_path.with_suffix(".tmp"))
            os.replace(state_path.with_suffix(".tmp"), state_path)


if __name__ == "__main__":
    main()
