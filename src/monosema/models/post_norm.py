"""The structural search in post-norm blocks, where each sum goes through a norm before it is the stream again.

A block is post-norm when its output is the output of a norm inside it and not a sum. It is recognized when the sums are
found too: ``ln1`` receives the block's input plus what attention returns, and ``ln2`` receives the output of ``ln1``
plus what the MLP returns.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from monosema.models.architectures import BlockLayout
from monosema.models.recorded import NotRecognizedError, RecordedBlock
from monosema.models.trace import agree, is_output_of, rms


def stream_norm(block: RecordedBlock) -> str | None:
    """The norm whose output is the block's output; ``None`` in a block that ends in a sum."""
    return block.first(reversed(block.norms), lambda norm: is_output_of(norm, block.post))


def post_norm_layouts(block: RecordedBlock) -> list[BlockLayout]:
    """Possible layouts: the same map with each possible reading of the attention, the last without its inside."""
    ln2 = stream_norm(block)
    assert ln2 is not None, "asked of post-norm blocks only"
    for ln1 in block.norms:
        attn_out = _branch(block, total=ln1, skip=block.pre)
        mlp_out = _branch(block, total=ln2, skip=block.records[ln1].output)
        if ln1 != ln2 and attn_out is not None and mlp_out is not None:
            break
    else:
        raise NotRecognizedError(
            "it ends in a norm, and what that norm receives is not the sum of a normed stream and an MLP"
        )
    attn_in = _reader(block, block.pre, attn_out, (ln1, ln2), mixes=True)
    mlp_in = _reader(block, block.records[ln1].output, mlp_out, (ln1, ln2, attn_in), mixes=False)
    gate, up, down = block.mlp_inside(mlp_in, mlp_out)
    return [
        BlockLayout(
            kind="post_norm",
            attn_in=attn_in,
            attn_out=attn_out,
            mlp_in=mlp_in,
            mlp_out=mlp_out,
            ln1=ln1,
            ln2=ln2,
            attention=attention,
            mlp_gate=gate,
            mlp_up=up,
            mlp_down=down,
        )
        for attention in [*block.attention_inside(attn_in, attn_out), None]
    ]


def _holds(path: str, others: Iterable[str]) -> bool:
    """Whether the module at ``path`` is, or contains, one of ``others``."""
    return any(other == path or other.startswith(f"{path}.") for other in others)


def _branch(block: RecordedBlock, *, total: str, skip: Tensor | None) -> str | None:
    """The part whose output makes ``skip`` what the norm ``total`` receives; of several the most exact, then the first.

    The first, because a dropout that follows a projection returns the same value.
    """
    target = block.records[total].input
    if target is None or skip is None or target.shape != skip.shape:
        return None
    errors: dict[str, float] = {}
    for path, record in block.records.items():
        output = record.output
        if path in block.norms or _holds(path, [total]) or output is None or output.shape != skip.shape:
            continue
        if agree(target, skip + output, size=rms(skip) + rms(output)):
            errors[path] = float(rms(target - skip - output).max())
    return min(errors, key=errors.__getitem__, default=None)


def _reader(block: RecordedBlock, value: Tensor | None, last: str, others: tuple[str, ...], *, mixes: bool) -> str:
    """The part that reads ``value`` at the start of the branch that ends in ``last``: the whole branch if it is one."""
    parts = [path for path in block.records if path not in block.norms and not _holds(path, others)]
    for path in (last, *parts):
        record = block.records[path]
        if record.output is None or not agree(record.input, value):
            continue
        if record.output.shape[:2] == block.pre.shape[:2] and block.mixes_positions(path) == mixes:
            return path
    what = "attention" if mixes else "MLP"
    raise NotRecognizedError(f"it ends in a norm, and no part of its {what} reads the stream directly")
