"""Train the embedded model's tokenizer: byte-level BPE on the standard library's training modules.

    python scripts/builtin_tokenizer.py --out build/builtin

Lines and words are split before merging so that an indentation is one token with its newline and a word
carries at most one leading space.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from monosema.data.stdlib import HELDOUT_FRACTION, is_heldout_name, stdlib_modules

VOCABULARY_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
CONTEXT_SIZE = 256
SPLIT = r"\s*\n[ \t]*| ?\p{L}+|_\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[ \t]+(?=[ \t])|\s+"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT_SIZE,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives tokenizer.json")
    out: Path = parser.parse_args().out
    texts = [m.text for m in stdlib_modules() if not is_heldout_name(m.name, HELDOUT_FRACTION)]
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(out)
    sample = "".join(texts[::20])
    n_tokens = len(tokenizer(sample)["input_ids"])
    print(f"{len(tokenizer)} tokens, {len(sample.encode()) / n_tokens:.3f} bytes per token on training text")


if __name__ == "__main__":
    main()
