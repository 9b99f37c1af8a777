"""Taps: where a site's value is read from a module's call, and how a new value is written back.

A tap hangs on one side of one module. Reading gives the site's value as [B, T, width]; writing makes the rest of the
forward pass see the new value, exactly as the site's residual equation says and nothing else (an edit of ``resid_mid``
moves the attention branch's contribution, so both the skip path and the next norm see it; an edit of a norm's output
never reaches the skip path). A tap that cannot write exactly has none.

Shape letters: B batch, T token, D d_model, W a site's width, H heads, K head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from monosema.core.errors import UserError
from monosema.models.calls import ModuleCall, Side
from monosema.models.norms import NormRule

LAST_RANK = 1_000
"""Rank of taps that must see a module's side after every named site there."""


class Tap(ABC):
    """One way to read (and perhaps write) one side of one module.

    ``rank`` orders taps on the same side of the same module by the order of the computation; ``needs`` are taps whose
    current values reading requires, because they lie in earlier modules.
    """

    needs: tuple[Tap, ...] = ()

    def __init__(self, module: nn.Module, side: Side, rank: int) -> None:
        self.module = module
        self.side: Side = side
        self.rank = rank

    @abstractmethod
    def read(self, call: ModuleCall, needed: Sequence[Tensor]) -> Tensor:
        """The site's value, [B, T, W]; ``needed`` are the values of ``needs``."""

    def write(self, call: ModuleCall, old: Tensor, new: Tensor) -> None:
        """Make the forward pass continue as if the site's value were ``new``; ``old`` is what ``read`` gave."""
        raise AssertionError(f"{type(self).__name__} is read-only; the site said so")


@final
class WholeTap(Tap):
    """The activation itself, times a constant: value = factor · activation."""

    def __init__(self, module: nn.Module, side: Side, rank: int, factor: float = 1.0) -> None:
        super().__init__(module, side, rank)
        self.factor = factor

    def read(self, call: ModuleCall, needed: Sequence[Tensor]) -> Tensor:
        return call.activation if self.factor == 1.0 else call.activation * self.factor

    def write(self, call: ModuleCall, old: Tensor, new: Tensor) -> None:
        # With a factor, as a delta: dividing would change the bits of a value that no edit changed.
        call.activation = new if self.factor == 1.0 else call.activation + (new - old) / self.factor


@final
class FlatTap(Tap):
    """Any module's activation [B, T, ...], flattened to [B, T, W]: sites named by module path."""

    def read(self, call: ModuleCall, needed: Sequence[Tensor]) -> Tensor:
        if call.activation.dim() < 3:
            raise UserError(
                f"{type(self.module).__name__} carries a tensor of shape {list(call.activation.shape)}; "
                "only [batch, token, ...] activations are sites"
            )
        return call.activation.flatten(2)

    def write(self, call: ModuleCall, old: Tensor, new: Tensor) -> None:
        call.activation = new.reshape(call.activation.shape)


@final
class ColumnsTap(Tap):
    """Some columns of a module's output: the query, key or value part of a fused projection."""

    def __init__(self, module: nn.Module, rank: int, columns_W: Tensor) -> None:
        super().__init__(module, "out", rank)
        self.columns_W = columns_W

    def read(self, call: ModuleCall, needed: Sequence[Tensor]) -> Tensor:
        return call.activation.index_select(-1, self.columns_W.to(call.activation.device))

    def write(self, call: ModuleCall, old: Tensor, new: Tensor) -> None:
        call.activation = call.activation.index_copy(-1, self.columns_W.to(new.device), new)


@final
class NormalizedTap(Tap):
    """A norm's normalised value before gain and bias; written as (new - old) · gain at the norm's output."""

    def __init__(self, rule: NormRule, rank: int) -> None:
        super().__init__(rule.module, "out", rank)
        self.rule = rule

    def read(self, call: ModuleCall, needed: Sequence[Tensor]) -> Tensor:
        return self.rule.normalized(call.input)

    def write(self, call: ModuleCall, old: Tensor, new: Tensor) -> None:
        call.activation = call.activation + ((new - old) * self.rule.gain()).to(call.activation.dtype)


@final
class ScaleTap(Tap):
    """A norm's scale, [B, T, 1]; read-only."""

    def __init__(self, rule: NormRule, rank: int) -> None:
        super().__init__(rule.module, "out", rank)
        self.rule = rule

    def read(self, call: ModuleCall, needed: Sequence[Tensor]) -> Tensor:
        return self.rule.scale(call.input).to(call.input.dtype)


@final
class ResidMidTap(Tap):
    """The stream between attention and MLP, resid_pre + factor · branch; written through the attention's branch.

    Reading it where the branch ends, and not at the next norm's input, is what makes the write exact: the norm and
    the skip path both receive the sum that the block forms afterwards.
    """

    def __init__(self, branch: nn.Module, block: nn.Module, rank: int, factor: float) -> None:
        super().__init__(branch, "out", rank)
        self.needs = (WholeTap(block, "in", LAST_RANK + 1),)
        self.factor = factor

    def read(self, call: ModuleCall, needed: Sequence[Tensor]) -> Tensor:
        (resid_pre_BTD,) = needed
        contribution_BTD = call.activation if self.factor == 1.0 else call.activation * self.factor
        return resid_pre_BTD.to(contribution_BTD.device) + contribution_BTD

    def write(self, call: ModuleCall, old: Tensor, new: Tensor) -> None:
        delta_BTD = new - old
        call.activation = call.activation + (delta_BTD if self.factor == 1.0 else delta_BTD / self.factor)


@final
class HeadResultTap(Tap):
    """What each head adds before the output bias: z_BTHK · W_O_HKD, flattened to [B, T, H·D]; read-only."""

    def __init__(self, output_projection: nn.Module, rank: int, n_heads: int) -> None:
        super().__init__(output_projection, "in", rank)
        self.n_heads = n_heads

    def read(self, call: ModuleCall, needed: Sequence[Tensor]) -> Tensor:
        z_BTHK = call.activation.unflatten(-1, (self.n_heads, -1))
        W_O_HKD = projection_matrix(self.module).unflatten(0, (self.n_heads, -1))
        return torch.einsum("bthk,hkd->bthd", z_BTHK, W_O_HKD).flatten(2)


@final
class PatternTap(Tap):
    """Attention weights after the softmax, [B, H, T, T], as eager attention returns them; read-only."""

    def __init__(self, attention: nn.Module, rank: int) -> None:
        super().__init__(attention, "out", rank)

    def read(self, call: ModuleCall, needed: Sequence[Tensor]) -> Tensor:
        outputs = call.output if isinstance(call.output, (tuple, list)) else (call.output,)
        for output in outputs[1:]:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] == output.shape[-2]:
                return output
        raise UserError(
            f"{type(self.module).__name__} returned no attention weights; some transformers versions return them only "
            "with load_model(..., forward_kwargs={'output_attentions': True})"
        )


def projection_size(module: nn.Module) -> tuple[int, int] | None:
    """(input width, output width) of a linear map, transformers' ``Conv1D`` included; ``None`` for other modules."""
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(features[0], int) and isinstance(features[1], int):
        return features[0], features[1]
    if type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):
        return module.weight.shape[0], module.weight.shape[1]
    return None


def projection_matrix(module: nn.Module) -> Tensor:
    """The weight of a linear map as [input width, output width]."""
    weight = module.weight
    size = projection_size(module)
    if not isinstance(weight, Tensor) or size is None or sorted(weight.shape) != sorted(size):
        raise UserError(f"the weight of {type(module).__name__} is not a plain matrix (a quantised model?)")
    return weight if type(module).__name__ == "Conv1D" else weight.T
