"""Some latents of a dictionary by what each adds to its output, for changes that are few and known beforehand.

Shape letters: B rows, K latents chosen, O output width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor


@final
@dataclass(frozen=True)
class LatentDirections:
    """The decoder's rows of K latents."""

    rows_KO: Tensor
    """What one unit of each latent adds to the output."""

    def change(self, difference_BK: Tensor) -> Tensor:
        """``decode(z′) - decode(z) [B, O]`` where z′ - z is ``difference_BK`` in these latents and zero in others.

        For decoders linear in their latents, without scaling by token: those of all dictionaries in raw units.
        """
        return difference_BK @ self.rows_KO
