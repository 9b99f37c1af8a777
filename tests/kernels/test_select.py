"""Exact selection: against the dense twins, against Python's sort, under ties and hostile guesses and values."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from coder_cases import assert_canonical, entries_of, largest, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosema.kernels import (
    Latents,
    Scores,
    entries_above,
    latents_from_dense,
    latents_from_mask,
    reference,
    select_above,
    select_batch_top_k,
    select_batch_top_k_of_parts,
    select_row_top_k,
)

DTYPES = [torch.float32, torch.bfloat16]
# the two-stage search needs d_sae a multiple of 32 and at least 2·(k + 1) blocks
SHAPES = [(0, 8), (1, 1), (5, 1), (3, 31), (4, 32), (4, 64), (3, 256), (2, 2048), (7, 2080)]


def same(a: Latents, b: Latents) -> None:
    assert torch.equal(a.crow, b.crow)
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.values, b.values)
    assert (a.d_sae, a.leading_shape, a.values.dtype) == (b.d_sae, b.leading_shape, b.values.dtype)


def pre_of(n_tokens: int, d_sae: int, kind: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    pre = randn(n_tokens, d_sae, seed=seed, dtype=dtype)
    if kind == "tied":  # few distinct values, zero among them
        pre = (2 * pre).round()
    elif kind == "mostly negative":
        pre = pre - 2
    elif kind == "negative rows":
        pre[::2] = -pre[::2].abs()
    elif kind == "all equal":
        pre = torch.ones_like(pre)
    elif kind == "nothing positive":
        pre = -pre.abs()
    return pre


KINDS = ["normal", "tied", "mostly negative", "negative rows", "all equal", "nothing positive"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_row_top_k_equals_its_twin(shape: tuple[int, int], dtype: torch.dtype, kind: str) -> None:
    pre = pre_of(*shape, kind, dtype)
    for k in sorted({1, 3, 31, max(1, shape[1] - 1), shape[1], shape[1] + 5}):
        latents = select_row_top_k(pre, k)
        assert_canonical(latents)
        same(latents, reference.row_top_k_dense(pre, k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_top_k_equals_its_twin_whatever_the_guess(shape: tuple[int, int], dtype: torch.dtype, kind: str) -> None:
    pre = pre_of(*shape, kind, dtype)
    for n_entries in (0, 1, 7, pre.numel() // 2, pre.numel()):
        expected = reference.batch_top_k_dense(pre, n_entries)
        full = expected.nnz == n_entries and n_entries > 0
        assert_canonical(expected)
        for guess in (None, -1.0, 0.0, 1e-30, 0.4, 3.0, math.inf, math.nan):
            latents, least = select_batch_top_k(pre, n_entries, guess)
            same(latents, expected)
            assert least.shape == ()
            assert float(least) == (float(expected.values.min()) if full else 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_choose_and_activations_come_back(
    shape: tuple[int, int], dtype: torch.dtype, kind: str, signed: bool, weighted: bool
) -> None:
    pre = pre_of(*shape, kind, dtype)
    weights = randn(shape[1], seed=9, dtype=dtype).abs() + 0.1 if weighted else None
    scores = Scores(pre, weights, signed).dense()
    by_hand = (pre.abs() if signed else pre) * (1 if weights is None else weights)
    same(latents_from_dense(scores), latents_from_dense(by_hand))

    def check(latents: Latents, expected: Latents) -> None:
        assert_canonical(latents)
        same(latents, expected.with_values(pre[expected.rows(), expected.indices.long()]))

    for k in sorted({1, 3, max(1, shape[1] // 64), shape[1]}):
        check(select_row_top_k(pre, k, weights, signed=signed), reference.row_top_k_dense(scores, k))
    for n_entries in (0, 1, 7, pre.numel() // 2):
        expected = reference.batch_top_k_dense(scores, n_entries)
        for guess in (None, 0.4, 3.0):
            latents, least = select_batch_top_k(pre, n_entries, guess, weights, signed=signed)
            check(latents, expected)
            full = expected.nnz == n_entries and n_entries > 0
            assert float(least) == (float(expected.values.min()) if full else 0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5), st.sampled_from([1, 3, 32, 128]), st.integers(1, 12), st.integers(0, 10_000),
    st.sampled_from([1, 2, 50]),
)  # fmt: skip
def test_both_follow_the_one_order_of_ties(n_tokens: int, d_sae: int, k: int, seed: int, levels: int) -> None:
    pre = (randn(n_tokens, d_sae, seed=seed) * levels).round()
    entries = entries_of(pre)
    latents, _ = select_batch_top_k(pre, min(k * n_tokens, pre.numel()))
    found = zip(latents.rows().tolist(), latents.indices.tolist(), strict=True)
    assert sorted(found) == sorted(largest(entries, min(k * n_tokens, pre.numel())))
    rows = select_row_top_k(pre, k)
    found = zip(rows.rows().tolist(), rows.indices.tolist(), strict=True)
    by_row = [largest([e for e in entries if e[1] == token], k) for token in range(n_tokens)]
    assert list(found) == [place for row in by_row for place in sorted(row)]


def test_hand_written_ties() -> None:
    pre = torch.tensor([[1.0, 2.0, 2.0, 0.0], [2.0, 1.0, 0.0, 3.0]])
    latents, least = select_batch_top_k(pre, 3)
    assert latents.to_dense().tolist() == [[0.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 3.0]]
    assert float(least) == 2.0
    assert select_row_top_k(pre, 1).to_dense().tolist() == [[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]]


def test_a_large_batch_is_searched_from_a_sample() -> None:
    pre = randn(64, 4096, seed=3, dtype=torch.float32)  # 262144 values: every fourth is sampled
    for n_entries in (0, 1, 100, 2048, 100_000, 262_144):
        same(select_batch_top_k(pre, n_entries)[0], reference.batch_top_k_dense(pre, n_entries))
    pre[:, ::4] = 100.0  # the sample sees the largest values only
    same(select_batch_top_k(pre, 70_000)[0], reference.batch_top_k_dense(pre, 70_000))
    pre[:, ::4] = -100.0  # the sample sees the smallest values only
    same(select_batch_top_k(pre, 70_000)[0], reference.batch_top_k_dense(pre, 70_000))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_a_guess_far_off_costs_few_passes(scale: float, sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    nonzero = Tensor.nonzero
    monkeypatch.setattr(Tensor, "nonzero", lambda self: passes.append(1) or nonzero(self))
    pre = sign * scale * randn(4, 64, seed=0).abs()
    for guess in (1e300, 1e30, 1.0, 1e-300):
        passes.clear()
        same(select_batch_top_k(pre, 8, guess)[0], reference.batch_top_k_dense(pre, 8))
        assert len(passes) <= 16


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("d_sae", [8, 256])
def test_non_finite_values_end_with_consistent_shapes(
    bad: float, share: float, d_sae: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, nonzero = itertools.count(1), Tensor.nonzero

    def counted(self: Tensor) -> Tensor:
        assert next(passes) <= 200, "the search does not end"
        return nonzero(self)

    monkeypatch.setattr(Tensor, "nonzero", counted)
    pre = randn(6, d_sae, seed=1)
    pre[randn(6, d_sae, seed=2).sigmoid() <= share] = bad
    pre[0, 0] = bad
    found = [select_row_top_k(pre, k) for k in (1, 3, d_sae)]
    for guess in (None, 0.5, math.inf, math.nan):
        found += [select_batch_top_k(pre, n, guess)[0] for n in (0, 1, 20, pre.numel())]
    found += [select_above(pre, 0.0), select_above(pre, torch.zeros(d_sae).double())]
    for latents in found:
        assert_canonical(latents)
        assert latents.n_tokens == 6
        assert not latents.values.isnan().any()
        assert bool((latents.values > 0).all())


def test_a_nan_is_never_selected_in_a_batch_and_takes_no_ones_place() -> None:
    pre = torch.tensor([[math.nan, 1.0, 2.0], [3.0, math.nan, -1.0]])
    latents, least = select_batch_top_k(pre, 2)
    assert latents.to_dense().tolist() == [[0.0, 0.0, 2.0], [3.0, 0.0, 0.0]]
    assert float(least) == 2.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 100.0])
def test_select_above(shape: tuple[int, int], dtype: torch.dtype, threshold: float) -> None:
    pre = pre_of(*shape, "tied", dtype)
    expected = torch.where((pre > threshold) & (pre > 0), pre, torch.zeros_like(pre))
    for given_as in (threshold, torch.full((shape[1],), threshold, dtype=dtype)):
        latents = select_above(pre, given_as)
        assert_canonical(latents)
        assert torch.equal(latents.to_dense(), expected)


def test_select_above_a_threshold_per_latent() -> None:
    pre = torch.tensor([[1.0, 1.0, 1.0], [0.5, -0.5, 3.0]])
    latents = select_above(pre, torch.tensor([0.5, -1.0, 1.0]))
    assert latents.to_dense().tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]]
    assert latents.indices.tolist() == [0, 1, 2]


def test_selection_leaves_the_input_alone_and_repeats_itself() -> None:
    pre = randn(5, 256, seed=1, dtype=torch.float32)
    kept = pre.clone()
    for select in (
        lambda: select_row_top_k(pre, 3),
        lambda: select_batch_top_k(pre, 15)[0],
        lambda: select_above(pre, 0.3),
    ):
        same(select(), select())
        assert torch.equal(pre, kept)


def test_pre_activations_that_are_not_contiguous() -> None:
    wide = randn(256, 6, seed=1)
    pre = wide.T
    same(select_row_top_k(pre, 3), reference.row_top_k_dense(pre.contiguous(), 3))
    same(select_batch_top_k(pre, 18)[0], reference.batch_top_k_dense(pre.contiguous(), 18))


@pytest.mark.parametrize("bound", [-0.5, 0.3, torch.linspace(-1, 1, 40)])
def test_entries_above_are_those_of_the_mask_whatever_their_sign(bound):
    pre = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    pre[1, 3] = math.nan
    found = entries_above(pre, bound)
    assert torch.equal(found.to_dense(), torch.where(pre > bound, pre, 0))


def test_a_part_of_the_entries_is_as_if_selected_by_itself():
    pre = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    found = entries_above(pre, -1.0)
    part, whole = found.where(found.values > 0.5, 2 * found.values), latents_from_mask(2 * pre, pre > 0.5)
    for name in ("crow", "indices", "values"):
        assert torch.equal(getattr(part, name), getattr(whole, name))
    assert found.where(found.values > 100, found.values).nnz == 0


def test_parts_are_asked_for_once_where_the_guess_is_low_enough() -> None:
    pre = randn(12, 96, seed=1)
    expected, least = select_batch_top_k(pre, 60)
    for size in (1, 5, 12):
        made = []

        def parts(size: int = size, made: list[int] = made) -> Iterator[Tensor]:
            for part in pre.split(size):
                made.append(len(part))
                yield part

        for guess, n_times in ((0.5 * float(least), 1), (10 * float(least), None), (None, None)):
            made.clear()
            latents, found = select_batch_top_k_of_parts(parts, (12, 96), 60, guess)
            same(latents, expected)
            assert float(found) == float(least)
            assert n_times is None or sum(made) == 12 * n_times
