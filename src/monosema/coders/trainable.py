"""``TrainableDictionary``: a dictionary made of sparse coders, which the step of ``training`` can update."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from monosema.coders.config import CoderConfig, StackConfig, TokenScaling
from monosema.coders.dictionary import Dictionary
from monosema.coders.parts import Part
from monosema.coders.scaling import Scaling
from monosema.core.errors import CapabilityError
from monosema.kernels.precision import product

if TYPE_CHECKING:
    from monosema.coders.coder import SparseCoder


class TrainableDictionary(Dictionary):
    """A dictionary whose parts are sparse coders: each has the three calls of a training step."""

    saved_kind: ClassVar[Literal["coder", "stack"]]
    """What a file calls such a dictionary."""
    config: CoderConfig | StackConfig
    b_dec: nn.Parameter | None
    """``[d_out]``: what is added to the output."""
    b_dec_in: nn.Parameter | None
    """``[d_in]``: what is subtracted from the input, where that is a bias of its own."""
    W_skip: nn.Parameter | None
    """``[d_in, d_out]``: the linear map from input to output."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Part[SparseCoder], ...]:
        """The sparse coders and their columns."""

    @abstractmethod
    def set_token_scaling(self, kind: TokenScaling) -> None:
        """From now on scale tokens as ``kind`` says, in place; the weights stay and mean something else."""

    @abstractmethod
    def scale_tokens(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` as the weights see it: ``x`` itself without ``token_scaling``."""

    @abstractmethod
    def add_own_gradients_(self, gradients: dict[str, Tensor], g_out: Tensor) -> None:
        """Add to the gradients of the parts, by parameter, what belongs to the dictionary as a whole, in place.

        ``g_out [..., d_out]`` is ∂loss/∂output.
        """

    @abstractmethod
    def fold_input_scaling(self, input_scaling: Scaling, output_scaling: Scaling) -> None:
        """Turn a dictionary of scaled activations into one of raw activations, in place."""

    @abstractmethod
    def fold_selection_weights(self) -> None:
        """Scale latents by the decoder norms that weight their selection, in place, and weight it no more."""

    @abstractmethod
    def fold_W_dec_norm(self) -> Tensor:
        """Make decoder rows unit norm in place, the function unchanged; returns the norms ``[d_sae]`` divided out."""

    def offset(self, x_BI: Tensor) -> Tensor:
        """What of the output does not come from latents, ``b_dec [+ x W_skip]``: ``[1, O]``, ``[B, O]`` with a skip.

        ``x [B, d_in]`` is the input as the weights see it, and the output is not scaled back.
        """
        bias = x_BI.new_zeros(1, self.d_out, dtype=self.dtype)
        if self.b_dec is not None:
            bias = bias + self.b_dec
        if self.W_skip is not None:
            bias = bias + product(x_BI.to(self.dtype), self.W_skip)
        return bias


def require_sparse_coders(dictionary: Dictionary, action: str) -> TrainableDictionary:
    """``dictionary`` where its parts are sparse coders; else ``CapabilityError`` that says that it cannot be
    ``action`` ("trained", "saved")."""
    if isinstance(dictionary, TrainableDictionary):
        return dictionary
    raise CapabilityError(
        f"{dictionary.variant_words}: it cannot be {action} here, because its parts are not sparse coders. It can be "
        "evaluated, read and put in its site's place; dictionaries of ms.SAE, ms.Transcoder, ms.Crosscoder and ms.CLT "
        f"can be {action}"
    )
