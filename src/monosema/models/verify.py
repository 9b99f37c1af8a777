"""The numerical check: does an architecture map describe what this model computes?

One forward pass over a few random tokens writes down what every mapped module received and returned, and the residual
equations are then checked on the numbers, for every block. A map that fails is refused with the equation that does not
hold; nothing is ever captured through it. The same pass measures what the map leaves open: each norm's equation, the
embedding's scale, whether attention looks ahead.

The three rows of the batch are the same tokens, then with the first one changed, then with the last one changed: what
happens at the other positions tells attention from MLP, and a decoder from an encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monosema.models.norms import NormRule, is_norm, measure_norm
from monosema.models.parts import BlockParts, ModelParts
from monosema.models.trace import Record, agree, differ, gated_error, is_output_of, rms

NORM_PARTS = ("ln1", "ln1_post", "ln2", "ln2_post")
N_PROBE_ROWS = 3
N_PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What the check found out about a model."""

    problems: tuple[str, ...]
    """Equations that do not hold; empty for a map that fits."""
    norms: dict[nn.Module, NormRule]
    """The equation of each norm module that has a known one."""
    embed_factor: float
    """What the token embedding's output is multiplied by before it enters the stream (older Gemma, Granite)."""
    is_bidirectional: bool
    """Whether a later token changes what an earlier position computes: an encoder."""
    unembed_reads_final_norm: bool
    """Whether the unembedding's input is the final norm's output."""
    normed_blocks: frozenset[nn.Module]
    """Blocks whose output is that of a norm inside them, where the map knows no more of them (``opaque``)."""


def probe_tokens(vocab_size: int, avoid: frozenset[int], device: torch.device, max_length: int | None) -> Tensor:
    """Random tokens [3, T]: a row, the row with its first token changed, the row with its last token changed."""
    generator = torch.Generator().manual_seed(0)
    allowed = [token for token in torch.randperm(vocab_size, generator=generator).tolist() if token not in avoid]
    n_tokens = min(N_PROBE_TOKENS, max_length or N_PROBE_TOKENS)
    if n_tokens == N_PROBE_ROWS:
        n_tokens -= 1  # so that [token, batch, width] has another shape than [batch, token, width]
    ids = (allowed or [0]) * (n_tokens + 2)
    tokens = torch.tensor([ids[:n_tokens]] * N_PROBE_ROWS)
    tokens[1, 0] = ids[n_tokens]
    tokens[2, -1] = ids[n_tokens + 1]
    return tokens.to(device)


def recorded_modules(parts: ModelParts) -> list[nn.Module]:
    """The modules whose values ``measure`` looks at; norms inside the blocks too where their place is not known."""
    modules = parts.all_modules()
    if parts.architecture.block.kind == "opaque":
        modules += [norm for block in parts.blocks for norm in _norms_inside(block)]
    return modules


def measure(
    parts: ModelParts, records: dict[nn.Module, Record], config: Any, tokens_shape: tuple[int, int]
) -> Measurements:
    """Check every equation of the map on a trace of ``recorded_modules`` on ``probe_tokens`` of ``tokens_shape``."""
    checker = _Checker(parts, records, config)
    checker.check_chain()
    for layer, block in enumerate(parts.blocks):
        checker.check_block(layer, block)
    checker.check_mixing(parts.blocks[0])
    unembed = records.get(parts.unembed) if parts.unembed is not None else None
    final = records.get(parts.ln_final) if parts.ln_final is not None else None
    return Measurements(
        problems=tuple(checker.problems),
        norms=checker.measure_norms(),
        embed_factor=checker.embed_factor(),
        is_bidirectional=checker.is_bidirectional(tokens_shape),
        unembed_reads_final_norm=bool(unembed and final and agree(unembed.input, final.output)),
        normed_blocks=checker.normed_blocks(),
    )


def _norms_inside(block: BlockParts) -> list[nn.Module]:
    return [module for module in block.block.modules() if is_norm(module)]


class _Checker:
    def __init__(self, parts: ModelParts, records: dict[nn.Module, Record], config: Any) -> None:
        self.parts = parts
        self.config = config
        self.records = records
        self.kind = parts.architecture.block.kind
        self.problems: list[str] = []

    def _value(self, module: nn.Module | None, side: str) -> Tensor | None:
        record = self.records.get(module) if module is not None else None
        return None if record is None else getattr(record, side)

    def _equal(self, what: str, actual: Tensor | None, expected: Tensor | None) -> None:
        if not agree(actual, expected):
            self.problems.append(f"{what} does not hold")

    def _sum(self, what: str, total: Tensor | None, *terms: Tensor | None) -> None:
        found = [term for term in terms if term is not None]
        shapes = {term.shape for term in found}
        if total is None or len(found) < len(terms) or shapes != {total.shape}:
            self.problems.append(f"{what} cannot be formed: a part was not called, or has another shape")
            return
        size = torch.stack([rms(term) for term in found]).sum(0)
        expected = torch.stack([term.to(total.device, torch.float64) for term in found]).sum(0)
        # Compared in the stream's own precision: float64 sums of what was recorded differ from it by rounding only.
        if not agree(total, expected.to(total.dtype), slack=4.0, size=size):
            self.problems.append(f"{what} does not hold")

    def check_chain(self) -> None:
        """Each block's output is the next one's input, and the last one's the final norm's."""
        outputs = [self._value(block.block, "output") for block in self.parts.blocks]
        inputs = [self._value(block.block, "input") for block in self.parts.blocks]
        for layer, (before, after) in enumerate(zip(outputs[:-1], inputs[1:], strict=True)):
            self._equal(f"block {layer + 1} input = block {layer} output", after, before)
        if self.parts.ln_final is not None:
            self._equal("ln_final input = last block's output", self._value(self.parts.ln_final, "input"), outputs[-1])

    def check_block(self, layer: int, block: BlockParts) -> None:
        """The residual equation of one block, and that each norm feeds what the map says it feeds."""
        if self.kind == "opaque":
            return
        name = f"block {layer}: "
        pre, post = self._value(block.block, "input"), self._value(block.block, "output")
        if self.kind == "mixer":
            self._equal(name + "mixer input = ln1 output", *self._feeds(block, "ln1", "mixer"))
            self._sum(name + "resid_post = resid_pre + mixer_out", post, pre, self._branch(block, "mixer", None))
            return
        attn_out = self._branch(block, "attn_out", "ln1_post")
        mlp_out = self._branch(block, "mlp_out", "ln2_post")
        self._check_branches(name, block)
        if self.kind == "post_norm":
            mid, middle = self._value(block.get("ln1"), "input"), self._value(block.get("ln1"), "output")
            last = self._value(block.get("ln2"), "input")
            self._equal(name + "attention input = resid_pre", self._value(block.get("attn_in"), "input"), pre)
            self._sum(name + "resid_mid = resid_pre + attn_out", mid, pre, attn_out)
            self._equal(name + "MLP input = ln1 output", self._value(block.get("mlp_in"), "input"), middle)
            self._sum(name + "resid_post = ln1 output + mlp_out", last, middle, mlp_out)
            self._equal(name + "block output = ln2 output", post, self._value(block.get("ln2"), "output"))
            return
        self._equal(
            name + "attention reads resid_pre", self._value(block.get("ln1") or block.get("attn_in"), "input"), pre
        )
        before_mlp = self._value(block.get("ln2") or block.get("mlp_in"), "input")
        if self.kind == "sequential":
            self._sum(name + "resid_mid = resid_pre + attn_out", before_mlp, pre, attn_out)
            self._sum(name + "resid_post = resid_mid + mlp_out", post, before_mlp, mlp_out)
        else:
            self._equal(name + "MLP reads resid_pre", before_mlp, pre)
            self._sum(name + "resid_post = resid_pre + attn_out + mlp_out", post, pre, attn_out, mlp_out)

    def _check_branches(self, name: str, block: BlockParts) -> None:
        if self.kind != "post_norm":
            for norm, reader, label in (("ln1", "attn_in", "attention"), ("ln2", "mlp_in", "MLP")):
                if block.get(norm) is not None:
                    self._equal(f"{name}{label} input = {norm} output", *self._feeds(block, norm, reader))
        for branch, norm, label in (("attn_out", "ln1_post", "attention"), ("mlp_out", "ln2_post", "MLP")):
            if block.get(norm) is not None:
                self._equal(f"{name}{norm} input = {label} output", *self._feeds(block, branch, norm))
        for inner, outer, label in (("o", "attn_out", "attention"), ("mlp_down", "mlp_out", "MLP")):
            if block.get(inner) is not None:
                self._equal(
                    f"{name}{label} output = its last projection's output",
                    self._value(block.get(outer), "output"),
                    self._value(block.get(inner), "output"),
                )
        gate, up = self._value(block.get("mlp_gate"), "output"), self._value(block.get("mlp_up"), "output")
        post = self._value(block.get("mlp_down"), "input")
        if up is not None and gated_error(self.config, up, gate, post) < gated_error(self.config, gate, up, post):
            self.problems.append(f"{name}hook_post = activation(hook_pre) · hook_pre_linear does not hold")
        first = [("attn_in", part) for part in ("q", "k", "v", "qkv")]
        first += [("mlp_in", part) for part in ("mlp_gate", "mlp_up")]
        for outer, inner in first:
            if block.get(inner) is not None:
                self._equal(
                    f"{name}{inner} reads the input of {outer}",
                    self._value(block.get(inner), "input"),
                    self._value(block.get(outer), "input"),
                )

    def _feeds(self, block: BlockParts, source: str, reader: str) -> tuple[Tensor | None, Tensor | None]:
        return self._value(block.get(reader), "input"), self._value(block.get(source), "output")

    def _branch(self, block: BlockParts, raw: str, post_norm: str | None) -> Tensor | None:
        module = (block.get(post_norm) if post_norm else None) or block.get(raw)
        value = self._value(module, "output")
        return value if value is None or self.parts.factor == 1.0 else value * self.parts.factor

    def check_mixing(self, block: BlockParts) -> None:
        """In the first block, attention carries information between positions and the MLP does not."""
        mixer = "mixer" if self.kind == "mixer" else "attn"
        if self.kind == "opaque":
            return
        source, result = (mixer, mixer) if mixer == "mixer" else ("attn_in", "attn_out")
        if self._mixes(block.get(source), block.get(result)) is False:
            self.problems.append(f"block 0: the {mixer} module does not carry information between positions")
        if mixer == "attn" and self._mixes(block.get("mlp_in"), block.get("mlp_out")):
            self.problems.append("block 0: the MLP carries information between positions")

    def _mixes(self, first: nn.Module | None, last: nn.Module | None) -> bool | None:
        """Whether equal inputs at a position give different outputs there; ``None`` where inputs differ already."""
        before, after = self._value(first, "input"), self._value(last, "output")
        if before is None or after is None or before.dim() != 3 or before.shape[1] < 2:
            return None
        if differ(before[1, 1:], before[0, 1:]):
            return None
        return differ(after[1, 1:], after[0, 1:])

    def is_bidirectional(self, tokens_shape: tuple[int, int]) -> bool:
        """Whether changing the last token changes what is computed at the positions before it.

        Seen at the first block's output, and after the blocks where these have no dimension of tokens.
        """
        for module in (self.parts.blocks[0].block, self.parts.ln_final, self.parts.unembed):
            after = self._value(module, "output")
            if after is not None and after.shape[:-1] == tokens_shape:
                return differ(after[2, :-1], after[0, :-1])
        return False

    def normed_blocks(self) -> frozenset[nn.Module]:
        """See ``Measurements``. Where the map has a residual equation, that is what says it."""
        if self.kind != "opaque":
            return frozenset()
        return frozenset(
            block.block
            for block in self.parts.blocks
            if any(
                is_output_of(self.records.get(norm), self._value(block.block, "output"))
                for norm in _norms_inside(block)
            )
        )

    def embed_factor(self) -> float:
        """1, or the √d_model (Gemma) or ``embedding_multiplier`` (Granite) that the first block's input carries."""
        embedded = self._value(self.parts.embed, "output")
        stream = self._value(self.parts.blocks[0].block, "input")
        if embedded is None or stream is None or embedded.shape != stream.shape:
            return 1.0
        factors = [math.sqrt(embedded.shape[-1]), getattr(self.config, "embedding_multiplier", 1.0)]
        rounded = [float(torch.tensor(factor, dtype=embedded.dtype)) for factor in factors]
        return next((factor for factor in rounded if agree(stream, embedded * factor)), 1.0)

    def measure_norms(self) -> dict[nn.Module, NormRule]:
        """The rule of every mapped norm that has one."""
        modules = [block.get(part) for block in self.parts.blocks for part in NORM_PARTS]
        rules: dict[nn.Module, NormRule] = {}
        for module in [*modules, self.parts.ln_final]:
            x, y = self._value(module, "input"), self._value(module, "output")
            if module is None or x is None or y is None:
                continue
            rule = measure_norm(module, x, y)
            if rule is not None:
                rules[module] = rule
        return rules
