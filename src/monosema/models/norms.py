"""What a norm module computes, measured rather than believed: centring, scale, gain and bias.

Every norm here is ``y = x̂ · gain + bias`` with ``x̂ = (x - c) / scale`` and ``scale = sqrt(mean((x - c)²) + eps)``;
``c`` is the mean of x (LayerNorm) or 0 (RMSNorm), and the gain is ``weight``, ``1 + weight`` (Gemma) or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

EPS_NAMES = ("eps", "variance_epsilon", "epsilon")


@dataclass(frozen=True, kw_only=True)
class NormRule:
    """The equation of one norm module."""

    module: nn.Module
    """The module; its parameters are read anew at every use."""
    centred: bool
    """LayerNorm subtracts the mean, RMSNorm does not."""
    gain_offset: float
    """Added to ``weight`` to give the gain: 1 for Gemma, else 0."""
    eps: float
    """Added to the mean square."""

    def scale(self, x: Tensor) -> Tensor:
        """``sqrt(mean((x - c)²) + eps)``, shape [..., 1], in at least float32."""
        return (self._centre(x).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def normalized(self, x: Tensor) -> Tensor:
        """``(x - c) / scale`` of shape [..., d_model], before gain and bias, in x's dtype."""
        return (self._centre(x) / self.scale(x)).to(x.dtype)

    def gain(self) -> Tensor | float:
        """The factor of each coordinate, shape [d_model], or 1.0 for a norm without parameters."""
        weight = getattr(self.module, "weight", None)
        if weight is None:
            return 1.0
        return weight + self.gain_offset if self.gain_offset else weight

    def output(self, x: Tensor) -> Tensor:
        """``normalized(x) · gain + bias``, in at least float32: what the module should return."""
        bias = getattr(self.module, "bias", None)
        y = self._centre(x) / self.scale(x) * self.gain()
        return y if bias is None else y + bias

    def _centre(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x - x.mean(-1, keepdim=True) if self.centred else x


def is_norm(module: nn.Module, width: int | None = None) -> bool:
    """Whether a module looks like a norm over vectors (of ``width``): a leaf with at most a gain and a bias."""
    if any(True for _ in module.children()) or "norm" not in type(module).__name__.lower():
        return False
    return width is None or all(parameter.shape == (width,) for parameter in module.parameters())


def measure_norm(module: nn.Module, x: Tensor, y: Tensor) -> NormRule | None:
    """The rule that turns a recorded input ``x`` into the recorded output ``y``; ``None`` if none does.

    A module's class decides where it can (``nn.LayerNorm`` centres, ``…RMSNorm`` does not); otherwise the candidate
    with the smallest error, so that nearly centred inputs in low precision do not mislead.
    """
    eps = _eps(module)
    if eps is None:
        return None
    if isinstance(module, nn.LayerNorm):
        centrings: tuple[bool, ...] = (True,)
    elif "rms" in type(module).__name__.lower():
        centrings = (False,)
    else:
        centrings = (True, False)
    rules = [
        NormRule(module=module, centred=centred, gain_offset=offset, eps=eps)
        for centred in centrings
        for offset in (0.0, 1.0)
    ]
    with torch.no_grad():
        errors = [float((rule.output(x) - y).abs().max()) for rule in rules]
    best = min(range(len(rules)), key=errors.__getitem__)
    # The factor covers modules that round to the model's dtype between the division and the gain, and Gemma-like
    # float32 arithmetic inside a float64 model.
    eps_dtype = max(torch.finfo(y.dtype).eps, torch.finfo(torch.float32).eps)
    return rules[best] if errors[best] <= 16 * eps_dtype * float(y.abs().max()) else None


def believe_norm(module: nn.Module) -> NormRule | None:
    """The rule of a module by its class alone, for shapes; ``None`` where it has no ε."""
    eps = _eps(module)
    if eps is None:
        return None
    return NormRule(module=module, centred=isinstance(module, nn.LayerNorm), gain_offset=0.0, eps=eps)


def _eps(module: nn.Module) -> float | None:
    return next((float(getattr(module, name)) for name in EPS_NAMES if getattr(module, name, None) is not None), None)
