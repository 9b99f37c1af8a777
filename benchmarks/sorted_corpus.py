"""A corpus sorted by topic beside the same documents shuffled: FVE on held-out text.

    python benchmarks/sorted_corpus.py --prose STORIES.txt --write-docs

The corpus is code of the standard library, module by module in the order of their names, and then as many tokens of
prose. As a control the same sorted contexts are also read in the order of the text, as a source is that cannot be
indexed: what is lost there is what drawing contexts across the corpus saves.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from final_fve import add_arguments, cells, header, heldout_rows, setting, spread, trained_fve
from report import command, markdown_table, refresh_block
from torch import Tensor

import monosema as ms
from monosema.data.config import TextSource
from monosema.data.documents import documents_from, open_source
from monosema.data.order import IndexedOrder

SHUFFLED, SORTED, IN_ORDER = "shuffled documents", "sorted documents", "sorted, contexts read in the text's order"
SPARE = 1.15
"""Tokens in the corpus for each one wanted: some documents are held out, some rows are dropped."""
HELDOUT_FRACTION = 0.06


def texts_of(texts: Iterable[str], n_tokens: float, model: ms.LanguageModel) -> list[str]:
    """The first texts that hold so many tokens together."""
    chosen: list[str] = []
    total = 0
    assert model.tokenizer is not None
    for text in texts:
        if total >= n_tokens:
            return chosen
        chosen.append(text)
        total += len(model.tokenizer(text, verbose=False)["input_ids"])
    raise SystemExit(f"the text holds {total:,} tokens, {n_tokens:,.0f} are needed; lower --tokens")


def corpus(model: ms.LanguageModel, prose: Path, n_tokens: int) -> list[str]:
    """Code sorted by the module's name, then prose, half of the tokens each."""
    modules = list(documents_from("stdlib"))
    random.Random(0).shuffle(modules)
    place = {module.text: module.name for module in modules}
    code = texts_of((module.text for module in modules), SPARE * n_tokens / 2, model)
    stories = texts_of(
        (document.text for document in documents_from(open_source(TextSource(source=prose)))),
        SPARE * n_tokens / 2,
        model,
    )
    return sorted(code, key=lambda text: place[text]) + stories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--prose", type=Path, required=True, help="text whose documents are parted by <|endoftext|>")
    parser.add_argument("--write-docs", action="store_true", help="refresh the table in docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = ms.load_model("builtin", dtype="float32")
    documents = corpus(model, options.prose, options.tokens)
    shuffled = random.Random(1).sample(documents, len(documents))
    split = {
        name: ms.load_tokens(texts, model.tokenizer, 256, heldout_fraction=HELDOUT_FRACTION)
        for name, texts in ((SHUFFLED, shuffled), (SORTED, documents), (IN_ORDER, documents))
    }
    heldout = heldout_rows(model, split[SORTED].heldout, options.site, options.heldout_tokens)

    def source(name: str, seed: int) -> ms.ActivationStream:
        stream = ms.ActivationStream(model, split[name], options.site, batch_size=options.batch_size, seed=seed)
        if name == IN_ORDER:
            order = stream._order
            assert isinstance(order, IndexedOrder)

            def in_order(epoch: int) -> Tensor:
                return torch.arange(order.n_contexts)

            order.of_epoch = in_order  # type: ignore[method-assign]
        return stream

    results: dict[str, list[float]] = {name: [] for name in split}
    for seed in range(options.seeds):
        for name, each in results.items():
            each.append(trained_fve(source(name, seed), heldout, seed, options))
        print(f"seed {seed}: { ({name: each[-1] for name, each in results.items()}) }", file=sys.stderr, flush=True)
    rows = [[name, *cells(each, results[SHUFFLED])] for name, each in results.items()]
    text = (
        f"{markdown_table(header('corpus', range(options.seeds)), rows)}\n\n"
        f"The seeds of the shuffled corpus are {spread(results[SHUFFLED]):.4f} apart. {len(documents):,} documents, "
        f"half of the tokens code and half prose. {setting(options, len(heldout))}.\n"
        f"Printed by `{command()}`."
    )
    print(text)
    if options.write_docs:
        refresh_block("sorted-corpus", text)


if __name__ == "__main__":
    main()
