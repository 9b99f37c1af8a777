"""What every test runs under: runtime type checks, no network, a core a worker, an untouched global generator."""

import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as monosema has it where it is imported before torch

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent))  # for runtime_types, whatever pytest's import mode
if os.environ.get("TRITON_INTERPRET") != "1":  # the interpreter reads programs' source and globals
    install_import_hook("monosema", "runtime_types.check")  # before anything imports monosema
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

ROOMS_WITHOUT_GLOBAL_GENERATOR = ("core", "kernels", "coders")
"""Rooms whose tests may not move torch's global generator (those that build transformers models cannot join)."""


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips where torch.compile cannot build its kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations, while it imports its compiler
        try:
            torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
        except torch._dynamo.exc.TorchDynamoException as error:
            pytest.skip(f"torch.compile does not work here: {next(iter(str(error).splitlines()), '')}")


@pytest.fixture(autouse=True)
def global_generator_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that draws from, or seeds, torch's global generator: the library has named streams for that."""
    room = request.path.relative_to(Path(__file__).parent).parts[0]
    if room not in ROOMS_WITHOUT_GLOBAL_GENERATOR:
        yield
        return
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "this test changed torch's global random state"
