"""Where the dense product overtakes the sparse kernels: the measurement behind ``kernels.bags.DENSE_DENSITY``.

    python benchmarks/density.py

Times ``decode``, ``sampled_products`` and ``weight_gradient`` both ways on random entries of growing density, and what
a training step pays for all of them (one decode, one of the products, the column order, two weight gradients). Prints
the table and the density at which the two curves of each cross.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from report import command, markdown_table, n_processors, processor
from torch import Tensor

from monosema.kernels import Latents, bags, latents_from_mask

DENSITIES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24)
STEP = "whole step"


def random_latents(n_tokens: int, d_sae: int, density: float, generator: torch.Generator) -> Latents:
    """Each entry active with probability ``density``, values uniform on (0, 1)."""
    values = torch.rand(n_tokens, d_sae, generator=generator)
    return latents_from_mask(values.div_(density), values < 1)


def operations(latents: Latents, x_BD: Tensor, weight_FD: Tensor) -> Mapping[str, Callable[[], object]]:
    """The kernels on given entries, by name."""
    columns = bags.to_columns(latents)

    def step() -> None:
        bags.decode(latents, weight_FD)
        products = bags.sampled_products(latents, x_BD, weight_FD)
        order = bags.to_columns(latents)
        bags.weight_gradient(order, latents.values, x_BD)
        bags.weight_gradient(order, products, x_BD)

    return {
        "decode": lambda: bags.decode(latents, weight_FD),
        "sampled_products": lambda: bags.sampled_products(latents, x_BD, weight_FD),
        "weight_gradient": lambda: bags.weight_gradient(columns, latents.values, x_BD),
        STEP: step,
    }


@contextmanager
def forced(dense: bool) -> Iterator[None]:
    """Inside, every kernel takes the dense path, or none does."""
    usual = bags.DENSE_DENSITY
    bags.DENSE_DENSITY = -1.0 if dense else math.inf
    try:
        yield
    finally:
        bags.DENSE_DENSITY = usual


def milliseconds(work: Callable[[], object], n_repeats: int) -> float:
    """Median time of one call, after one that does not count."""
    work()
    times = []
    for _ in range(n_repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def crossover(densities: Sequence[float], sparse: Sequence[float], dense: Sequence[float]) -> float | None:
    """The density at which the sparse time first exceeds the dense one, interpolated; None where it never does."""
    gaps = [s - d for s, d in zip(sparse, dense, strict=True)]
    if gaps[0] > 0:
        return densities[0]
    for place in range(1, len(gaps)):
        if gaps[place] > 0:
            low, high = densities[place - 1], densities[place]
            return low + (high - low) * -gaps[place - 1] / (gaps[place] - gaps[place - 1])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure where dense products overtake the sparse kernels.")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.batch_size, options.d_in, generator=generator)
    weight = torch.randn(options.d_sae, options.d_in, generator=generator)

    times: dict[str, dict[bool, list[float]]] = {}
    for density in DENSITIES:
        latents = random_latents(options.batch_size, options.d_sae, density, generator)
        for name, work in operations(latents, x, weight).items():
            for dense in (False, True):
                with forced(dense):
                    times.setdefault(name, {False: [], True: []})[dense].append(milliseconds(work, options.repeats))

    header = ["density", *(f"{name}, {way}" for name in times for way in ("sparse", "dense"))]
    rows = [
        [f"{density:.1%}", *(f"{times[name][dense][place]:.1f}" for name in times for dense in (False, True))]
        for place, density in enumerate(DENSITIES)
    ]
    print(markdown_table(header, rows))
    print(
        f"\nms; B {options.batch_size}, d {options.d_in}, n {options.d_sae}, float32, {options.threads} threads on "
        f"{processor()} ({n_processors()} processors), torch {torch.__version__}. Printed by `{command()}`."
    )
    for name, both in times.items():
        found = crossover(DENSITIES, both[False], both[True])
        print(f"{name}: dense is faster above {'the densities tried' if found is None else f'{found:.1%}'}")
    print(f"DENSE_DENSITY is {bags.DENSE_DENSITY}; it should be near the crossover of the {STEP}")


if __name__ == "__main__":
    main()
