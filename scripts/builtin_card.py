"""Measure the embedded model on the held-out standard library and print (or write) its card's figures.

    python scripts/builtin_card.py            # prints the figures
    python scripts/builtin_card.py --write    # also writes src/monosema/models/builtin/README.md

Every held-out module is read in windows of 256 tokens that advance by 128; each token is predicted once, with at
least 128 tokens of its module before it (fewer at the module's start, which follows ``<|endoftext|>``).
Bits per byte = summed loss in nats / (ln 2 · bytes of UTF-8 text).
"""

from __future__ import annotations

import argparse
import math
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import monosema as ms
from monosema.data.stdlib import HELDOUT_FRACTION, Module, is_heldout_name, stdlib_modules

CARD = Path(__file__).parents[1] / "src" / "monosema" / "models" / "builtin" / "README.md"
CONTEXT_SIZE, STRIDE = 256, 128
PROMPTS = ("def ", "import ", "class ", 'def read(self, size=-1):\n    """')


@dataclass(frozen=True)
class Score:
    """Loss on a set of modules."""

    n_modules: int
    n_bytes: int
    n_tokens: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.n_tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / (math.log(2) * self.n_bytes)


@torch.no_grad()
def module_nats(model: ms.LanguageModel, text: str) -> tuple[float, int]:
    """Summed loss in nats over the tokens of ``text``, and their number."""
    assert model.tokenizer is not None
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    tokens = torch.tensor(ids)
    size, total, done = CONTEXT_SIZE, 0.0, 1  # tokens before ``done`` are predicted already
    while done < len(tokens):
        start = 0 if done == 1 else done - (size - STRIDE) - 1
        window = tokens[start : start + size + 1]
        logits = model(window[:-1].unsqueeze(0))[0]
        losses = cross_entropy(logits.float(), window[1:], reduction="none")
        total += float(losses[done - start - 1 :].double().sum())
        done = start + len(window)
    return total, len(tokens) - 1


def score(model: ms.LanguageModel, modules: list[Module]) -> Score:
    parts = [module_nats(model, module.text) for module in modules]
    n_bytes = sum(len(module.text.encode()) for module in modules)
    return Score(len(modules), n_bytes, sum(n for _, n in parts), sum(nats for nats, _ in parts))


@torch.no_grad()
def greedy(model: ms.LanguageModel, prompt: str, n_tokens: int = 64) -> str:
    assert model.tokenizer is not None
    bos = model.tokenizer.bos_token_id
    ids = [bos, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    for _ in range(n_tokens):
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token == bos:
            break
        ids.append(token)
    return str(model.tokenizer.decode(ids[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the card")
    parser.add_argument("--trained-on", default="", help="a sentence on the training run, for the card")
    arguments = parser.parse_args()
    model = ms.load_model("builtin")
    held = [m for m in stdlib_modules() if is_heldout_name(m.name, HELDOUT_FRACTION)]
    written = score(model, [m for m in held if not m.is_generated_table])
    everything = score(model, held)
    rows = [
        f"| {label} | {s.n_modules} | {s.n_bytes:,} | {s.n_tokens:,} | {s.nats_per_token:.4f} | {s.bits_per_byte:.4f} |"
        for label, s in (("without generated tables", written), ("all", everything))
    ]
    table = "\n".join(
        ["| held-out modules | modules | bytes | tokens | nats/token | bits/byte |", "|---|---|---|---|---|---|", *rows]
    )
    print(f"Python {platform.python_version()}\n{table}")
    continuations = [(prompt, greedy(model, prompt)) for prompt in PROMPTS]
    for _, text in continuations:
        print(f"---\n{text}")
    if arguments.write:
        CARD.write_text(_card(model, table, continuations, arguments.trained_on), encoding="utf-8")


def _card(model: ms.LanguageModel, table: str, continuations: list[tuple[str, str]], trained_on: str) -> str:
    config = model.hf.config
    n_parameters = sum(parameter.numel() for parameter in model.hf.parameters())
    samples = "\n\n".join(f"`{prompt!r}`\n\n```python\n{text}\n```" for prompt, text in continuations)
    return f"""# The embedded language model

A Llama-style decoder of {n_parameters / 1e6:.1f} M parameters that comes with the package, so that everything works
offline: `ms.load_model("builtin")`.

| | |
|---|---|
| architecture | {config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads, \
{config.num_key_value_heads} key/value heads, gated MLP of {config.intermediate_size}, RMSNorm, rotary positions, tied \
embeddings |
| context | {model.context_size} tokens |
| vocabulary | {config.vocab_size} (byte-level BPE, `<\\|endoftext\\|>` begins and ends documents) |
| weights | bfloat16, computed in float32 by default |
| training text | sources of the Python {platform.python_version()} standard library and of its tests, without the \
modules held out |
| training | {trained_on} |
| licence of the text | PSF-2.0 |

Held out is every module of the library whose name hashes below {HELDOUT_FRACTION:.0%} \
(`monosema.data.stdlib.is_heldout_name`).

{table}

Windows of 256 tokens advance by 128, so that each token is predicted once. Generated tables are `encodings`,
`pydoc_data` and `*_data`. `python scripts/builtin_card.py` reprints these figures.

## Greedy continuations

{samples}
"""


if __name__ == "__main__":
    main()
