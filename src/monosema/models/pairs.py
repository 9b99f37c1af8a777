"""Encoder-decoders: refused, with advice that was tried."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from monosema.core.errors import UserError, first_line


def is_part_of_pair(hf: Any, parameters: Container[str]) -> bool:
    """Whether a model is an encoder-decoder, or a decoder that reads what an encoder found.

    ``parameters`` are those of its forward pass. The encoder of such a pair stands alone, though its configuration
    may still say ``is_encoder_decoder``, as those of BART and T5 do.
    """
    if not getattr(hf.config, "is_encoder_decoder", False):
        return False
    # The two stacks of T5 are of one class, and say which they are.
    reads_encoder = "encoder_hidden_states" in parameters and getattr(hf, "is_decoder", True)
    return "decoder_input_ids" in parameters or reads_encoder


def refuse_pair(hf: Any, load: Callable[[Any], object]) -> UserError:
    """The error for an encoder-decoder; ``load`` tries whether its encoder alone can be loaded."""
    name = type(hf).__name__
    what = f"{name} is an encoder-decoder, or the decoder of one; only decoders and encoders that stand alone are"
    encoder = hf.get_encoder() if hasattr(hf, "get_encoder") else hf
    if encoder is None or encoder is hf:
        return UserError(f"{what} supported. Hand in the encoder of the whole model: load_model(model.get_encoder())")
    try:
        load(encoder)
    except Exception as error:  # noqa: BLE001 - whatever stops it is told
        return UserError(f"{what} supported. Its encoder alone cannot be loaded either: {first_line(error)}")
    return UserError(
        f"{what} supported. Load its encoder alone: model = transformers.AutoModel.from_pretrained(name), then "
        "load_model(model.get_encoder(), tokenizer=name)"
    )
