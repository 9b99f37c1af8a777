"""Features of padded contexts, of documents kept apart and of chosen positions."""

from __future__ import annotations

import torch
from features_tiny import BOS, SITE, random_coder, random_tokens, tiny_llama

from monosema.data import Positions, TokenSplit
from monosema.features import collect_features


def test_padding_is_no_token_and_in_no_example():
    coder, model, tokens = random_coder(), tiny_llama(50), random_tokens()
    size = tokens.context_size
    lengths = 3 + torch.arange(len(tokens)) % (size - 3)
    numbers = torch.where(torch.arange(size) < lengths[:, None], 0, -1)
    ids = torch.where(numbers < 0, 9, tokens.contexts).to(torch.int32)
    store = collect_features(coder, model, TokenSplit(ids, tokens.special_token_ids, "heldout", documents=numbers))
    count, n_tokens = torch.zeros(coder.d_sae, dtype=torch.int64), 0
    for row, length in zip(ids.long(), lengths.tolist(), strict=True):
        text = row[None, :length]
        dense = coder.encode(model.capture(text, [SITE])[SITE][0].to(coder.dtype))[text[0] != BOS]
        count, n_tokens = count + (dense > 0).sum(0), n_tokens + len(dense)
    assert store.numbers.n_tokens == n_tokens
    assert torch.equal(store.numbers.count, count)
    place = {int(number): at for at, number in enumerate(store.texts.context)}
    for number, at in place.items():
        assert (store.texts.text_ids[at, lengths[number] :] == -1).all(), "padding is not shown"
        assert (store.texts.text_ids[at, : lengths[number]] >= 0).any()


def test_documents_kept_apart_and_chosen_positions():
    coder, model, tokens = random_coder(), tiny_llama(50), random_tokens()
    size = tokens.context_size
    halves = (torch.arange(size) >= size // 2).int().expand(len(tokens), size).contiguous()
    split = TokenSplit(
        tokens.contexts, tokens.special_token_ids, "heldout", documents=halves, positions=Positions(start=1, stop=-1)
    )
    store = collect_features(coder, model, split)
    ids = tokens.contexts.long()
    parts = [model.capture(half, [SITE])[SITE] for half in (ids[:, : size // 2], ids[:, size // 2 :])]
    dense = coder.encode(torch.cat(parts, dim=1).to(coder.dtype))
    kept = ids != BOS
    kept[:, [0, -1]] = False
    assert torch.equal(store.numbers.count, (dense[kept] > 0).sum(0))
