"""The structural search: a map for models the architecture table does not know.

The blocks are the ``ModuleList`` as long as the model is deep. Inside the first block the parts are recognized by what
they compute in one recorded forward pass, not by their names: attention is the module whose output at a position
depends on other positions though its input does not; the norms, post-norms and projections are those whose recorded
inputs and outputs coincide with those of attention, MLP and stream; the block is sequential or parallel according to
what the MLP reads. ``post_norm.py`` searches blocks whose output is that of a norm inside them. What is not recognized
stays opaque: the block's input and output are still there, the rest is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from monosema.core.errors import UserError
from monosema.models.architectures import Architecture, BlockKind, BlockLayout
from monosema.models.norms import is_norm
from monosema.models.post_norm import post_norm_layouts, stream_norm
from monosema.models.recorded import NotRecognizedError, RecordedBlock
from monosema.models.taps import projection_size
from monosema.models.trace import Record, agree, rms, trace

_MULTIPLIERS = (None, "residual_multiplier")


def search_architectures(
    hf: Any, run: Callable[[], Any], tokens_shape: tuple[int, int], d_model: int
) -> list[Architecture]:
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
        block = RecordedBlock(first, records, hf.config.get_text_config(), tokens_shape, d_model)
        layouts = _layouts(block) if stream_norm(block) is None else post_norm_layouts(block)
        found += [candidate(layout) for layout in layouts]
    except NotRecognizedError as error:
        reason = str(error)
    opaque_reason = f"the inside of {type(first).__name__} was not recognized: {reason}"
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


def _layouts(block: RecordedBlock) -> list[BlockLayout]:
    """Possible layouts: the same map with each possible reading of the attention, the last without its inside."""
    attn = _find_attention(block)
    outside = [path for path in block.norms if not path.startswith(f"{attn}.")]
    mlp_in, mlp_out = _find_mlp(block, attn)
    attn_record, mlp_record = block.records[attn], block.records[mlp_out]
    ln1_post = block.first(outside, lambda norm: agree(norm.input, attn_record.output))
    ln2_post = block.first(outside, lambda norm: agree(norm.input, mlp_record.output))
    ln1 = block.first(outside, lambda norm: agree(attn_record.input, norm.output))
    ln2 = block.first(outside, lambda norm: agree(block.records[mlp_in].input, norm.output))
    attn_branch = block.records[ln1_post or attn].output
    mlp_branch = block.records[ln2_post or mlp_out].output
    read_by_mlp = block.records[ln2 or mlp_in].input
    kind, multiplier = _kind(block, attn_branch, mlp_branch, read_by_mlp)
    gate, up, down = block.mlp_inside(mlp_in, mlp_out)
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
        for attention in [*block.attention_inside(attn, attn), None]
    ]


def _find_attention(block: RecordedBlock) -> str:
    for path in block.records:
        if path not in block.norms and block.is_stream(path) and block.mixes_positions(path):
            return path
    raise NotRecognizedError("no module of it carries information between positions")


def _find_mlp(block: RecordedBlock, attn: str) -> tuple[str, str]:
    """The module that is the MLP, or its first and last linear map where the block holds them directly (OPT)."""
    rest = [
        path
        for path in block.records
        if path not in block.norms and path != attn and not path.startswith(f"{attn}.") and not attn.startswith(path)
    ]
    for path in rest:
        if block.is_stream(path) and any(True for _ in block.modules[path].parameters()):
            return path, path
    width = block.pre.shape[-1]
    sizes = {path: size for path in rest if (size := projection_size(block.modules[path])) is not None}
    first = next((path for path, size in sizes.items() if size[0] == width), None)
    last = next((path for path, size in reversed(sizes.items()) if size[1] == width), None)
    if first is None or last is None or first == last:
        raise NotRecognizedError("no MLP was found beside its attention")
    return first, last


def _kind(
    block: RecordedBlock, attn: Tensor | None, mlp: Tensor | None, read_by_mlp: Tensor | None
) -> tuple[BlockKind, str | None]:
    if attn is None or mlp is None or attn.shape != block.pre.shape or mlp.shape != block.pre.shape:
        raise NotRecognizedError("attention or MLP do not return a tensor of the stream's shape")
    for multiplier in _MULTIPLIERS:
        factor = 1.0 if multiplier is None else getattr(block.config, multiplier, None)
        if factor is None:
            continue
        size = rms(block.pre) + rms(attn) + rms(mlp)
        if not agree(block.post, block.pre + factor * (attn + mlp), size=size):
            continue
        if agree(read_by_mlp, block.pre):
            return "parallel", multiplier
        if agree(read_by_mlp, block.pre + factor * attn, size=size):
            return "sequential", multiplier
        raise NotRecognizedError("its MLP reads neither the block's input nor the stream after attention")
    raise NotRecognizedError("its output is not the sum of its input, its attention and its MLP")
