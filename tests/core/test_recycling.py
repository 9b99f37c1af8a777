"""Memory is lent again when its last view is gone, and never before."""

from __future__ import annotations

import torch

from monosema.core.recycling import Recycler


def test_memory_is_lent_again_once_no_view_of_it_lives() -> None:
    recycler = Recycler()
    first = recycler.take(64)
    place = first.data_ptr()
    view = first.view(torch.int32)[3:5]
    del first
    second = recycler.take(64)
    assert second.data_ptr() != place  # the view still holds it
    view.fill_(7)
    second.zero_()
    assert view.tolist() == [7, 7]
    del view
    assert recycler.take(64).data_ptr() == place


def test_autograd_and_lists_hold_what_they_hold() -> None:
    recycler = Recycler()
    batches = [recycler.take(16).view(torch.float32).fill_(float(n)) for n in range(9)]  # more than are kept
    assert [batch.tolist() for batch in batches] == [[float(n)] * 4 for n in range(9)]
    weight = torch.ones(4, requires_grad=True)
    loss = (weight * batches.pop(0)).sum()
    assert recycler.take(16).fill_(9) is not None
    loss.backward()
    assert weight.grad is not None and weight.grad.tolist() == [0.0] * 4


def test_another_size_is_new_memory() -> None:
    recycler = Recycler()
    place = recycler.take(64).data_ptr()
    other = recycler.take(128)
    assert len(other) == 128 and recycler.take(128).data_ptr() != other.data_ptr()
    assert recycler.take(64).data_ptr() is not None and place
