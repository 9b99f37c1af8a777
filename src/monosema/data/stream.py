"""``ActivationStream``: shuffled rows of activations, collected chunk by chunk, resumable to the bit.

Contexts come in an order drawn across the corpus by the seed. A chunk is a run of whole contexts: they go through the
model, rows at special tokens are left out, the rest is permuted by a random stream keyed by (seed, chunk number) and
served in batches. Nothing is carried over to the next chunk; rows that fill no batch are dropped and counted. The state
is therefore a position and one chunk's token ids, whatever the run's length. The last chunk of a run whose length is
known has only the contexts that its batches need. Rows with a norm far above the median are left out: an ordinary row
of the chunk is served in the place of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from monosema.core.compiling import CompileMode
from monosema.core.config import differences, to_plain
from monosema.core.devices import dtype_name, parse_dtype
from monosema.core.errors import ConfigError, DataError
from monosema.core.facts import Facts, shown_as_facts
from monosema.core.peers import explains_options
from monosema.core.progress import Progress
from monosema.core.words import counted
from monosema.data.chunks import Chunk, ChunkContexts, ChunkMaker, default_chunk_contexts
from monosema.data.config import IN_MEMORY
from monosema.data.contexts import Contexts, contexts_needed
from monosema.data.harvest import Harvester
from monosema.data.identity import describe_text, other_text
from monosema.data.named_models import NamedModels
from monosema.data.order import ContextOrder, IndexedOrder, indexed
from monosema.data.outliers import DEFAULT_MULTIPLE, MEDIAN_ROWS, NormRule, OutlierFilter, outlier_record
from monosema.data.prefetch import Prefetch, check_prefetch, prefetches
from monosema.data.rebuild import models_again, override, override_models, recorded_options, tokens_again
from monosema.data.sites import RowLayout
from monosema.data.stream_config import Autocast, StreamOptions
from monosema.data.streamed import Place, StreamedOrder, StreamedSplit
from monosema.data.tokens import Tokens, TokenSplit
from monosema.models import LanguageModel


@runtime_checkable
class Recorded(Protocol):
    """Anything that recorded what it was trained with: a coder."""

    metadata: dict[str, Any]


def check_sizes(
    batch_size: int, model_batch_size: int, epochs: int, chunk_contexts: int | None, chunk_bytes: int | None
) -> None:
    """Raise ``ConfigError`` for a size of a stream that is out of range."""
    if batch_size < 1 or model_batch_size < 1 or epochs < 1:
        raise ConfigError("batch_size, model_batch_size and epochs must be at least 1")
    if chunk_contexts is not None and chunk_bytes is not None:
        raise ConfigError("give chunk_contexts or chunk_bytes, not both")
    if chunk_contexts is not None and chunk_contexts < 1:
        raise ConfigError(f"chunk_contexts must be at least 1, got {chunk_contexts}")


@explains_options
@shown_as_facts
class ActivationStream:
    """Iterates over tensors ``[batch_size, d]``: activations of one or several sites side by side.

    With several models by name, ``{"base": a, "chat": b}``, a site is written ``name:hook`` (``chat:hook_embed``,
    ``base:model.layers.5.mlp:in``) and every model reads the same token ids: rows for a crosscoder between models.

    Args:
        model: the language model, or several by name that share a vocabulary; widths may differ.
        tokens: a corpus (its training side is read) or one side of it.
        hook_names: the site read, or several.
        targets: the site written, where it is another one (a transcoder's MLP output); None for an SAE.
        batch_size: rows in a batch.
        seed: decides the order of contexts and rows, and nothing else does.
        epochs: how often the corpus may be read; a longer run is refused with the numbers.
        chunk_contexts: contexts in a chunk; by default whole contexts for at most 1 GiB and an eighth of the run, but
            at least 64 batches.
        chunk_bytes: instead, how large a chunk of activations may be.
        model_batch_size: contexts in one forward pass.
        dtype: type of the rows; the model's own by default (of several models', the one that holds them all).
        autocast: type of a float32 model's products while rows are made (``bfloat16``, ``float16``).
        compile: mode of ``torch.compile`` for its blocks meanwhile (``default``, ``max-autotune``).
        buffer_device: where a chunk is kept; the (first) model's device by default.
        prefetch: collect the next chunk in a thread of its own while one is served, which takes the memory of a second
            chunk and changes no row; by default where all models are on GPUs and ``compile`` is not given.
        outlier_norm_multiple: a row whose norm at a site exceeds so many times the median there is left out (``data``'s
            ``outliers``); the median is of the first 4,096 rows. None leaves no row out.

    ``outliers`` has the rule and counts the rows left out.

    Raises:
        ConfigError: options that are out of range or contradict each other, models whose vocabularies differ (it says
            in what), a site that names no model.
        UnknownNameError: an unknown model or hook name; the nearest are offered.
        DataError: the corpus is too short for one batch, or activations are not finite (raised while iterating).
    """

    seekable = True

    def __init__(
        self,
        model: LanguageModel | Mapping[str, LanguageModel],
        tokens: Tokens | TokenSplit | StreamedSplit,
        hook_names: str | Sequence[str],
        batch_size: int = 2048,
        *,
        targets: str | Sequence[str] | None = None,
        seed: int = 0,
        epochs: int = 1,
        chunk_contexts: int | None = None,
        chunk_bytes: int | None = None,
        model_batch_size: int = 32,
        dtype: str | torch.dtype | None = None,
        autocast: Autocast | None = None,
        compile: CompileMode | None = None,
        buffer_device: str | torch.device | None = None,
        prefetch: bool | None = None,
        outlier_norm_multiple: float | None = DEFAULT_MULTIPLE,
    ):
        check_sizes(batch_size, model_batch_size, epochs, chunk_contexts, chunk_bytes)
        check_prefetch(prefetch, compile)
        self._named_models = NamedModels(model)
        self._weights = self._named_models.fingerprints()
        self.tokens = tokens if isinstance(tokens, Tokens) else None
        if self.tokens is not None:
            self.tokens.require_vocabulary_of(self._named_models.first)
        self.split: TokenSplit | StreamedSplit = tokens.train if isinstance(tokens, Tokens) else tokens
        self.tokens_record = dict(tokens.record) if isinstance(tokens, Tokens) else {"source": IN_MEMORY}
        self._text = describe_text(self.tokens_record, self.split, self.tokens and self.tokens.tokenizer)
        reads = self._named_models.sites(hook_names)
        self.layout = RowLayout(reads, reads if targets is None else self._named_models.sites(targets))
        self.autocast, self.compile = autocast, compile
        self._harvester = Harvester(self._named_models, self.layout.hook_names, autocast, compile)
        self.batch_size, self.seed, self.epochs = batch_size, seed, epochs
        self.model_batch_size = model_batch_size
        self.dtype = self._named_models.dtype if dtype is None else parse_dtype(dtype)
        self.buffer_device = torch.device(self.model.device if buffer_device is None else buffer_device)
        self.n_dropped = 0
        self.outliers = OutlierFilter(outlier_norm_multiple, self.layout)
        if isinstance(self.split, TokenSplit):
            for part in self.split.parts():
                self._harvester.check(part)
        self._options = StreamOptions(
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
            model_batch_size=model_batch_size,
            dtype=dtype_name(self.dtype),
            autocast=autocast,
            compile=compile,
            prefetch=prefetch,
        )
        self._order = _order_of(self.split, seed, epochs)
        if self._order.n_rows is not None and self._order.n_rows < batch_size * epochs:
            raise DataError(  # more epochs do not help: no batch crosses from one into the next
                f"the corpus has {counted(self._order.n_rows // epochs, 'usable token')}, one batch needs "
                f"{batch_size}; give more "
                "text or a smaller batch_size"
            )
        if chunk_bytes is not None:
            chunk_contexts = max(1, int(chunk_bytes / (self._row_bytes * self._order.rows_per_context)))
        self._chunk_contexts = chunk_contexts
        self._n_rows_wanted: int | None = None
        self._cut_to: int | None = None
        """Rows of the run that the last chunk is cut for; None where every chunk is whole."""
        self.shows_progress = False
        """Whether a bar is shown, or lines, while a chunk is collected that is waited for."""
        self._maker = ChunkMaker(
            harvester=self._harvester,
            layout=self.layout,
            rule=self.split.rule,
            seed=seed,
            model_batch_size=model_batch_size,
            dtype=self.dtype,
            device=self.buffer_device,
        )
        devices = [each.device for each in self._harvester.models]
        self._prefetch: Prefetch[Chunk] | None = None
        if prefetches(prefetch, compile, devices):
            self._prefetch = Prefetch(self._harvester.models, [self.buffer_device, *devices])
        self._place: Place = self._order.start
        self._chunk_number = self._offset = self._n_begun = 0
        self._chunk: Chunk | None = None

    @classmethod
    def from_coder(
        cls,
        coder: Recorded,
        *,
        model: LanguageModel | Mapping[str, LanguageModel] | None = None,
        tokens: Tokens | TokenSplit | StreamedSplit | None = None,
        trust_remote_code: bool = False,
        **overrides: Any,
    ) -> ActivationStream:
        """The stream a dictionary was trained on, at its start, rebuilt from what the dictionary recorded.

        Its chunks are whole; after ``plan`` with the run's tokens the last one is cut as it was in the run.
        ``model`` and ``tokens`` are loaded unless given; ``overrides`` replace recorded stream options and are
        logged. ``trust_remote_code`` lets code of the recorded model's repository run, whatever the dictionary says
        about it. Raises ``ConfigError`` for a recorded option that is not taken from a file,
        ``FileError`` where the dictionary records no model or text.
        """
        recorded, consent = recorded_options(coder.metadata), {"trust_remote_code": True} if trust_remote_code else {}
        model = model if model is not None else models_again(override_models(recorded, consent))
        if tokens is None:
            tokens = tokens_again(override(recorded["tokens"], {}, "tokens"), NamedModels(model).first)
        return cls(model, tokens, **override(recorded["stream"], overrides, "stream"))

    # -- what it is

    @property
    def model(self) -> LanguageModel:
        """The language model; the first of several."""
        return self._named_models.first

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The language models by name; empty for a single model, which has none."""
        return self._named_models.by_name

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.layout.d_in

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.layout.d_out

    @property
    def n_rows(self) -> int | None:
        """Rows the stream can serve over all its epochs, before what falls off at the ends of chunks; None for text
        that is read as it is needed."""
        return self._order.n_rows

    @property
    def device(self) -> torch.device:
        return self.buffer_device

    def plan(self, n_rows: int) -> None:
        """Fix the chunk size for a run of ``n_rows``; refuse a run the corpus cannot serve.

        The last chunk of the run has as many contexts as its batches need and no more; whoever goes on reading after it
        gets whole chunks. Called by ``train`` before the first batch; without it the corpus itself is the run.
        """
        if self._chunk_contexts is None:
            self._chunk_contexts = self._default_chunk_contexts(n_rows)
        self._n_rows_wanted = n_rows
        self._cut_to = -(-n_rows // self.batch_size) * self.batch_size
        if self._order.n_rows is None:
            return
        available = self.n_rows_served()
        if available == 0:
            raise DataError(
                f"no chunk of {counted(self._chunk_contexts, 'context')} fills a batch of "
                f"{counted(self.batch_size, 'row')}; "
                "raise chunk_contexts or lower batch_size"
            )
        if n_rows > available:
            wanted = -(-n_rows * self.epochs // available)
            raise DataError(
                f"the run wants {counted(n_rows, 'training token')}, the corpus gives {available:,} in "
                f"{counted(self.epochs, 'epoch')}; set "
                f"epochs={max(wanted, self.epochs + 1)}, lower tokens to {available}, or give more text"
            )

    @property
    def n_contexts_wanted(self) -> int:
        """Contexts that the run of ``plan`` takes through the model; without one, all of every epoch."""
        size, wanted = self.chunk_size, self._cut_to
        if self._order.n_contexts is None:
            in_a_chunk = max(self.batch_size, self._in_batches(round(size * self._order.rows_per_context)))
            n_whole, rest = divmod(wanted or 0, in_a_chunk)
            return n_whole * size + math.ceil(rest / self._order.rows_per_context)
        n_contexts = n_rows = 0
        for rows in self._chunk_rows():
            if wanted is not None and n_rows >= wanted:
                break
            n_contexts += len(rows) if wanted is None else contexts_needed(rows, wanted - n_rows)
            n_rows += self._in_batches(int(rows.sum()))
        return n_contexts

    @property
    def rows_in_chunk(self) -> int:
        """About how many rows the largest chunk holds."""
        size = self.chunk_size if self._cut_to is None else min(self.chunk_size, self.n_contexts_wanted)
        return round(size * self._order.rows_per_context)

    def n_rows_served(self) -> int:
        """Rows served in full batches over all epochs; of text whose length is known."""
        return sum(self._in_batches(int(rows.sum())) for rows in self._chunk_rows())

    def record(self) -> dict[str, Any]:
        """What a dictionary trained on this stream records about it, JSON-able."""
        return {
            **self.layout.record(),
            **replace(self._options, chunk_contexts=self._chunk_contexts).record(),
            **outlier_record(self.outliers.rule),
            **self._named_models.record(),
            "tokens": {**self.tokens_record, "fingerprint": self.split.fingerprint, "split": self.split.name},
        }

    def _facts(self) -> Facts:
        named = self.models or {"": self.model}
        return Facts(
            f"ActivationStream: batches of {counted(self.batch_size, 'row')}",
            {
                **self.layout.facts,
                "model": ", ".join(f"{key}: {model.name}" if key else model.name for key, model in named.items()),
                "text": f"{self.tokens_record['source']}, {self.split.name} side, contexts of "
                f"{counted(self.split.context_size, 'token')}",
                "rows": "as many as the text gives" if self.n_rows is None else f"{self.n_rows:,} at most",
                "epochs": self.epochs,
                "seed": self.seed,
                "type": f"{dtype_name(self.dtype)} on {self.device}",
            },
        )

    # -- iteration

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        while self._chunk is None or self._offset + self.batch_size > len(self._chunk.order):
            if self._chunk is not None:
                self.n_dropped += len(self._chunk.order) - self._offset
                self._release_chunk()
            if not self._begin_chunk():
                raise StopIteration
        self._look_ahead()
        self._offset += self.batch_size
        start, stop = self._offset - self.batch_size, self._offset
        self.outliers.n_left_out += self._chunk.n_left_out(start, stop)
        return self._chunk.served(start, stop)

    def preview(self, n_rows: int) -> Tensor:
        """At most ``n_rows`` rows of the first chunk, without consuming them (for data-dependent initial values)."""
        if self._chunk is None and not self._begin_chunk():
            raise DataError("the stream is exhausted")
        assert self._chunk is not None
        return self._chunk.served(0, n_rows)

    def reset(self) -> None:
        """Start over from the first batch."""
        self._forget()
        self._place = self._order.start
        self._chunk_number = self._n_begun = self.n_dropped = self.outliers.n_left_out = 0

    def norm_rule(self) -> NormRule | None:
        """Which rows are left out; the first chunk is made where that is not known yet. None where none are."""
        if self.outliers.needs_rows:
            self.preview(1)
        return self.outliers.rule

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Position, plan and the current chunk's token ids; enough to continue bit for bit."""
        text = Contexts(torch.zeros(0, dtype=torch.int32)) if self._chunk is None else self._chunk.contexts.text
        return {
            **self._place,
            "chunk_number": self._chunk_number,
            "n_begun": self._n_begun,
            "cut_to": self._cut_to,
            "chunk_contexts": self.chunk_size,
            "offset": self._offset,
            "n_dropped": self.n_dropped,
            "in_chunk": self._chunk is not None,
            "chunk_ids": text.ids,
            "chunk_documents": torch.zeros(0, dtype=torch.int16) if text.documents is None else text.documents,
            "outliers": self.outliers.state_dict(),
            "identity": self._identity(),
            "text": self._text,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; ``DataError`` where corpus, weights or options are others."""
        begun, here = state["identity"], self._identity()
        if begun.get("fingerprint") != here["fingerprint"]:
            before = state.get("text")
            raise DataError(other_text(before if isinstance(before, Mapping) else None, self._text))
        if None in (begun.get("weights"), here["weights"]):  # states of old have no fingerprints of weights
            begun, here = ({**each, "weights": None} for each in (begun, here))
        different = differences(begun, here)
        if different:
            raise DataError("the stream's state belongs to another stream; it differs in " + "; ".join(different))
        self._forget()
        self._chunk_contexts = int(state["chunk_contexts"])
        self._place = {key: state[key] for key in self._order.start}
        self._chunk_number, self.n_dropped = int(state["chunk_number"]), int(state["n_dropped"])
        self._n_begun = int(state["n_begun"])
        cut_to = state.get("cut_to")  # a run of an older version has whole chunks only, and goes on with them
        self._cut_to = None if cut_to is None else int(cut_to)
        self.outliers.load_state_dict(state.get("outliers", {}))
        if state["in_chunk"]:
            documents = state["chunk_documents"]
            text = Contexts(state["chunk_ids"], documents if documents.shape == state["chunk_ids"].shape else None)
            if isinstance(self._order, IndexedOrder) and not self._order.ends_at(self._place, text):
                raise DataError(
                    "the stream's state is damaged: its token ids are not those of the text at its position; go back "
                    "to an older checkpoint"
                )
            self._chunk = self._ordinary(self._make(ChunkContexts(self._chunk_number - 1, self._place, text)))
            self._offset = int(state["offset"])

    def _identity(self) -> dict[str, Any]:
        names = {key: model.name for key, model in self.models.items()}
        return {
            "fingerprint": self.split.fingerprint,
            **({"models": names} if names else {}),
            "weights": self._weights,
            "special_token_ids": sorted(self.split.rule.special_token_ids),
            **({} if self.split.rule.positions.is_everything else {"positions": to_plain(self.split.rule.positions)}),
            "sites": list(self.layout.hook_names),
            **self._options.identity(),
            **({} if self.outliers.multiple is None else {"outlier_norm_multiple": self.outliers.multiple}),
        }

    # -- chunks

    def first_contexts(self) -> Contexts:
        """Those of the first chunk; nothing of the stream is consumed. ``DataError`` where there are none."""
        drawn = self._order.after(self._order.start, self.chunk_size)
        if drawn is None:
            raise DataError("the stream is exhausted")
        return drawn[0]

    def make_chunk(self, contexts: ChunkContexts, progress: Callable[[int], None] = lambda n_rows: None) -> Chunk:
        """The rows of any contexts as a chunk of this stream; nothing of the stream is consumed. ``progress`` is told
        the rows of every forward pass."""
        return self._maker.make(contexts, progress=progress)

    @property
    def chunk_size(self) -> int:
        """Contexts in a chunk."""
        if self._chunk_contexts is None:
            self._chunk_contexts = self._default_chunk_contexts(self.n_rows)
        return self._chunk_contexts

    @property
    def _row_bytes(self) -> int:
        return self.layout.width * torch.empty((), dtype=self.dtype).element_size()

    def _default_chunk_contexts(self, n_rows: int | None) -> int:
        return default_chunk_contexts(
            n_rows,
            self.batch_size,
            n_contexts=self._order.n_contexts,
            rows_per_context=self._order.rows_per_context,
            row_bytes=self._row_bytes,
        )

    def context_order(self, epoch: int) -> Tensor:
        """The order in which the text's contexts are read in an epoch; ``DataError`` for text that is
        read as it is needed."""
        return IndexedOrder(indexed(self.split), self.seed, self.epochs).of_epoch(epoch)

    def _in_batches(self, n_rows: int) -> int:
        return n_rows // self.batch_size * self.batch_size

    def _chunk_rows(self) -> Iterator[Tensor]:
        """Rows in each context of each whole chunk, over all epochs; of text whose length is known."""
        for rows in self._order.context_rows():
            yield from rows.split(self.chunk_size)

    def _next_contexts(self) -> ChunkContexts | None:
        """Those of the chunk after the current one, as many as the run needs; None at the end."""
        left = 0 if self._cut_to is None else self._cut_to - self._n_begun
        drawn = self._order.after(self._place, self.chunk_size, left if left > 0 else None)
        return None if drawn is None else ChunkContexts(self._chunk_number, drawn[1], drawn[0])

    def _begin_chunk(self) -> bool:
        chunk = None if self._prefetch is None else self._prefetch.take()
        if chunk is None or self._harvester.depends_on_caller:
            chunk, contexts = None, self._next_contexts()
            if contexts is None:
                return False
            chunk = self._make(contexts)
        self._chunk, self._offset = self._ordinary(chunk), 0
        self._place, self._chunk_number = chunk.contexts.end, chunk.contexts.number + 1
        self._n_begun += self._in_batches(len(chunk.order))
        return True

    def _make(self, contexts: ChunkContexts) -> Chunk:
        n_rows = int(self.split.rule.row_mask(contexts.text).sum())
        with Progress("collecting activations", n_rows, enabled=self.shows_progress, passing=True) as bar:
            return self._maker.make(contexts, progress=bar.advance)

    def _ordinary(self, chunk: Chunk) -> Chunk:
        """``chunk`` without outliers; the first one says what these are."""
        if self.outliers.needs_rows:
            # in small pieces: the allocator would keep large ones
            n, part = min(MEDIAN_ROWS, len(chunk.order)), MEDIAN_ROWS // 16
            self.outliers.estimate(chunk.served(start, min(start + part, n)) for start in range(0, n, part))
        return chunk.without(self.outliers.outliers(chunk.rows))

    def _look_ahead(self) -> None:
        """Start collecting the next chunk, unless it is under way or the run ends before it."""
        if self._prefetch is None or not self._prefetch.is_idle or self._harvester.depends_on_caller:
            return
        if self._n_rows_wanted is not None and self._n_begun >= self._n_rows_wanted:
            return
        contexts = self._next_contexts()
        if contexts is not None:
            self._prefetch.start(partial(self._maker.make, contexts))

    def _release_chunk(self) -> None:
        self._chunk = None
        self._offset = 0

    def _forget(self) -> None:
        """Drop the current chunk and the one in the making."""
        if self._prefetch is not None:
            self._prefetch.drop()
        self._release_chunk()


def _order_of(split: TokenSplit | StreamedSplit, seed: int, epochs: int) -> ContextOrder:
    kind = StreamedOrder if isinstance(split, StreamedSplit) else IndexedOrder
    return kind(split, seed, epochs)  # type: ignore[arg-type]
