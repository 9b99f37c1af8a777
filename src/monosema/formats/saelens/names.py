"""The files, architectures and names of SAELens' folder format (6.54.12).

What SAELens has a class for has its architecture. What it has no class for gets one that it refuses.
"""

from __future__ import annotations

import re

from monosema.formats.spec import TokenScaling

NAME = "saelens"
WEIGHTS_FILE = "sae_weights.safetensors"
SAE_RULES: dict[str, str] = {
    "standard": "relu",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "gated": "gated",
}
"""The rule of each architecture of an SAE."""
TRANSCODER_RULES: dict[str, tuple[str, bool]] = {
    "transcoder": ("relu", False),
    "skip_transcoder": ("relu", True),
    "jumprelu_transcoder": ("jumprelu", False),
    "jumprelu_skip_transcoder": ("jumprelu", True),
    "monosema_topk_transcoder": ("topk", False),
    "monosema_topk_skip_transcoder": ("topk", True),
    "monosema_gated_transcoder": ("gated", False),
    "monosema_gated_skip_transcoder": ("gated", True),
}
"""The rule of each architecture of a transcoder, and whether it has a skip connection."""
TOKEN_SCALINGS: dict[str, TokenScaling] = {
    "none": "none",
    "constant_norm_rescale": "constant_norm",
    "layer_norm": "layer_norm",
}
"""``normalize_activations`` that a coder here can hold. SAELens scales only an SAE's output back, as we do."""
_HEAD = re.compile(r"(.+)\[([0-9]+)\]")
RULE_TENSORS: dict[str, tuple[str, ...]] = {
    "relu": ("b_enc",),
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
"""The tensors ``[d_sae]`` of each rule."""
START = ("decoder_init", "decoder_init_norm", "encoder_init", "seed")
"""Options that weights started from, kept in our own block of ``cfg.json``."""


def without_head(hook_name: str | None) -> tuple[str | None, int | None]:
    """Site and head of a name."""
    match = _HEAD.fullmatch(hook_name or "")
    return (match[1], int(match[2])) if match else (hook_name, None)


def with_head(hook_name: str | None, index: int | None) -> str | None:
    """A name of site and head."""
    return hook_name if hook_name is None or index is None else f"{hook_name}[{index}]"
