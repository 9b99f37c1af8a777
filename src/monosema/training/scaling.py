"""Raw rows to what a dictionary is trained on: input and target, scaled.

Shape letters: B tokens, I input width, O output width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from torch import Tensor

from monosema.coders import Scaling, TrainableDictionary
from monosema.coders.scaling import estimate_scaling
from monosema.core.errors import ShapeError
from monosema.training.config import PER_TOKEN, InputScaling


class RowScaling:
    """Takes raw rows ``[B, I]`` (``[B, I + O]`` where other sites are written) to ``(x [B, I], y [B, O])``.

    Each token is scaled by its own size first where the dictionary does so; ``input`` and ``output`` are linear, the
    identity until ``estimate_`` has seen rows, and folded into the weights that are saved.
    """

    def __init__(self, coder: TrainableDictionary):
        self.coder = coder
        self.input = Scaling.identity(coder.read_widths)
        self.output = Scaling.identity(coder.write_widths)

    @property
    def is_autoencoder(self) -> bool:
        return self.coder.reconstructs

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.by_token(rows.to(device=self.coder.device, dtype=self.coder.dtype))
        x = self.input.apply(x)
        return (x, x) if self.is_autoencoder else (x, self.output.apply(y))

    def by_token(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Input and target with tokens' own scaling only."""
        x, y = self._split(rows)
        x = self.coder.scale_tokens(x)
        return x, x if self.is_autoencoder else y

    def estimate_(self, kind: InputScaling, x: Tensor, y: Tensor) -> None:
        """Set both scalings from ``by_token`` rows; an autoencoder and a bias on both sides have one, and
        tied decoders one factor for all sites, the mean of their norms."""
        config = self.coder.config
        self.input = _estimate(kind, x, config.read_widths)
        same = self.is_autoencoder or getattr(config, "b_dec", None) == "input_and_output"
        of_targets: InputScaling = "expected_norm" if kind in PER_TOKEN else kind
        self.output = self.input if same else _estimate(of_targets, y, config.write_widths)
        if getattr(config, "tied", "none") != "none" and not self.output.is_uniform:
            norms = [1 / site.factor for site in self.output.sites]
            self.output = Scaling.uniform(len(norms) / sum(norms), config.write_widths)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for name, each in (("input", self.input), ("output", self.output)):
            of_site, plain[name] = each.to_state()
            tensors |= {f"{name}.{key}": value.clone() for key, value in of_site.items()}  # may be one object
        return tensors, plain

    def load_state_dict(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.input = Scaling.from_state(part("input."), plain["input"])
        self.output = Scaling.from_state(part("output."), plain["output"])

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        d_in, d_out = self.coder.d_in, self.coder.d_out
        if self.is_autoencoder:
            if rows.ndim != 2 or rows.shape[1] != d_in:
                raise ShapeError(f"expected rows [B, {d_in}], got {list(rows.shape)}")
            return rows, rows
        if rows.ndim != 2 or rows.shape[1] != d_in + d_out:
            raise ShapeError(f"expected rows [B, {d_in} + {d_out}] (input, then target), got {list(rows.shape)}")
        return rows[:, :d_in], rows[:, d_in:]


def _estimate(kind: InputScaling, rows: Tensor, widths: tuple[int, ...]) -> Scaling:
    match kind:
        case "none" | "constant_norm" | "layer_norm":
            return Scaling.identity(widths)
        case "expected_norm_one":
            return estimate_scaling("expected_norm", rows, widths, target="one")
        case "whitening":
            return estimate_scaling("whitening", rows, widths)
        case "expected_norm":
            return estimate_scaling("expected_norm", rows, widths)
        case _:
            assert_never(kind)
