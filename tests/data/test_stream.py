"""The activation stream against plain hooks, and its resumption at every offset."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from data_tiny import BOS, SITES, VOCAB, hooked_rows, random_split, tiny_llama, word_tokenizer, words
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from monosema.core.errors import ConfigError, DataError, UnknownNameError
from monosema.data import ActivationStream, Tokens, TokenSplit, load_tokens
from monosema.models import LanguageModel

BATCH, CHUNK = 10, 5


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """In float64: rows that go through it in batches of another shape differ far less than 1e-5.

    Two orders of a float64 sum of n ≤ 24 products differ by 2 · n · 2^-53 · Σ|a·b|, below 1e-12 here. The norms are in
    float32 whatever the model, and round by 2^-24 of values below 16.
    """
    return tiny_llama(torch.float64)


def make_stream(model, split=None, names=SITES[0], **options):
    options = {"batch_size": BATCH, "chunk_contexts": CHUNK, "model_batch_size": 2, "seed": 3, **options}
    return ActivationStream(model, split if split is not None else random_split(), names, **options)


def sorted_rows(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].argsort()]


def expected_rows(model, split: TokenSplit, names=SITES) -> Tensor:
    """Activations at the positions that hold no BOS, sites side by side, by plain hooks."""
    caught = hooked_rows(model, split.contexts)
    return torch.cat([caught[name] for name in names], dim=2)[split.contexts != BOS]


def through_a_file(state):
    """The state as a checkpoint keeps it: tensors in safetensors, the rest in JSON."""
    tensors = load_tensors(save_tensors({k: v for k, v in state.items() if isinstance(v, Tensor)}))
    return {**json.loads(json.dumps({k: v for k, v in state.items() if not isinstance(v, Tensor)})), **tensors}


def test_rows_are_a_permutation_of_the_hooked_activations_less_the_counted_rest(model):
    split = random_split()
    stream = make_stream(model, split, list(SITES))
    served = torch.cat(list(stream))
    expected = expected_rows(model, split)
    assert stream.d_in == stream.d_out == 32
    assert len(served) + stream.n_dropped == len(expected) == stream.n_rows
    assert len(served) == stream.n_rows_served()
    assert 0 < stream.n_dropped < 5 * BATCH
    # rows may be equal (the same token after the first one), so equal ones are counted
    wanted = (torch.cdist(expected.double(), expected.double()) < 1e-4).sum(0)
    found = (torch.cdist(served.double(), expected.double()) < 1e-4).sum(0)
    assert bool((found <= wanted).all()), "a row was served twice"
    assert float((found / wanted).sum()) == pytest.approx(len(served)), "a row served is none of the activations"
    assert not torch.allclose(served, expected[: len(served)]), "the rows are not shuffled"


def test_each_chunk_serves_its_own_contexts(model):
    split = random_split()
    stream = make_stream(model, split, batch_size=1)
    rows = list(stream)
    assert stream.n_dropped == 0
    assert torch.allclose(sorted_rows(torch.cat(rows)), sorted_rows(expected_rows(model, split, SITES[:1])), atol=1e-5)
    first = make_stream(model, split, batch_size=1)
    next(first)
    ids = first.state_dict()["chunk_ids"]
    n = int((ids != BOS).sum())
    chunk = TokenSplit(ids, frozenset({BOS}), "chunk")
    assert torch.allclose(
        sorted_rows(torch.cat(rows[:n])), sorted_rows(expected_rows(model, chunk, SITES[:1])), atol=1e-5
    )


def test_targets_lie_beside_the_inputs(model):
    split = random_split()
    stream = make_stream(model, split, SITES[0], targets=SITES[1])
    both = make_stream(model, split, list(SITES))
    assert (stream.d_in, stream.d_out, stream.layout.width) == (16, 16, 32)
    assert (stream.layout.read_name, stream.layout.write_name) == SITES
    assert all(torch.equal(a, b) for a, b in zip(stream, both, strict=True))
    assert stream.record()["targets"] == [SITES[1]]
    assert both.record()["targets"] is None


def test_the_harvest_batch_changes_no_value(model):
    one, many = (torch.cat(list(make_stream(model, model_batch_size=n))) for n in (1, 7))
    assert torch.allclose(one, many, atol=1e-5)


def test_order_depends_on_the_seed_only(model):
    torch.manual_seed(1)
    first = torch.cat(list(make_stream(model)))
    torch.manual_seed(2)
    again = torch.cat(list(make_stream(model)))
    other = torch.cat(list(make_stream(model, seed=4)))
    assert torch.equal(first, again)
    assert not torch.allclose(first[:BATCH], other[:BATCH])
    epochs = torch.cat(list(make_stream(model, epochs=2)))
    assert torch.equal(epochs[: len(first)], first)
    assert not torch.allclose(epochs[len(first) : len(first) + BATCH], first[:BATCH]), "each epoch has its own order"


def test_resuming_is_bit_exact_at_every_offset(model):
    whole = list(make_stream(model, epochs=2))
    stream = make_stream(model, epochs=2)
    n_batches = len(whole)
    assert n_batches > 16, "several chunks in each of two epochs"
    for done in range(n_batches + 1):
        resumed = make_stream(model, epochs=2, chunk_contexts=None)
        resumed.load_state_dict(through_a_file(stream.state_dict()))
        assert resumed.n_dropped == stream.n_dropped
        for batch in whole[done : done + 3]:  # reaches into the next chunk
            assert torch.equal(next(resumed), batch)
        assert resumed.state_dict().keys() == stream.state_dict().keys()
        following = next(stream, None)
        assert (following is None) == (done == n_batches)
    assert next(stream, None) is None
    ended = make_stream(model, epochs=2)
    ended.load_state_dict(through_a_file(stream.state_dict()))
    assert next(ended, None) is None
    assert ended.n_dropped == stream.n_dropped


def test_loading_a_state_into_a_used_stream_forgets_what_it_had(model):
    whole = list(make_stream(model))
    stream = make_stream(model)
    start = stream.state_dict()
    for _ in range(7):
        next(stream)
    middle = stream.state_dict()
    used = make_stream(model)
    list(used)
    used.load_state_dict(start)
    assert torch.equal(next(used), whole[0])
    used.load_state_dict(middle)
    assert torch.equal(next(used), whole[7])
    used.reset()
    assert torch.equal(torch.cat(list(used)), torch.cat(whole))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"split": random_split(special=5)}, "special_token_ids: "),
        ({"batch_size": 9}, "batch_size: 10 -> 9"),
        ({"seed": 8}, "seed: 3 -> 8"),
        ({"model_batch_size": 3}, "model_batch_size: 2 -> 3"),
        ({"dtype": "float32"}, "dtype: 'float64' -> 'float32'"),
        ({"names": SITES[1]}, "sites"),
    ],
)
def test_a_state_of_another_stream_is_refused_naming_what_differs(model, options, named):
    state = through_a_file(make_stream(model).state_dict())
    with pytest.raises(DataError, match=named) as caught:
        make_stream(model, **options).load_state_dict(state)
    assert str(caught.value).count("->") == 1


def test_another_text_is_told_in_words(model):
    def stream(texts=None, **options):
        texts = texts or [words(*(4 + (i * 5 + k) % 27 for k in range(12))) for i in range(40)]
        tokens = load_tokens(texts, **{"tokenizer": word_tokenizer(), "context_size": 8, **options})
        return ActivationStream(model, tokens, SITES[0], 10)

    def told(other, state=None):
        with pytest.raises(DataError, match="the text differs from the one this run was begun with: ") as caught:
            other.load_state_dict(through_a_file(stream().state_dict()) if state is None else state)
        assert "give the same text to go on, or another out= (--out) for a new run" in str(caught.value)
        assert other.split.fingerprint not in str(caught.value)
        return str(caught.value)

    texts = [words(*(4 + (i * 5 + k) % 27 for k in range(12))) for i in range(40)]
    assert "the number of documents was 40, now it is 39" in told(stream(texts[:39]))
    assert "its words are others, though it has as many" in told(stream(texts[::-1]))
    assert "the context size was 8, now it is 7" in told(stream(context_size=7))
    assert "the share held out was 0.02, now it is 0.3" in told(stream(heldout_fraction=0.3))
    renamed = word_tokenizer(eos_token="</s>", unk_token="<unk>")
    renamed.name_or_path = "renamed"
    message = told(stream(tokenizer=renamed))
    assert "the tokenizer was not known, now it is 'renamed'" in message
    assert "the tokens that frame documents was '[0, None, 0, None]', now it is '[1, None, 1, None]'" in message
    old = {key: value for key, value in stream(texts[:39]).state_dict().items() if key != "text"}
    assert "the run is of an older version" in told(stream(), old)
    stream(tokenizer=word_tokenizer()).load_state_dict(through_a_file(stream().state_dict()))


def test_preview_consumes_nothing(model):
    plain = list(make_stream(model))
    stream = make_stream(model)
    seen = stream.preview(25)
    assert torch.equal(seen, torch.cat(plain)[: len(seen)])
    assert 0 < len(seen) <= 25
    assert torch.equal(torch.cat(list(stream)), torch.cat(plain))
    restarted = make_stream(model)
    restarted.preview(25)
    restarted.load_state_dict(through_a_file(restarted.state_dict()))
    assert torch.equal(next(restarted), plain[0])
    with pytest.raises(DataError, match="exhausted"):
        stream.preview(25)


def test_a_run_the_corpus_cannot_serve_is_refused_with_the_numbers(model):
    stream = make_stream(model, chunk_contexts=None)
    available = stream.n_rows_served()
    stream.plan(available)
    with pytest.raises(DataError, match=rf"wants {2 * available:,} .* gives {available:,} in 1 epoch.*epochs=2"):
        stream.plan(2 * available)
    make_stream(model, chunk_contexts=None, epochs=2).plan(available + BATCH)
    with pytest.raises(DataError, match="usable tokens, one batch needs 5000"):
        make_stream(model, batch_size=5000, epochs=1000)  # no batch spans two epochs
    short = make_stream(model, batch_size=60, chunk_contexts=1, epochs=50)
    with pytest.raises(DataError, match="no chunk of 1 context fills a batch of 60 rows; raise chunk_contexts"):
        short.plan(60)


def test_the_plan_cuts_an_eighth_of_the_run_but_at_least_64_batches(model, caplog):
    split = random_split(n_contexts=400)
    rows = int((split.contexts != BOS).sum())
    with caplog.at_level(logging.INFO):
        stream = make_stream(model, split, batch_size=2, chunk_contexts=None)
        stream.plan(rows - rows % 64)
    chunk = stream.state_dict()["chunk_contexts"]
    assert chunk == round((rows - rows % 64) // 8 / (rows / 400))
    assert f"chunks of {chunk} contexts" in caplog.text
    small = make_stream(model, split, batch_size=8, chunk_contexts=None)
    small.plan(8)
    assert small.state_dict()["chunk_contexts"] == round(64 * 8 / (rows / 400))


def contexts_through(model, monkeypatch) -> list[int]:
    """How many contexts each forward pass from now on has."""
    passes: list[int] = []
    capture = model.capture

    def counted(tokens, *rest, **options):
        passes.append(len(tokens))
        return capture(tokens, *rest, **options)

    monkeypatch.setattr(model, "capture", counted)
    return passes


def take(stream, n_batches: int) -> Tensor:
    return torch.cat([next(stream) for _ in range(n_batches)])


@pytest.mark.parametrize("n_batches", [1, 2, 3, 5, 8])
def test_a_run_collects_at_most_a_context_more_than_it_needs(model, monkeypatch, n_batches):
    stream = make_stream(model)
    order = stream.context_order(0)
    rows = random_split().rows_in_contexts()[order]
    stream.plan(n_batches * BATCH)
    passes = contexts_through(model, monkeypatch)
    take(stream, n_batches)
    needed, left = 0, n_batches * BATCH
    for chunk in rows.split(CHUNK):  # by hand: whole chunks, and of the last one the first contexts that suffice
        in_batches = int(chunk.sum()) // BATCH * BATCH
        if in_batches >= left:
            needed += next(n for n in range(1, CHUNK + 1) if int(chunk[:n].sum()) >= left)
            break
        needed, left = needed + CHUNK, left - in_batches
    assert sum(passes) == stream.n_contexts_wanted == needed
    assert stream.rows_in_chunk <= CHUNK * 7


def test_whole_chunks_are_served_as_before_and_the_last_one_is_cut(model):
    whole = make_stream(model)
    first = int(random_split().rows_in_contexts()[whole.context_order(0)][:CHUNK].sum()) // BATCH
    cut = make_stream(model)
    cut.plan((first + 1) * BATCH)
    assert torch.equal(take(cut, first), take(whole, first)), "a chunk that is needed in full does not change"
    last = next(cut)
    assert len(cut.state_dict()["chunk_ids"]) < CHUNK
    following = list(cut)  # whoever goes on is served whole chunks of the rest, and no context twice
    assert len(following) > 0
    assert len(torch.cat([last, *following])) + cut.n_dropped + first * BATCH == cut.n_rows
    assert cut.state_dict()["position"] == 24


def test_a_cut_chunk_resumes_to_the_bit(model):
    def planned():
        stream = make_stream(model, epochs=2)
        stream.plan(7 * BATCH)
        return stream

    whole, stream = take(planned(), 7).split(BATCH), planned()
    for done in range(7):
        for resumed in (planned(), make_stream(model, epochs=2)):  # the state says for how many rows it is cut
            resumed.load_state_dict(through_a_file(stream.state_dict()))
            assert torch.equal(take(resumed, 7 - done), torch.cat(whole[done:]))
        next(stream)


def test_a_run_begun_with_whole_chunks_goes_on_with_them(model):
    whole = list(make_stream(model))
    old = make_stream(model)
    next(old)
    state = through_a_file(old.state_dict())
    del state["cut_to"]  # as older versions wrote it
    resumed = make_stream(model)
    resumed.plan(7 * BATCH)
    resumed.load_state_dict(state)
    assert torch.equal(take(resumed, 6), torch.cat(whole[1:7]))


def test_a_run_that_fits_in_one_chunk_previews_the_rows_it_trains_on(model, monkeypatch):
    stream = make_stream(model, chunk_contexts=None)
    stream.plan(3 * BATCH)
    passes = contexts_through(model, monkeypatch)
    seen = stream.preview(10_000)
    assert torch.equal(take(stream, 3), seen[: 3 * BATCH])
    assert sum(passes) == stream.n_contexts_wanted < 24
    assert 3 * BATCH <= len(seen) < 3 * BATCH + 8


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"epochs": 0}, {"model_batch_size": 0}, {"chunk_contexts": 0}])
def test_counts_below_one_are_refused(model, options):
    with pytest.raises(ConfigError, match="at least 1"):
        make_stream(model, **options)


def test_unknown_sites_offer_the_nearest_and_no_site_is_refused(model):
    with pytest.raises(UnknownNameError, match=r"did you mean .*blocks\.0\.hook_resid_post"):
        make_stream(model, names="blocks.0.hook_resid_pots")
    with pytest.raises(ConfigError, match="at least one site"):
        make_stream(model, names=[])


def test_rows_come_in_the_asked_dtype(model):
    base = next(make_stream(model))
    assert base.dtype == torch.float64
    assert torch.equal(next(make_stream(model, dtype="float32")), base.float())
    assert torch.equal(next(make_stream(model, dtype="bfloat16")), base.bfloat16())
    low = next(make_stream(tiny_llama(torch.bfloat16)))
    assert low.dtype == torch.bfloat16


def test_activations_that_are_not_finite_name_the_site():
    broken = tiny_llama()
    with torch.no_grad():
        broken.hf.model.embed_tokens.weight[VOCAB - 1] = float("inf")
    contexts = torch.full((6, 8), VOCAB - 1, dtype=torch.int32)
    with pytest.raises(DataError, match=rf"at {SITES[0]} are not finite in chunk 0; load the model in another dtype"):
        next(make_stream(broken, TokenSplit(contexts, frozenset({BOS}), "train")))


def test_the_record_is_json_and_says_what_was_read(model):
    split = random_split()
    tokens = Tokens(split, split, {"source": "words", "context_size": 8})
    record = make_stream(model, tokens).record()
    assert json.loads(json.dumps(record)) == record
    assert record["hook_names"] == [SITES[0]]
    assert record["tokens"]["fingerprint"] == split.fingerprint
    assert (record["tokens"]["source"], record["tokens"]["split"]) == ("words", "train")
    assert (record["batch_size"], record["seed"], record["chunk_contexts"]) == (BATCH, 3, CHUNK)
