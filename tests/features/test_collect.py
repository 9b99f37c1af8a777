"""``collect_features``: every number against a hand computation or the dense path."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from features_tiny import (
    SITE,
    WIDTH,
    dense_activations,
    known_coder,
    known_model,
    known_tokens,
    random_coder,
    random_tokens,
    tiny_llama,
)

from monosema.coders import SAE, ReLU, TopK, Transcoder
from monosema.core.errors import ConfigError, DataError, ShapeError, UnknownNameError
from monosema.data import Tokens, TokenSplit
from monosema.evaluation import evaluate
from monosema.features import FeatureStore, collect_features, windows


def test_numbers_by_hand(known_store: FeatureStore):
    # 14 tokens are usable; latent 0 has 1, 2 and 4 three times each, latent 1 has 0.5 three times, latent 2 five 3s
    numbers = known_store.numbers
    assert numbers.n_tokens == 14
    assert numbers.count.tolist() == [9, 3, 5, 0]
    assert numbers.density.tolist() == [9 / 14, 3 / 14, 5 / 14, 0]
    assert numbers.maximum.tolist() == [4, 0.5, 3, 0]
    assert numbers.mean.tolist() == [21 / 9, 0.5, 3, 0]
    # five bins: 4 < 5 * 1, 0.5 < 5 * 0.125, 3 < 5 * 1, each the smallest power of two
    assert numbers.bin_width.tolist() == [1, 0.125, 1, 0]
    assert numbers.histogram.tolist() == [[0, 3, 3, 0, 3], [0, 0, 0, 0, 3], [0, 0, 0, 5, 0], [0] * 5]


def test_contexts_by_hand(known_store: FeatureStore):
    first, second = known_store[0].contexts
    assert (first.context_id, first.position, first.maximum) == (0, 3, 4)  # equal maxima: the earlier context first
    assert (second.context_id, second.position, second.maximum) == (1, 1, 4)  # and the earlier position
    assert first.values.tolist() == [0, 1, 2, 4, 1, 0]  # special tokens hold 100
    assert second.values.tolist() == [0, 4, 4, 2, 2, 1]
    assert first.token_ids.tolist() == [0, 1, 2, 3, 1, 0]
    assert [(c.context_id, c.position) for c in known_store[1].contexts] == [(0, 2), (1, 3)]
    assert [(c.context_id, c.position) for c in known_store[2].contexts] == [(2, 1)]
    assert known_store[3].contexts == ()


def test_logits_by_an_independent_path(known_store: FeatureStore):
    hf, coder = known_model().hf, known_coder()
    with torch.no_grad():
        logits = (coder.W_dec * hf.model.norm.weight) @ hf.lm_head.weight.T
    for latent in range(4):
        top = known_store[latent].top_logits
        bottom = known_store[latent].bottom_logits
        assert top is not None
        assert bottom is not None
        expected = sorted(enumerate(logits[latent].tolist()), key=lambda pair: -pair[1])
        assert [effect.token_id for effect in top] == [token for token, _ in expected[:3]]
        assert [effect.token_id for effect in bottom] == [token for token, _ in expected[::-1][:3]]
        assert [effect.value for effect in top] == pytest.approx([value for _, value in expected[:3]], rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_everything_equals_the_dense_path_for_any_batch_size(batch_size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(windows, "_COMPACT_FROM", 50)  # the pool of entries is thinned out again and again
    coder, model, tokens = random_coder(), tiny_llama(50), random_tokens()
    store = collect_features(coder, model, tokens, contexts_per_latent=3, batch_size=batch_size, progress=False)
    dense = dense_activations(coder, model, tokens).float()
    assert store.numbers.n_tokens == 40 * 10
    assert torch.equal(store.numbers.count, (dense > 0).sum((0, 1)))
    torch.testing.assert_close(store.numbers.maximum, dense.amax((0, 1)))
    peaks, places = dense.max(dim=1)
    for latent in range(coder.d_sae):
        feature = store[latent]
        ranked = sorted(range(40), key=lambda context: (-float(peaks[context, latent]), context))
        expected = [context for context in ranked[:3] if peaks[context, latent] > 0]
        assert [context.context_id for context in feature.contexts] == expected
        assert len(set(expected)) == len(expected)
        for context in feature.contexts:
            assert context.position == int(places[context.context_id, latent])
            torch.testing.assert_close(context.values, dense[context.context_id, :, latent])
        counts = [0] * 30
        for value in dense[..., latent].flatten().double().tolist():
            if value > 0:
                counts[int(value / feature.histogram.bin_width)] += 1
        assert list(feature.histogram.counts) == counts


def test_n_tokens_are_whole_contexts_spread_over_the_split():
    coder, model, tokens = random_coder(), tiny_llama(50), random_tokens()
    store = collect_features(coder, model, tokens, n_tokens=25, progress=False)  # 3 contexts of 12
    chosen = [0, 13, 26]
    alone = TokenSplit(tokens.contexts[chosen], frozenset({0}), "heldout")
    alone = collect_features(coder, model, alone, progress=False)
    assert store.texts.context.tolist() == chosen
    assert torch.equal(store.texts.token_ids, tokens.contexts[chosen])
    for latent in store.alive.tolist():
        found = [(each.context_id, each.position) for each in store[latent].contexts]
        assert found == [(chosen[each.context_id], each.position) for each in alone[latent].contexts]
    assert store.provenance.n_contexts == 3
    assert store.provenance.n_special_positions == 6
    assert torch.equal(store.numbers.count, alone.numbers.count)
    everything = collect_features(coder, model, tokens, n_tokens=None, progress=False)
    assert everything.provenance.n_contexts == 40


@pytest.mark.parametrize("n_tokens", [25, 100, None])
def test_densities_are_those_of_the_report(n_tokens: int | None):
    model, tokens = tiny_llama(50), random_tokens()
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[7] *= 1000  # outlying at the residual stream, not at the MLP's input
    transcoder = Transcoder(WIDTH, WIDTH, 48, activation=TopK(k=2), dtype="float64")
    transcoder.bind("blocks.0.mlp.hook_in", SITE, {})
    for coder in (random_coder(k=1), transcoder):
        report = evaluate(coder, model, tokens, n_tokens=n_tokens, losses=False, progress=False)
        store = collect_features(coder, model, tokens, n_tokens=n_tokens, progress=False)
        assert store.numbers.n_tokens == report.n_tokens
        assert store.provenance.n_outlier_positions == report.n_outlier_rows
        assert report.firing_density is not None
        assert torch.equal(store.numbers.density, report.firing_density.to(torch.float64))
        assert 1 - len(store) / store.d_sae == report.dead_fraction
    assert n_tokens is not None or store.provenance.n_outlier_positions > 0


def test_tokens_give_their_heldout_split():
    train = TokenSplit(torch.ones(4, 12, dtype=torch.int32), frozenset({0}), "train")
    store = collect_features(random_coder(), tiny_llama(50), Tokens(train, random_tokens(), {}), progress=False)
    assert store.provenance.split == "heldout"
    assert store.provenance.tokens_fingerprint == random_tokens().fingerprint


def test_special_tokens_may_be_read_where_the_split_says_so():
    everything = TokenSplit(known_tokens().contexts, frozenset(), "heldout")
    store = collect_features(known_coder(), known_model(), everything, outlier_norm_multiple=None, progress=False)
    assert store.numbers.n_tokens == 18
    assert store.numbers.maximum.tolist() == [100, 100, 3, 100]


@pytest.mark.parametrize("site", ["blocks.0.mlp.hook_in", "blocks.0.ln1.hook_normalized", "blocks.0.attn.hook_z"])
def test_a_site_outside_the_residual_stream_has_no_logits(site: str):
    store = collect_features(random_coder(site), tiny_llama(50), random_tokens(), progress=False)
    assert store.logits is None
    assert store[5].top_logits is None
    assert site in str(store[5].logits_note)
    assert "is not a site of the residual stream" in str(store[5])


def test_a_transcoder_has_the_logits_of_what_it_writes():
    coder = Transcoder(WIDTH, WIDTH, 24, activation=ReLU(), dtype="float64")
    coder.bind("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out", {})
    store = collect_features(coder, tiny_llama(50), random_tokens(), progress=False)
    assert store.logits is not None
    assert store.provenance.site == "blocks.0.mlp.hook_in → blocks.0.hook_mlp_out (tiny-llama)"


def test_sites_side_by_side():
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    coder, model, tokens = SAE(2 * WIDTH, 20, activation=ReLU(), dtype="float64"), tiny_llama(50), random_tokens()
    coder.bind("+".join(names), "+".join(names), {})
    store = collect_features(coder, model, tokens, progress=False)
    values = model.capture(tokens.contexts.long(), names)
    with torch.no_grad():
        dense = coder.encode(torch.cat([values[name] for name in names], dim=-1))
    dense = dense.masked_fill(tokens.special_mask(tokens.contexts).unsqueeze(-1), 0)
    assert torch.equal(store.numbers.count, (dense > 0).sum((0, 1)))
    assert store.logits is None


def test_nothing_of_model_or_coder_changes():
    coder, model = random_coder(), tiny_llama(50)
    coder.train()
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    random_state = torch.get_rng_state()
    collect_features(coder, model, random_tokens(), progress=False)
    assert coder.training
    assert all(torch.equal(value, before[name]) for name, value in coder.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


def test_bfloat16_coders_are_read():
    store = collect_features(random_coder().to(torch.bfloat16), tiny_llama(50), random_tokens(), progress=False)
    assert len(store) > 0


def test_input_that_cannot_be_read_is_refused():
    coder, model, tokens = random_coder(), tiny_llama(50), random_tokens()
    for option in ("n_tokens", "contexts_per_latent", "batch_size", "n_histogram_bins", "n_logits"):
        with pytest.raises(ConfigError, match=f"{option} must be at least 1, got 0"):
            collect_features(coder, model, tokens, progress=False, **{option: 0})
    with pytest.raises(ConfigError, match="which site it reads"):
        collect_features(SAE(WIDTH, 8, activation=ReLU()), model, tokens)
    with pytest.raises(UnknownNameError, match="hook_resid_post"):
        collect_features(random_coder("blocks.0.hook_residpost"), model, tokens)
    with pytest.raises(ShapeError, match="d_in is 8"):
        collect_features(known_coder(SITE), model, tokens)
    with pytest.raises(DataError, match="holds no context"):
        collect_features(coder, model, TokenSplit(tokens.contexts[:0], frozenset(), "heldout"))
    with pytest.raises(ShapeError, match="longer than the 64 positions"):
        collect_features(coder, model, TokenSplit(tokens.contexts.repeat(1, 6), frozenset(), "heldout"))
    with pytest.raises(DataError, match="every token read is special"):
        collect_features(coder, model, TokenSplit(torch.zeros(2, 8, dtype=torch.int32), frozenset({0}), "heldout"))


def test_activations_that_cannot_be_ranked_are_refused(monkeypatch: pytest.MonkeyPatch):
    coder, model, tokens = random_coder(), tiny_llama(50), random_tokens()
    encode = type(coder).encode_sparse
    monkeypatch.setattr(
        type(coder), "encode_sparse", lambda self, x: (lambda found: found.with_values(-found.values))(encode(self, x))
    )
    with pytest.raises(DataError, match="negative activations"):
        collect_features(coder, model, tokens, progress=False)
    monkeypatch.undo()
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[7, 0] = torch.nan
    with pytest.raises(DataError, match=rf"read at '{SITE}', contexts 0 to 31, must be finite"):
        collect_features(coder, model, tokens, progress=False)


def test_a_model_without_a_tokenizer_shows_ids(known_store: FeatureStore):
    assert [span.text for span in known_store[0].contexts[0].spans] == ["⟨0⟩", "⟨1⟩", "⟨2⟩", "⟨3⟩", "⟨1⟩", "⟨0⟩"]


def test_ids_beyond_the_tokenizer_are_shown_as_numbers():
    tokenizer = SimpleNamespace(
        all_special_ids=[],
        convert_ids_to_tokens=lambda token: None if isinstance(token, int) else ["x"],
        encode=lambda text, add_special_tokens: [1],
        decode=lambda tokens, **options: "x",
    )
    model = known_model()
    model.tokenizer = tokenizer
    store = collect_features(known_coder(), model, known_tokens(), progress=False)
    assert store[0].contexts[0].spans[1].text == "⟨1⟩"


def test_positions_of_outlying_norm_count_nowhere():
    tokens = random_tokens()
    model, coder = tiny_llama(50), random_coder()
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[7] *= 1000
    everything = collect_features(coder, model, tokens, outlier_norm_multiple=None, progress=False)
    store = collect_features(coder, model, tokens, progress=False)
    n = store.provenance.n_outlier_positions
    assert n == int((tokens.contexts == 7).sum()) > 0 and everything.provenance.n_outlier_positions == 0
    assert store.numbers.n_tokens == everything.numbers.n_tokens - n
    at = [c.token_ids[c.position] for latent in store for c in latent.contexts]
    assert 7 not in at and len(at) > 0
