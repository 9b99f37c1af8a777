"""The structural search: a map for models the architecture table does not know.

The blocks are the ``ModuleList`` as long as the model is deep. Inside the first block the parts are recognised by what
they compute in one recorded forward pass, not by their names: attention is the module whose output at a position
depends on other positions though its input does not; the norms, post-norms and projections are those whose recorded
inputs and outputs coincide with those of attention, MLP and stream; the block is sequential or parallel according to
what the MLP reads. What is not recognised stays opaque: the residual stream is still there, the rest is refused by
name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from monosema.core.errors import UserError
from monosema.models.architectures import Architecture, AttentionLayout, BlockKind, BlockLayout
from monosema.models.norms import is_norm
from monosema.models.taps import projection_size
from monosema.models.trace import Record, agree, differ, gated_error, rms, trace

_PROJECTION_NAMES = {
    "q": ("q_proj", "query", "wq", "q_lin", "q"),
    "k": ("k_proj", "key", "wk", "k_lin", "k"),
    "v": ("v_proj", "value", "wv", "v_lin", "v"),
}
_MULTIPLIERS = (None, "residual_multiplier")


class _NotRecognisedError(Exception):
    """The block does not have one of the known forms; the message says what was missing."""


def search_architectures(hf: Any, run: Callable[[], Any], d_model: int) -> list[Architecture]:
    """Candidate maps for a model, best first; the last is opaque. ``run`` runs it on ``probe_tokens``."""
    body = hf.base_model
    blocks_path = _find_blocks(hf, body)
    blocks = body.get_submodule(blocks_path)
    inside = {id(module) for module in blocks.modules()}
    outer_norms = [
        (path, module) for path, module in body.named_modules() if id(module) not in inside and is_norm(module, d_model)
    ]
    first, last = blocks[0], blocks[-1]
    records = trace([*first.modules(), last, *(module for _, module in outer_norms)], run)
    if first not in records or last not in records:
        raise UserError(
            f"{blocks_path!r} of {type(body).__name__} looks like the blocks, but the forward pass did not run them all"
        )
    final = [path for path, module in outer_norms if module in records and _joins(records[last], records[module])]
    ln_final = final[-1] if final else None

    def candidate(layout: BlockLayout, reason: str = "") -> Architecture:
        return Architecture(
            blocks=blocks_path, ln_final=ln_final, block=layout, note="structural search", opaque_reason=reason
        )

    found: list[Architecture] = []
    reason = "its parts do not add up to the residual equation"
    try:
        search = _BlockSearch(first, records, hf.config.get_text_config(), d_model)
        found += [candidate(layout) for layout in search.layouts()]
    except _NotRecognisedError as error:
        reason = str(error)
    opaque_reason = f"the inside of {type(first).__name__} was not recognised: {reason}"
    return [*found, candidate(BlockLayout(kind="opaque"), opaque_reason)]


def _joins(before: Record, after: Record) -> bool:
    return agree(after.input, before.output)


def _find_blocks(hf: Any, body: nn.Module) -> str:
    config = hf.config.get_text_config()
    depth = getattr(config, "num_hidden_layers", None)
    lists = [(path, module) for path, module in body.named_modules() if isinstance(module, nn.ModuleList)]
    fitting = [(path, module) for path, module in lists if len(module) and len(module) == depth]
    if not fitting:
        raise UserError(
            f"{type(body).__name__} (model_type {config.model_type!r}) is not in the architecture table, and none of "
            f"its module lists has the configuration's num_hidden_layers={depth} entries, so its blocks were not found"
        )
    return max(fitting, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))[0]


class _BlockSearch:
    """Recognises the parts of one recorded block."""

    def __init__(self, block: nn.Module, records: dict[nn.Module, Record], config: Any, d_model: int) -> None:
        self.config = config
        self.records = {path: records[module] for path, module in block.named_modules() if path and module in records}
        self.modules = dict(block.named_modules())
        self.norms = [path for path in self.records if is_norm(self.modules[path], d_model)]
        pre, post = records[block].input, records[block].output
        if pre is None or post is None or pre.shape != post.shape or pre.dim() != 3:
            raise _NotRecognisedError("it does not turn a [batch, token, d_model] stream into another")
        self.pre, self.post = pre, post

    def layouts(self) -> list[BlockLayout]:
        """Possible layouts: the same map with each possible reading of the attention, the last without its inside."""
        attn = self._find_attention()
        outside = [path for path in self.norms if not path.startswith(f"{attn}.")]
        mlp_in, mlp_out = self._find_mlp(attn)
        attn_record, mlp_record = self.records[attn], self.records[mlp_out]
        ln1_post = self._first(outside, lambda norm: agree(norm.input, attn_record.output))
        ln2_post = self._first(outside, lambda norm: agree(norm.input, mlp_record.output))
        ln1 = self._first(outside, lambda norm: agree(attn_record.input, norm.output))
        ln2 = self._first(outside, lambda norm: agree(self.records[mlp_in].input, norm.output))
        attn_branch = self.records[ln1_post or attn].output
        mlp_branch = self.records[ln2_post or mlp_out].output
        read_by_mlp = self.records[ln2 or mlp_in].input
        kind, multiplier = self._kind(attn_branch, mlp_branch, read_by_mlp)
        gate, up, down = self._mlp_inside(mlp_in, mlp_out)
        return [
            BlockLayout(
                kind=kind,
                attn_in=attn,
                attn_out=attn,
                mlp_in=mlp_in,
                mlp_out=mlp_out,
                ln1=ln1,
                ln2=ln2,
                ln1_post=ln1_post,
                ln2_post=ln2_post,
                attention=attention,
                mlp_gate=gate,
                mlp_up=up,
                mlp_down=down,
                multiplier=multiplier,
            )
            for attention in [*self._attention_inside(attn), None]
        ]

    def _first(self, paths: list[str], accept: Callable[[Record], bool]) -> str | None:
        return next((path for path in paths if accept(self.records[path])), None)

    def _is_stream(self, path: str) -> bool:
        record = self.records[path]
        return all(side is not None and side.shape == self.pre.shape for side in (record.input, record.output))

    def _find_attention(self) -> str:
        for path, record in self.records.items():
            if path in self.norms or not self._is_stream(path):
                continue
            assert record.input is not None
            assert record.output is not None
            # Row 1 of the probe differs from row 0 in its first token only.
            same_input = not differ(record.input[1, 1:], record.input[0, 1:])
            if same_input and differ(record.output[1, 1:], record.output[0, 1:]):
                return path
        raise _NotRecognisedError("no module of it carries information between positions")

    def _find_mlp(self, attn: str) -> tuple[str, str]:
        """The module that is the MLP, or its first and last linear map where the block holds them directly (OPT)."""
        rest = [
            path
            for path in self.records
            if path not in self.norms and path != attn and not path.startswith(f"{attn}.") and not attn.startswith(path)
        ]
        for path in rest:
            if self._is_stream(path) and any(True for _ in self.modules[path].parameters()):
                return path, path
        width = self.pre.shape[-1]
        sizes = {path: size for path in rest if (size := projection_size(self.modules[path])) is not None}
        first = next((path for path, size in sizes.items() if size[0] == width), None)
        last = next((path for path, size in reversed(sizes.items()) if size[1] == width), None)
        if first is None or last is None or first == last:
            raise _NotRecognisedError("no MLP was found beside its attention")
        return first, last

    def _kind(
        self, attn: Tensor | None, mlp: Tensor | None, read_by_mlp: Tensor | None
    ) -> tuple[BlockKind, str | None]:
        if attn is None or mlp is None or attn.shape != self.pre.shape or mlp.shape != self.pre.shape:
            raise _NotRecognisedError("attention or MLP do not return a tensor of the stream's shape")
        for multiplier in _MULTIPLIERS:
            factor = 1.0 if multiplier is None else getattr(self.config, multiplier, None)
            if factor is None:
                continue
            size = rms(self.pre) + rms(attn) + rms(mlp)
            if not agree(self.post, self.pre + factor * (attn + mlp), size=size):
                continue
            if agree(read_by_mlp, self.pre):
                return "parallel", multiplier
            if agree(read_by_mlp, self.pre + factor * attn, size=size):
                return "sequential", multiplier
            raise _NotRecognisedError("its MLP reads neither the block's input nor the stream after attention")
        raise _NotRecognisedError("its output is not the sum of its input, its attention and its MLP")

    def _linear_below(self, path: str) -> dict[str, tuple[int, int]]:
        below = {name: self.modules[name] for name in self.records if name == path or name.startswith(f"{path}.")}
        return {name: size for name, module in below.items() if (size := projection_size(module)) is not None}

    def _attention_inside(self, attn: str) -> list[AttentionLayout]:
        sizes = self._linear_below(attn)
        n_heads = int(getattr(self.config, "num_attention_heads", 0) or 0)
        output = [path for path in sizes if agree(self.records[path].output, self.records[attn].output)]
        reading = [path for path in sizes if agree(self.records[path].input, self.records[attn].input)]
        if len(output) != 1 or not n_heads or sizes[output[0]][0] % n_heads:
            return []
        o, d_head = output[0], sizes[output[0]][0] // n_heads
        by_leaf = {path.rsplit(".", 1)[-1]: path for path in reading}
        separate = {
            part: next((by_leaf[name] for name in names if name in by_leaf), None)
            for part, names in _PROJECTION_NAMES.items()
        }
        if all(separate.values()):
            return [AttentionLayout(o=o, q=separate["q"], k=separate["k"], v=separate["v"])]
        if len(reading) == 1 and reading[0] != o:
            spare = sizes[reading[0]][1] - n_heads * d_head
            if spare > 0 and spare % (2 * d_head) == 0 and n_heads % (spare // (2 * d_head)) == 0:
                fused = reading[0]
                return [
                    AttentionLayout(o=o, qkv=fused, fused_layout="concatenated"),
                    AttentionLayout(o=o, qkv=fused, fused_layout="grouped"),
                    AttentionLayout(o=o),
                ]
        return [AttentionLayout(o=o)]

    def _mlp_inside(self, mlp_in: str, mlp_out: str) -> tuple[str | None, str | None, str | None]:
        sizes = {**self._linear_below(mlp_in), **self._linear_below(mlp_out)}
        down = [path for path in sizes if agree(self.records[path].output, self.records[mlp_out].output)]
        if len(down) != 1:
            return None, None, None
        width = sizes[down[0]][0]
        first = [
            path
            for path, size in sizes.items()
            if path != down[0] and size[1] == width and agree(self.records[path].input, self.records[mlp_in].input)
        ]
        if len(first) == 1:
            return first[0], None, down[0]
        if len(first) == 2:
            post = self.records[down[0]].input
            for gate, up in (first, first[::-1]):
                if gated_error(self.config, self.records[gate].output, self.records[up].output, post) < 0.05:
                    return gate, up, down[0]
        return None, None, down[0]
