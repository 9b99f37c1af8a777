"""Are a model's activations finite? Asked before its map is judged, since NaN agrees with no equation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monosema.core.errors import UserError
from monosema.core.words import counted
from monosema.models.parts import ModelParts
from monosema.models.trace import Record


def check_finite(hf: Any, parts: ModelParts, records: dict[nn.Module, Record]) -> None:
    """Raise ``UserError`` naming the first place on the way through the model that has NaN or infinite values.

    The error names the parameters that are not finite, if there are any. The weights are looked at only then: a pass
    over all of them takes as long as reading them.
    """
    where = _first_not_finite(parts, records)
    if where is None:
        return
    dtype = str(hf.dtype).removeprefix("torch.")
    what = f"the activations of {type(hf).__name__} are not finite in {dtype} from {where} on"
    narrow = hf.dtype == torch.float16
    other_dtype = "load it with dtype='bfloat16' or 'float32' (a model in memory: hand in model.to(torch.float32))"
    damaged = [name for name, parameter in hf.named_parameters() if not _is_finite(parameter)]
    if damaged:
        more = f" and {counted(len(damaged) - 1, 'more parameter')}" if len(damaged) > 1 else ""
        fix = f"if they were cast to float16, {other_dtype}; else load" if narrow else "load"
        raise UserError(f"{what}: {damaged[0]!r}{more} hold NaN or infinite weights; {fix} a checkpoint without them")
    if narrow:
        raise UserError(f"{what}: they go beyond float16's range of ±65,504; {other_dtype}")
    wider = "" if hf.dtype == torch.float32 else " with dtype='float32'"
    raise UserError(
        f"{what}, though its weights are. Expected finite values on a few random tokens: load it{wider}, and check "
        "that its weights are those of this architecture"
    )


def _first_not_finite(parts: ModelParts, records: dict[nn.Module, Record]) -> str | None:
    places: list[tuple[str, nn.Module | None, str]] = [("the embedding", parts.blocks[0].block, "input")]
    places += [(f"block {layer}", block.block, "output") for layer, block in enumerate(parts.blocks)]
    places += [("the final norm", parts.ln_final, "output"), ("the unembedding", parts.unembed, "output")]
    for where, module, side in places:
        record = records.get(module) if module is not None else None
        if record is not None and not _is_finite(getattr(record, side)):
            return where
    return None


def _is_finite(value: Tensor | None) -> bool:
    """Whether nothing is NaN or infinite; what is not there, or lies on meta (offloaded), is taken to be finite."""
    if value is None or value.is_meta or not value.is_floating_point():
        return True
    # fp8 types have no isfinite of their own.
    value = value.detach()
    return bool(torch.isfinite(value if value.element_size() > 1 else value.float()).all())
