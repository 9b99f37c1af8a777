"""Student's t distribution for a whole number of degrees of freedom, in closed form."""

from __future__ import annotations

import math
from functools import cache

LEVEL = 0.95
"""Of confidence intervals."""


def t_coverage(t: float, degrees: int) -> float:
    """``P(|T| <= t)`` of Student's t with ``degrees`` degrees of freedom, ``t >= 0``.

    With ``tan a = t / sqrt(degrees)``: ``sin a (1 + 1/2 cos^2 a + 1·3/(2·4) cos^4 a + …)`` for an even number,
    ``2/pi (a + sin a (cos a + 2/3 cos^3 a + 2·4/(3·5) cos^5 a + …))`` for an odd one, both up to
    ``cos^(degrees - 2) a``. Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term, total = (cosine if is_odd else 1.0), 0.0
    for power in range(1 if is_odd else 0, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


@cache
def t_quantile(degrees: int) -> float:
    """The t with ``P(|T| <= t) = 0.95``: half the width of a 95 % interval in standard errors.

    12.706 for one degree of freedom, 2.262 for nine, 1.960 in the limit. ``degrees`` is at least 1.
    """
    low, high = 0.0, 16.0
    while low < (middle := (low + high) / 2) < high:  # until no number lies between
        if t_coverage(middle, degrees) < LEVEL:
            low = middle
        else:
            high = middle
    return high
