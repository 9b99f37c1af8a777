"""What a term of the objective is, and what it sees of a batch.

A term has a name, a value, and gradients with respect to the dictionary's output and to the latents of each of its
parts. A further term takes two files: its own, with its config (a ``terms.TermConfig``, whose ``build`` makes it), and
``config.py``, which has a field for that config. Configs are read without torch, so neither this file nor a term's own
imports it when it is loaded.

Shape letters: B tokens, G nested levels, I input width, O output width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from monosema.coders import Encoding, TrainableDictionary
    from monosema.coders.encoding import Contribution
    from monosema.kernels import Levels
    from monosema.training.revive import Dead


@dataclass(frozen=True)
class Batch:
    """A batch as the dictionary predicts it: what terms are computed from."""

    dictionary: TrainableDictionary
    """What is trained."""
    encodings: Sequence[Encoding]
    """One for each part of the dictionary."""
    y_BO: Tensor
    """The target."""
    bias: Tensor
    """What of the prediction does not come from latents: ``[1, O]``, or ``[B, O]`` with a skip connection."""
    levels: Sequence[Levels | None]
    """How the entries of each part were grouped."""
    errors: Tensor
    """``y - ŷ``: ``[B, O]``, or ``[B, G, O]`` with levels."""
    error_BO: Tensor
    """``y - ŷ`` of all active latents, which is the last level."""
    gate_error_BO: Tensor | None
    """``y`` less what the gates' values decode to; None where there are no gates."""
    weights_BO: Tensor
    """What the squared errors are multiplied by; broadcasts over ``[B, O]``."""
    coefficient: float
    """The sparsity coefficient λ."""
    p: float
    """The power of p-annealing."""
    dead: Sequence[Dead]
    """Which latents of each part are dead; empty where that is not known."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """0-d values of the terms before this one, by name."""


@dataclass(frozen=True)
class OnPart:
    """What a term asks of one part of the dictionary."""

    contributions: Sequence[Contribution] = ()
    """Its gradient with respect to the part's latents."""
    value: Tensor | None = None
    """0-d: what the part adds to the term's value, where this was not known before."""
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    """Gradients of further parameters of the part, by name. They are taken as they are: what unit norm forbids must be
    left out already."""


@dataclass(frozen=True)
class OnBatch:
    """A term on one batch."""

    value: Tensor | None = None
    """0-d: what is known of its value before parts are asked."""
    g_out: Tensor | None = None
    """∂term/∂ŷ: ``[B, O]``, or ``[B, G, O]`` with levels."""
    of_part: Callable[[int], OnPart | None] | None = None
    """What it asks of a part, by its number. Asked once for each part in turn, so that only one part's gradients are
    held at a time."""
    penalty: Tensor | None = None
    """0-d: of the sparsity loss, the value without its coefficient."""


@runtime_checkable
class Term(Protocol):
    """One summand of the loss. Pure: nothing is changed by it."""

    @property
    def name(self) -> str:
        """What its value is logged as, behind ``loss/``."""

    def on(self, batch: Batch) -> OnBatch | None:
        """Its value and gradients; None where it adds nothing to this batch."""


@dataclass(frozen=True)
class TermContext:
    """What a term may depend on beside its own config."""

    dictionary: TrainableDictionary
    """What is trained."""
    directions: Tensor | None = None
    """``[n, d_out]``: those of the SAE of ``TrainingConfig.sparse_connection``."""
    unit_norm: bool = False
    """Whether gradients of decoder rows leave out the part along the row."""
