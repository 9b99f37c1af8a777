"""``Dictionary``: what every sparse dictionary can do, whatever computes it.

Code outside this room uses this interface alone and never asks which class a dictionary has. ``SparseCoder`` and
``CrossLayerTranscoder`` are the classes that train (``trainable``); others may be used for inference.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from monosema.coders.config import TokenScaling
from monosema.coders.parts import Origin, Part, Place, Places
from monosema.coders.site_transform import SiteTransform, site_transform_of
from monosema.coders.sites import SiteRef, join_names, parse_sites
from monosema.core.errors import ConfigError, ShapeError, unknown_name
from monosema.core.words import counted
from monosema.kernels import Latents

LatentNumbers = Sequence[int] | Tensor
"""Several latents: a ``range``, a list or an int tensor ``[n]``. A range without steps gives views."""

D = TypeVar("D", bound="Dictionary")

_WORDS = {
    "SAE": "SAE",
    "Transcoder": "transcoder",
    "SkipTranscoder": "skip transcoder",
    "Crosscoder": "crosscoder",
    "CrossLayerTranscoder": "cross-layer transcoder",
}


class Dictionary(nn.Module, ABC):
    """Reads activation sites ``x``, encodes them as sparse latents ``f`` and writes predictions ``ŷ`` of sites.

    ``ŷ = Σ_i f_i decoder_row(i) + without_latents(x)``; with ``token_scaling`` of a dictionary that reconstructs, each
    token's output is scaled back by its own size. The input holds the sites read side by side, ``[..., d_in]``, and the
    output the sites written, ``[..., d_out]``.
    """

    config: Any
    """Frozen dataclass that describes it."""
    metadata: dict[str, Any]
    """Records of model, text and training, as plain values."""
    is_trained: bool
    """Whether its weights are those of raw activations (trained or loaded) rather than a fresh start."""
    loaded_from: Origin | None
    """Where it was loaded from, if it was."""

    def __init__(self, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.metadata = dict(metadata or {})
        self.is_trained = False
        self.loaded_from = None

    # -- what it is

    @property
    @abstractmethod
    def variant(self) -> str:
        """What it is called: ``SAE``, ``Transcoder``, ``SkipTranscoder``, ``Crosscoder``, ``CrossLayerTranscoder``, or
        the name of another kind. For people and tables; what a dictionary can do is asked of its other properties."""

    @property
    @abstractmethod
    def architecture(self) -> str:
        """Activation and variant in words: ``BatchTopK SAE``."""

    @property
    @abstractmethod
    def hook_name(self) -> str | None:
        """The sites read as one text, ``a+b`` where there are several; None where they are not recorded."""

    @property
    @abstractmethod
    def hook_name_out(self) -> str | None:
        """The sites written as one text; equal to ``hook_name`` for an SAE."""

    @property
    @abstractmethod
    def read_widths(self) -> tuple[int, ...]:
        """Widths of the sites read."""

    @property
    @abstractmethod
    def write_widths(self) -> tuple[int, ...]:
        """Widths of the sites written."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Part[Dictionary], ...]:
        """The groups of latents, in the order of their numbers; ``whole_part(self)`` where there is one group."""

    @property
    @abstractmethod
    def token_scaling(self) -> TokenScaling:
        """By which size of its own each token is scaled; ``none`` where latents are in the units of the sites."""

    @property
    @abstractmethod
    def has_skip(self) -> bool:
        """Whether the output depends on the input beside the latents."""

    @property
    @abstractmethod
    def n_active(self) -> float | None:
        """Active latents per token that it was made for; None where it names no number."""

    @property
    @abstractmethod
    def d_sae(self) -> int:
        """Number of latents of all parts."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @abstractmethod
    def bind(self, hook_name: str, hook_name_out: str, metadata: Mapping[str, Any]) -> None:
        """Record in place which sites it reads and writes, and where they came from."""

    @property
    def variant_words(self) -> str:
        """The variant in words."""
        return _WORDS.get(self.variant, self.variant)

    @property
    def reads(self) -> tuple[SiteRef, ...]:
        """The sites read, in the order of the input's columns; none where they are not recorded."""
        return parse_sites(self.hook_name)

    @property
    def writes(self) -> tuple[SiteRef, ...]:
        """The sites written, in the order of the output's columns; none where they are not recorded."""
        return parse_sites(self.hook_name_out)

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return sum(self.read_widths)

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return sum(self.write_widths)

    @property
    def reconstructs(self) -> bool:
        """Whether what is written is what is read (SAE, crosscoder)."""
        return self.hook_name == self.hook_name_out and self.d_in == self.d_out

    @property
    def is_layered(self) -> bool:
        """Whether latents are in layers: each part has a site that it reads, and its latents write from there on."""
        return not self.parts[0].is_whole

    def names_written(self, n: int) -> tuple[str, ...]:
        """A name for each of ``n`` sites written: its own, or ``site_0``, ``site_1`` … where not all are recorded."""
        names = tuple(map(str, self.writes))
        return names if len(names) == n else tuple(f"site_{number}" for number in range(n))

    @property
    def site_transform(self) -> SiteTransform:
        """In what the activations it was trained on differ from those of the plain model, as its metadata record."""
        return site_transform_of(self.metadata)

    # -- what it computes

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Activations ``[..., d_sae]`` of ``x [..., d_in]`` under the inference rule; autograd passes through."""

    @abstractmethod
    def encode_sparse(self, x: Tensor) -> Latents:
        """The same activations as ``Latents``, never built densely."""

    @abstractmethod
    def decode(self, latents: Latents | Tensor, x: Tensor | None = None) -> Tensor:
        """The sites written ``[..., d_out]``; ``x`` is the input, for dictionaries whose output depends on it."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``decode(encode(x), x)``: the prediction ``ŷ [..., d_out]`` of ``x [..., d_in]``."""

    def without_latents(self, x: Tensor | None = None) -> Tensor:
        """What it writes where no latent is active: ``[..., d_out]`` for ``x [..., d_in]``, ``[d_out]`` without x.

        Raises ``ShapeError`` without ``x`` where the output depends on it.
        """
        shape = () if x is None else tuple(x.shape[:-1])
        counts = torch.zeros(math.prod(shape) + 1, dtype=torch.int32, device=self.device)
        values = torch.zeros(0, dtype=self.dtype, device=self.device)
        return self.decode(Latents(counts, counts[:0], values, self.d_sae, shape), x)

    # -- its latents, one or several at once

    has_encoder_rows: ClassVar[bool] = True
    """Whether pre-activations are products of the input and a row for each latent; ``encoder_rows`` refuses if not."""
    has_decoder_rows: ClassVar[bool] = True
    """Whether the output is a sum of a row for each latent, times its activation; ``decoder_rows`` refuses if not."""

    @abstractmethod
    def encoder_rows(self, latents: LatentNumbers) -> Tensor:
        """``[n, width]``: what each latent's pre-activation is the product with, over the columns its part reads.

        Nothing of ``[d_sae, ...]`` is built. Raises ``ConfigError`` for a latent that does not exist,
        ``CapabilityError`` without ``has_encoder_rows``, and ``ShapeError`` where the parts asked for read several
        widths.
        """

    @abstractmethod
    def encoder_biases(self, latents: LatentNumbers) -> Tensor | None:
        """``[n]``: what is added to that product for each latent; None where nothing is, or by the activation."""

    @abstractmethod
    def decoder_rows(self, latents: LatentNumbers, site: SiteRef | int | None = None) -> Tensor:
        """``[n, width]``: what each latent adds to a site written for an activation of 1; zero where it writes nothing.

        ``site`` is one of ``writes`` or its number; all sites side by side, ``[n, d_out]``, without one. Nothing of
        ``[d_sae, ...]`` is built. Raises ``ConfigError`` for a latent that does not exist, ``CapabilityError`` without
        ``has_decoder_rows``, and ``UnknownNameError`` for a site that is not written.
        """

    def encoder_row(self, latent: int) -> Tensor:
        """``[width]``: ``encoder_rows`` of one latent."""
        return self.encoder_rows((latent,))[0]

    def decoder_row(self, latent: int, site: SiteRef | int | None = None) -> Tensor:
        """``[width]``: ``decoder_rows`` of one latent."""
        return self.decoder_rows((latent,), site)[0]

    def place_of(self, latent: int) -> Place:
        """The part of a latent and its number there."""
        found = self.places_of((latent,))
        return Place(int(found.parts[0]), int(found.indices[0]))

    def places_of(self, latents: LatentNumbers) -> Places:
        """The parts ``[n]`` of several latents and their numbers ``[n]`` there."""
        numbers = latent_tensor(latents, self.d_sae)
        starts = torch.tensor([part.latents.start for part in self.parts], device=numbers.device)
        parts = torch.bucketize(numbers, starts, right=True) - 1
        return Places(parts, numbers - starts[parts])

    def columns_of(self, site: SiteRef | int) -> slice:
        """The columns of the output that hold a site written, one of ``writes`` or its number."""
        widths = self.write_widths
        number = site if isinstance(site, int) else _number_of(site, self.writes, len(widths))
        if not 0 <= number < len(widths):
            raise ConfigError(
                f"site must be one of the {counted(len(widths), 'site')} written, numbered from 0, got {number}"
            )
        start = sum(widths[:number])
        return slice(start, start + widths[number])


def whole_part(dictionary: D) -> tuple[Part[D], ...]:
    """``parts`` of a dictionary whose latents are one group."""
    columns = slice(0, dictionary.d_in), slice(0, dictionary.d_out)
    return (Part("", dictionary, columns[0], (columns[1],), range(dictionary.d_sae)),)


def latent_tensor(latents: LatentNumbers, d_sae: int) -> Tensor:
    """``latents`` as int64 ``[n]``; ``ConfigError`` for one that does not exist, ``ShapeError`` for another shape."""
    if isinstance(latents, range):
        numbers = torch.arange(latents.start, latents.stop, latents.step)
    else:
        numbers = torch.as_tensor(latents).long()
    if numbers.ndim != 1:
        raise ShapeError(f"latents must be numbers [n], got a shape of {list(numbers.shape)}")
    if numbers.numel() and not (int(numbers.min()) >= 0 and int(numbers.max()) < d_sae):
        wrong = numbers[(numbers < 0) | (numbers >= d_sae)]
        raise ConfigError(f"a latent must be from 0 to {d_sae - 1}, got {int(wrong[0])}")
    return numbers


def rows_of(matrix: Tensor, latents: LatentNumbers) -> Tensor:
    """Some rows of ``matrix [d_sae, width]``: a view for a range without steps, else a copy of these rows alone."""
    if isinstance(latents, range) and latents.step == 1 and 0 <= latents.start <= latents.stop <= len(matrix):
        return matrix[latents.start : latents.stop]
    return matrix[latent_tensor(latents, len(matrix)).to(matrix.device)]


def _number_of(site: SiteRef, writes: tuple[SiteRef, ...], n_sites: int) -> int:
    if len(writes) != n_sites:
        raise ConfigError(
            f"the dictionary writes {counted(n_sites, 'site')} and records the names "
            f"{join_names(writes) or 'of none'}; give the "
            "site's number"
        )
    if site not in writes:
        raise unknown_name("site written", str(site), map(str, writes))
    return writes.index(site)
