"""One forward pass with the inputs and outputs of chosen modules written down: what the map is checked against.

Deliberately independent of the taps, so that a wrong tap cannot agree with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monosema.models.calls import ModuleCall


@dataclass(frozen=True, kw_only=True)
class Record:
    """What went into and came out of a module at its first call; ``None`` where that is not an activation."""

    input: Tensor | None
    """The activation among the arguments."""
    output: Tensor | None
    """The output, or the first tensor of an output tuple."""


def trace(modules: Iterable[nn.Module], run: Callable[[], Any]) -> dict[nn.Module, Record]:
    """Run ``run()`` without gradients and record the first call of each module; modules never called are missing."""
    records: dict[nn.Module, Record] = {}
    inputs: dict[nn.Module, Tensor | None] = {}

    # The input is copied before the module runs and the output right after: some blocks add in place.
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.setdefault(module, _copy(ModuleCall(module, "in", args, kwargs).find_input()))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module not in records:
            found = ModuleCall(module, "out", args, kwargs, output).find_output()
            records[module] = Record(input=inputs.get(module), output=_copy(found))

    handles = []
    try:
        for module in dict.fromkeys(modules):
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return records


def _copy(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().clone()


def agree(actual: Tensor | None, expected: Tensor | None, *, slack: float = 16.0, size: Tensor | None = None) -> bool:
    """Whether two activations are equal up to rounding.

    The allowed root-mean-square difference is ``slack`` rounding errors of the dtype, relative per token to ``size``
    (default ``expected``): for a sum, the sum of its terms' sizes, since that is what rounding is proportional to. The
    dtype counts as float32 at best, because norms and residual additions of float64 models often run in float32.
    """
    if actual is None or expected is None or actual.shape != expected.shape:
        return False
    eps = max(torch.finfo(dtype).eps for dtype in (actual.dtype, expected.dtype, torch.float32))
    actual64, expected64 = actual.cpu().double(), expected.cpu().double()
    size = rms(expected64) if size is None else size
    return bool((rms(actual64 - expected64) <= slack * eps * size + 1e-30).all())


def is_output_of(norm: Record | None, value: Tensor | None) -> bool:
    """Whether ``value`` is what a norm returned, bit for bit: nothing was added after it."""
    output = None if norm is None else norm.output
    return value is not None and output is not None and value.shape == output.shape and torch.equal(value, output)


def rms(x: Tensor) -> Tensor:
    """Root mean square over the last dimension, in float64 on the CPU."""
    return x.cpu().double().pow(2).mean(-1).sqrt()


def differ(first: Tensor, second: Tensor) -> bool:
    """Whether rows of one batch differ by more than the rounding of different matrix-product tilings."""
    allowed = min(64 * torch.finfo(first.dtype).eps, 0.02)
    return bool((rms(first - second) > allowed * rms(second)).any())


def gated_error(config: Any, gate: Tensor | None, up: Tensor | None, post: Tensor | None) -> float:
    """The relative error of ``post = activation(gate) · up``, with the activation the configuration names.

    Meant for telling ``gate`` from ``up``: configurations sometimes name a variant of the activation (exact or tanh
    GELU), which costs a thousandth, while the wrong order costs most of the value. 1.0 where nothing can be said.
    """
    from transformers.activations import ACT2FN

    names = (getattr(config, name, None) for name in ("hidden_activation", "hidden_act", "activation_function"))
    name = next((name for name in names if isinstance(name, str) and name in ACT2FN), None)
    if name is None or gate is None or up is None or post is None or not gate.shape == up.shape == post.shape:
        return 1.0
    with torch.no_grad():
        error = rms(ACT2FN[name](gate) * up - post)
    return float(error.mean() / (rms(post).mean() + 1e-30))
