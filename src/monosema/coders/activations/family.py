"""What an activation says of itself, without torch: the head of the family of activations, and their registration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

from monosema.core.errors import FileError
from monosema.core.families import Family

if TYPE_CHECKING:
    from torch import Tensor

    from monosema.coders.activations.base import Activation

Inference = Literal["topk", "threshold"]
Equivariance = Literal["none", "common", "each"]
A = TypeVar("A", bound="type[ActivationConfig]")


@dataclass(frozen=True, kw_only=True)
class SavedRule:
    """How pre-activations become latents at inference, in the words that file formats share."""

    name: str
    """``relu``, ``tanhrelu``, ``topk``, ``abstopk``, ``batchtopk``, ``jumprelu``, ``absthreshold`` or ``gated``; of an
    activation of another package it may be any other name. A format refuses a name that it does not know."""
    k: float | None = None
    """Active latents per token, of rules that fix a number."""
    by_decoder_norm: bool = False
    """Whether latents are compared by ``pre_i · ‖W_dec_i‖`` rather than by ``pre_i``."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """``threshold``, or ``b_gate``, ``r_mag`` and ``b_mag``: each ``[d_sae]``."""

    def whole_k(self) -> int:
        """k of a rule that selects a whole number of latents; ``FileError`` where the file does not state it."""
        if self.k is None or int(self.k) != self.k:
            article = "an" if self.name.startswith("a") else "a"
            raise FileError(f"{article} {self.name} dictionary must state k as a whole number, got {self.k}")
        return int(self.k)


class ActivationConfig(Family, ABC):
    """How pre-activations become sparse latents: the options of one activation, and what it says of itself.

    A kind is a frozen dataclass whose fields are its options, each with a line of help below it. ``build`` makes the
    module that computes. Nothing else in the library knows an activation by its name.
    """

    default_sparsity: ClassVar[Mapping[str, Any] | None] = None
    """The sparsity loss where a run gives none, as a plain config (``{"kind": "L1", "target_l0": 32}``); None for no
    loss."""
    decoder_init_norm: ClassVar[float] = 0.1
    """Norm that decoder rows start with where the coder's config gives none."""
    prefers_unit_norm: ClassVar[bool] = False
    """Whether ``decoder="auto"`` holds decoder rows at norm one, whatever the sparsity loss."""
    architecture: ClassVar[str | None] = None
    """The name by which SAEBench's graphs group its dictionaries; None for the name of the class."""

    @abstractmethod
    def build(self, d_sae: int) -> Activation:
        """The module, for ``d_sae`` latents."""

    @abstractmethod
    def scale_equivariance(self) -> Equivariance:
        """Whether ``f(c · pre) = c · f(pre)`` for factors c > 0, own parameters scaled along by ``scale_latents_``.

        ``each``: for any factor of each latent. ``common``: for one factor of all latents. ``none``: for no factor but
        1. Decoder norms are folded into the encoder as far as this allows.
        """

    def infers_by(self, rule: SavedRule) -> bool:
        """Whether a dictionary with this activation may have been saved under ``rule``. A file that records this config
        is then read with it; another one is read with the activation whose ``of_rule`` takes the rule."""
        return False

    @classmethod
    def of_rule(cls, rule: SavedRule) -> ActivationConfig | None:
        """The activation that infers by ``rule``, where a file says no more; None for a rule of other activations."""
        return None


class FixedCount(ActivationConfig):
    """The head of activations that select a fixed number of latents, k of each token or on average.

    Losses on the number of active latents are refused with them, and ``k_start`` anneals their k.
    """

    k: float
    """Active latents per token."""
    inference: Inference
    """The rule at inference: the same choice, or all above the running threshold."""
    weight_by_decoder_norm: bool
    """Whether latents compete by ``pre_i · ‖W_dec_i‖`` rather than by ``pre_i``."""
    threshold_rate: float
    """Share of the newest batch in the running mean of the selection threshold."""

    def weighted(self, by_decoder_norm: bool) -> FixedCount:
        """The same options but for ``weight_by_decoder_norm``."""
        return replace(cast(Any, self), weight_by_decoder_norm=by_decoder_norm)

    def scale_equivariance(self) -> Equivariance:
        return "each" if self.weight_by_decoder_norm else "common"


def register_activation(kind: A) -> A:
    """Class decorator that makes an activation known by its class's name: to configs, files and the command line.

    The built-in ones are registered so as well. Register before a file that names the activation is loaded. Raises
    ``ConfigError`` for a class that is not a frozen dataclass below ``ActivationConfig``, or a name that is taken.
    """
    return ActivationConfig.register(kind)
