"""The first block of a model as one forward pass recorded it: what the structural search looks at.

It knows the values around every part of the block, and recognizes projections inside an attention or an MLP once it
is known where these begin and end. Which part is which is for ``structure.py`` and ``post_norm.py`` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from monosema.models.architectures import AttentionLayout
from monosema.models.norms import is_norm
from monosema.models.taps import projection_size
from monosema.models.trace import Record, agree, differ, gated_error

_PROJECTION_NAMES = {
    "q": ("q_proj", "query", "wq", "q_lin", "q"),
    "k": ("k_proj", "key", "wk", "k_lin", "k"),
    "v": ("v_proj", "value", "wv", "v_lin", "v"),
}


class NotRecognizedError(Exception):
    """The block does not have one of the known forms; the message says what was missing."""


class RecordedBlock:
    """The parts of one block by path, with their recorded inputs and outputs.

    Raises ``NotRecognizedError`` where the block does not turn a [batch, token, d_model] stream into another.
    """

    def __init__(
        self,
        block: nn.Module,
        records: dict[nn.Module, Record],
        config: Any,
        tokens_shape: tuple[int, int],
        d_model: int,
    ) -> None:
        self.config = config
        self.records = {path: records[module] for path, module in block.named_modules() if path and module in records}
        self.modules = dict(block.named_modules())
        self.norms = [path for path in self.records if is_norm(self.modules[path], d_model)]
        pre, post = records[block].input, records[block].output
        if pre is None or post is None or pre.shape != post.shape or pre.shape != (*tokens_shape, d_model):
            raise NotRecognizedError("it does not turn a [batch, token, d_model] stream into another")
        self.pre, self.post = pre, post

    def first(self, paths: Iterable[str], accept: Callable[[Record], bool]) -> str | None:
        """The first of ``paths`` whose record is accepted."""
        return next((path for path in paths if accept(self.records[path])), None)

    def is_stream(self, path: str) -> bool:
        """Whether a part turns a value of the stream's shape into another."""
        record = self.records[path]
        return all(side is not None and side.shape == self.pre.shape for side in (record.input, record.output))

    def mixes_positions(self, path: str) -> bool:
        """Whether a part's output at a position depends on other positions, though its input there does not."""
        record = self.records[path]
        assert record.input is not None
        assert record.output is not None
        # Row 1 of the probe differs from row 0 in its first token only.
        same_input = not differ(record.input[1, 1:], record.input[0, 1:])
        return same_input and differ(record.output[1, 1:], record.output[0, 1:])

    def linear_below(self, path: str) -> dict[str, tuple[int, int]]:
        """The size of each linear map at or below a path."""
        below = {name: self.modules[name] for name in self.records if name == path or name.startswith(f"{path}.")}
        return {name: size for name, module in below.items() if (size := projection_size(module)) is not None}

    def attention_inside(self, first: str, last: str) -> list[AttentionLayout]:
        """Possible readings of an attention whose input is that of ``first`` and whose output is that of ``last``."""
        sizes = {**self.linear_below(first), **self.linear_below(last)}
        n_heads = int(getattr(self.config, "num_attention_heads", 0) or 0)
        output = [path for path in sizes if agree(self.records[path].output, self.records[last].output)]
        reading = [path for path in sizes if agree(self.records[path].input, self.records[first].input)]
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

    def mlp_inside(self, mlp_in: str, mlp_out: str) -> tuple[str | None, str | None, str | None]:
        """The gate, the second map and the last map of an MLP between two parts; ``None`` for what is not known."""
        sizes = {**self.linear_below(mlp_in), **self.linear_below(mlp_out)}
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
