"""Named random streams are independent of each other, of the order of use and of the machine."""

import pytest
import torch

from monosema.core.seeds import random_stream


def test_pinned_values() -> None:
    # the published numbers of every seed rest on these two
    assert torch.randint(10**9, (2,), generator=random_stream(0, "coder", "W_dec")).tolist() == [56496032, 302281988]
    assert torch.randint(10**9, (2,), generator=random_stream(7, "chunk", 3)).tolist() == [687433394, 736320260]


def test_same_key_same_stream_whatever_was_drawn_before() -> None:
    first = torch.rand(5, generator=random_stream(3, "a"))
    torch.rand(100, generator=random_stream(3, "b"))
    assert torch.equal(torch.rand(5, generator=random_stream(3, "a")), first)


@pytest.mark.parametrize(
    "other", [(1, "a", "b"), (0, "a"), (0, "b", "a"), (0, "ab"), (0, "a", "b", ""), (0, "a", "c"), (-1, "a", "b")]
)
def test_other_keys_give_other_streams(other: tuple[int | str, ...]) -> None:
    seed, *names = other
    got = torch.rand(20, generator=random_stream(int(seed), *names))
    assert not torch.isclose(got, torch.rand(20, generator=random_stream(0, "a", "b"))).any()


def test_streams_are_uncorrelated() -> None:
    streams = torch.stack([torch.randn(20_000, generator=random_stream(0, "chunk", i)) for i in range(6)])
    assert torch.allclose(torch.corrcoef(streams), torch.eye(6), atol=0.04)  # 5.6 standard errors


def test_large_and_negative_seeds() -> None:
    for seed in (2**63, -(2**70), 10**40):
        assert random_stream(seed, "a").initial_seed() >= 0


def test_it_is_a_cpu_generator() -> None:
    assert random_stream(0).device == torch.device("cpu")
