"""Text that is read as it is needed: the pool, its places, and a stream over it."""

from __future__ import annotations

import json

import pytest
import torch
from data_tiny import BOS, SITES, random_split
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from monosema.core.errors import DataError
from monosema.data import ActivationStream, write_cache
from monosema.data.contexts import Contexts, RowRule
from monosema.data.streamed import POOL_CHUNKS, Block, StreamedOrder, StreamedSplit

SIZE = 8


class Text:
    """Contexts in blocks of three; remembers from where it was read."""

    def __init__(self, contexts: Tensor):
        self.contexts, self.opened, self.n_read = contexts, [], 0

    def __call__(self, seed, epoch, place):
        self.opened.append((epoch, place))
        start = 0 if place is None else place["at"]
        for at in range(start, len(self.contexts), 3):
            self.n_read += len(self.contexts[at : at + 3])
            yield Block(Contexts(self.contexts[at : at + 3]), {"at": at + 3})


def numbered(n: int) -> Tensor:
    """Contexts that hold nothing but their number."""
    return torch.arange(n, dtype=torch.int32).unsqueeze(1).expand(n, SIZE).contiguous()


def split_of(contexts: Tensor) -> tuple[StreamedSplit, Text]:
    text = Text(contexts)
    return StreamedSplit(text, SIZE, RowRule(frozenset({BOS})), "train", "abc", 7.0), text


def drawn(order: StreamedOrder, place, n: int) -> list[list[int]]:
    chunks = []
    while (following := order.after(place, n)) is not None:
        chunks.append(following[0].ids[:, 0].tolist())
        place = following[1]
    return chunks


def through_a_file(state):
    """The state as a checkpoint keeps it: tensors in safetensors, the rest in JSON."""
    tensors = load_tensors(save_tensors({k: v for k, v in state.items() if isinstance(v, Tensor)}))
    return {**json.loads(json.dumps({k: v for k, v in state.items() if not isinstance(v, Tensor)})), **tensors}


def test_every_context_is_drawn_once_an_epoch_in_an_order_of_the_seed():
    split, _ = split_of(numbered(100))
    orders = [StreamedOrder(split, seed, 2) for seed in (1, 1, 2)]
    first, again, other = (drawn(order, order.start, 4) for order in orders)
    assert first == again
    assert first != other
    flat = [number for chunk in first for number in chunk]
    assert sorted(flat[:100]) == sorted(flat[100:]) == list(range(100))
    assert flat[:100] != flat[100:], "each epoch has its own order"
    assert all(len(chunk) == 4 for chunk in first)


def test_a_chunk_is_drawn_from_a_pool_of_eight_chunks():
    split, text = split_of(numbered(1000))
    order = StreamedOrder(split, 0, 1)
    chunk, place = order.after(order.start, 5)
    assert text.n_read == 42, "blocks of three until 40 are there"
    assert len(place["pool"]) == 42 - 5
    assert max(chunk.ids[:, 0].tolist()) < 42
    chunks = drawn(StreamedOrder(split, 0, 1), order.start, 5)
    spread = torch.tensor([max(each) - min(each) for each in chunks[10:-10]]).float()
    assert spread.mean() > POOL_CHUNKS * 5 / 2, "contexts that follow one another in the text are torn apart"


def test_it_goes_on_from_any_place_without_reading_what_was_read():
    split, text = split_of(numbered(60))
    order = StreamedOrder(split, 3, 2)
    whole = drawn(order, order.start, 4)
    order, place = StreamedOrder(split, 3, 2), order.start
    for done in range(len(whole)):
        text.opened.clear()
        assert drawn(StreamedOrder(split, 3, 2), through_a_file(place), 4) == whole[done:]
        assert text.opened[0] == (place["epoch"], place["reader"])
        following = order.after(place, 4)
        assert following is not None
        place = following[1]
    assert order.after(place, 4) is None


def test_to_look_ahead_changes_nothing():
    split, text = split_of(numbered(60))
    order = StreamedOrder(split, 3, 1)
    first = order.after(order.start, 4)
    ahead = order.after(first[1], 4)
    again = order.after(first[1], 4)
    assert torch.equal(ahead[0].ids, again[0].ids)
    straight = StreamedOrder(split, 3, 1)
    text.opened.clear()
    drawn(straight, straight.start, 4)
    assert text.opened == [(0, None)], "read on from where it stands, the text is opened once"


def test_a_chunk_of_so_many_rows_is_the_start_of_the_whole_one_and_leaves_the_rest():
    split, _ = split_of(numbered(60))  # every position of a context is a row, but for the first context's
    order = StreamedOrder(split, 3, 1)
    whole, _ = order.after(order.start, 5)
    cut, place = StreamedOrder(split, 3, 1).after(order.start, 5, 2 * SIZE + 1)
    assert torch.equal(cut.ids, whole.ids[: 3 + int((whole.ids[:3] == BOS).any())])
    assert place["position"] == len(cut) < 5
    left = [number for chunk in drawn(order, place, 5) for number in chunk]
    assert sorted([*left, *cut.ids[:, 0].tolist()]) == list(range(60)), "no context is lost or drawn twice"


def test_a_run_of_known_length_cuts_its_last_chunk(model):
    split, _ = split_of(random_split(70).contexts)
    stream = ActivationStream(model, split, SITES[0], 10, chunk_contexts=40)
    stream.plan(30)
    assert stream.n_contexts_wanted == 5, "of 7 rows each, as the first documents have"
    for _ in range(3):
        next(stream)
    ids = stream.state_dict()["chunk_ids"]
    assert int((ids[:-1] != BOS).sum()) < 30 <= int((ids != BOS).sum())


def test_a_text_without_contexts_is_refused():
    split, _ = split_of(numbered(0))
    order = StreamedOrder(split, 0, 3)
    with pytest.raises(DataError, match="no training context"):
        order.after(order.start, 4)


def test_a_stream_over_it_serves_every_row_and_resumes_to_the_bit(model):
    contexts = random_split(70).contexts
    split, text = split_of(contexts)

    def make(**options):
        options = {"batch_size": 1, "chunk_contexts": 4, "model_batch_size": 2, "seed": 3, **options}
        return ActivationStream(model, split, SITES[0], **options)

    indexed = ActivationStream(model, random_split(70), SITES[0], 1, chunk_contexts=70)
    rows, expected = torch.cat(list(make())), torch.cat(list(indexed))
    assert rows.shape == expected.shape
    assert torch.allclose(rows.double().sum(0), expected.double().sum(0), atol=1e-3)
    whole = list(make(batch_size=10, epochs=2))
    stream = make(batch_size=10, epochs=2)
    for done in range(0, len(whole), 5):
        resumed = make(batch_size=10, epochs=2, chunk_contexts=None)
        text.n_read = 0
        resumed.load_state_dict(through_a_file(stream.state_dict()))
        assert text.n_read == 0, "the chunk that was being served is in the state"
        for batch in whole[done : done + 7]:
            assert torch.equal(next(resumed), batch)
        for _ in range(5):
            next(stream, None)
    stream.reset()
    assert torch.equal(next(stream), whole[0])


def test_its_length_is_not_known_beforehand(model, tmp_path):
    split, _ = split_of(random_split(70).contexts)
    stream = ActivationStream(model, split, SITES[0], 10)
    assert stream.n_rows is None
    stream.plan(10**9)
    assert stream.record()["tokens"]["fingerprint"] == "abc"
    with pytest.raises(DataError, match="pretokenize"):
        write_cache(stream, tmp_path / "c")


def test_what_is_prefetched_is_what_is_served_without(model):
    split, _ = split_of(random_split(70).contexts)
    plain, ahead = (
        ActivationStream(model, split, SITES[0], 10, chunk_contexts=4, seed=1, prefetch=each) for each in (False, True)
    )
    for batch in plain:
        assert torch.equal(batch, next(ahead))
        assert torch.equal(ahead.state_dict()["pool"], plain.state_dict()["pool"])
    assert next(ahead, None) is None
