"""From text to packed contexts: ours beside the tokenizer's own batches and SAELens' live path, in one run.

    python tests/parity/environments.py                     # SAELens' environment, once
    python benchmarks/tokenising.py [--text FILE ...] [--documents N] [--rounds N] [--write-docs]

The text is the standard library and the files named; every system has the same documents in memory (SAELens in a
memory-mapped dataset, as it reads them) and the embedded model's tokenizer, a fast byte-level BPE, and keeps all
contexts. They take turns, and the figures are medians over rounds. SAELens runs in its own interpreter. The contexts
of both must be the same, token for token.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import ROOT, command, machine, markdown_table, n_processors, refresh_block

import monosema as ms
from monosema.data.config import TextSource
from monosema.data.documents import Document, documents_from, open_source
from monosema.data.order import indexed
from monosema.data.packing import PackingRule, pack
from monosema.data.tokenise import tokenise

HERE = Path(__file__).resolve().parent
PEER = ROOT / ".venv-saelens" / "bin" / "python"
BATCH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="*", default=[], help="further files of text")
    parser.add_argument("--documents", type=int, help="only the first so many of each")
    parser.add_argument("--context-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write-docs", action="store_true")
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer: Any = ms.load_model("builtin").tokenizer
    sources = [open_source(TextSource(source=name)) for name in ("stdlib", *given.text)]
    documents = [each for source in sources for each in documents_from(source, max_documents=given.documents)]
    texts = [document.text for document in documents]
    begin = tokenizer.bos_token_id
    rule = PackingRule(context_size=given.context_size, begin_context=begin, separator=begin)

    def own() -> int:
        starts = range(0, len(texts), BATCH)
        batches = (tokenizer(texts[i : i + BATCH], add_special_tokens=False)["input_ids"] for i in starts)
        return sum(len(row) for batch in batches for row in batch)

    def tokens_alone() -> int:
        return sum(len(each.tokens) for each in tokenise(documents, tokenizer))

    def packed() -> np.ndarray:
        return pack((each.tokens for each in tokenise(documents, tokenizer)), rule)

    def loaded() -> int:
        return indexed(ms.load_tokens(texts, tokenizer, given.context_size).train).n_contexts

    rows: dict[str, Callable[[], Any]] = {
        "the tokenizer's own batches, nothing packed": own,
        "monosema, tokens alone": tokens_alone,
        "monosema, packed": packed,
        "monosema, `load_tokens`: hashed, split and packed": loaded,
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as folder, Peer(Path(folder), tokenizer, documents, given.context_size) as peer:
        for _ in range(given.rounds + 1):  # the first warms up
            for name, work in rows.items():
                started = time.perf_counter()
                result = work()
                seconds[name].append(time.perf_counter() - started)
                if work is packed:
                    peer.check(result)
            peer.run()
    n_tokens = tokens_alone()
    seconds["SAELens, live"] = peer.seconds
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items() if each}
    text = _table(medians, n_tokens)
    n_characters = sum(map(len, texts))
    text += (
        f"\n\n{len(texts):,} documents, {n_characters / 1e6:.1f} M characters, {n_tokens / 1e6:.2f} M tokens; contexts "
        f"of {given.context_size}; {machine(n_processors())}; SAELens {peer.version}, its contexts equal to ours; "
        f"medians of {given.rounds} rounds.\nPrinted by `{command()}`."
    )
    print(text)
    if given.write_docs:
        refresh_block("tokenising", text)


def _table(medians: dict[str, float], n_tokens: int) -> str:
    names = list(medians)
    own, peer = medians[names[0]], medians.get("SAELens, live")
    header = ["from text to contexts", "M tokens/s", "of the tokenizer's own rate", "times SAELens"]
    rows = [
        [name, f"{n_tokens / each / 1e6:.2f}", f"{own / each:.2f}", f"{peer / each:.1f}" if peer else "not installed"]
        for name, each in medians.items()
    ]
    return markdown_table(header, rows)


class Peer:
    """SAELens' process, waiting for its next turn; nothing where it is not installed."""

    def __init__(self, folder: Path, tokenizer: Any, documents: list[Document], context_size: int) -> None:
        import datasets

        self.seconds: list[float] = []
        self.version = "not installed"
        self._contexts: np.ndarray | None = None
        self._process: subprocess.Popen[str] | None = None
        if not PEER.exists():
            print(f"SAELens is left out: no {PEER}; python tests/parity/environments.py makes it", file=sys.stderr)
            return
        tokenizer.save_pretrained(folder / "tokenizer")
        rows = datasets.Dataset.from_dict({"text": [document.text for document in documents]})
        rows.to_parquet(str(folder / "texts.parquet"))
        asked = {"tokenizer": str(folder / "tokenizer"), "texts": str(folder / "texts.parquet")}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [PEER, HERE / "tokenising_saelens.py", json.dumps({**asked, "context_size": context_size})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "HF_HUB_OFFLINE": "1"},
        )
        self.version = self._answer()["version"]

    def check(self, contexts: np.ndarray) -> None:
        """What the next turn's contexts must be."""
        self._contexts = contexts

    def run(self) -> None:
        """One turn; stops the benchmark where the contexts are others than ours."""
        if self._process is None:
            return
        assert self._process.stdin is not None and self._contexts is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer["sha256"] != hashlib.sha256(self._contexts.tobytes()).hexdigest():
            raise SystemExit(f"SAELens made {answer['contexts']} other contexts than our {len(self._contexts)}")
        self.seconds.append(answer["seconds"])

    def _answer(self) -> Any:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("SAELens' process ended; what it said is above")
        return json.loads(line)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()


if __name__ == "__main__":
    main()
