"""A model taken apart: the modules an architecture map points at, found in one particular model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from monosema.core.errors import UserError
from monosema.models.architectures import Architecture, AttentionLayout, BlockLayout

_PATH_FIELDS = tuple(
    field.name for field in fields(BlockLayout) if field.name not in ("kind", "attention", "parallel_if", "multiplier")
)
_ATTENTION_PATH_FIELDS = tuple(field.name for field in fields(AttentionLayout) if field.name != "fused_layout")


@dataclass(frozen=True, kw_only=True)
class BlockParts:
    """The modules of one block, by the field names of ``BlockLayout`` and ``AttentionLayout``."""

    block: nn.Module
    """The block itself."""
    modules: dict[str, nn.Module]
    """Its parts: ``attn_in``, ``ln1``, ``q``, …; parts the layout does not name are missing."""

    def get(self, part: str) -> nn.Module | None:
        """The module of a part, or ``None`` where the layout has none."""
        return self.modules.get(part)


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """The modules of one model."""

    architecture: Architecture
    """The map they were found with."""
    embed: nn.Module
    """The token embedding."""
    blocks: tuple[BlockParts, ...]
    """The blocks, first to last."""
    ln_final: nn.Module | None
    """The norm before the unembedding."""
    unembed: nn.Module | None
    """The unembedding."""
    factor: float
    """What both branches are multiplied by before they are added (1 except for Granite-like models)."""

    def all_modules(self) -> list[nn.Module]:
        """Every module named above."""
        modules = [self.embed]
        for block in self.blocks:
            modules += [block.block, *block.modules.values()]
        return modules + [module for module in (self.ln_final, self.unembed) if module is not None]


def take_apart(hf: Any, architecture: Architecture) -> ModelParts:
    """Find the modules of ``architecture`` in a transformers model; ``UserError`` naming the paths it does not have."""
    body, layout = hf.base_model, architecture.block
    blocks = tuple(_block_parts(block, layout) for block in _get(body, architecture.blocks))
    factor = 1.0 if layout.multiplier is None else float(getattr(hf.config.get_text_config(), layout.multiplier))
    return ModelParts(
        architecture=architecture,
        embed=hf.get_input_embeddings(),
        blocks=blocks,
        ln_final=None if architecture.ln_final is None else _get(body, architecture.ln_final),
        unembed=hf.get_output_embeddings(),
        factor=factor,
    )


def _block_parts(block: nn.Module, layout: BlockLayout) -> BlockParts:
    paths = {name: getattr(layout, name) for name in _PATH_FIELDS}
    if layout.attention is not None:
        paths |= {name: getattr(layout.attention, name) for name in _ATTENTION_PATH_FIELDS}
    return BlockParts(
        block=block, modules={name: _get(block, path) for name, path in paths.items() if path is not None}
    )


def _get(root: nn.Module, path: str) -> Any:
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        raise UserError(
            f"the architecture map does not fit: {type(root).__name__} has no module {path!r} "
            f"(it has {', '.join(name for name, _ in root.named_children())})"
        ) from error
