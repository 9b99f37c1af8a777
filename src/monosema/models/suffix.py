"""The blocks of a model from one on, run without those before it.

A forward pass that differs from an earlier one in late blocks only need not compute the early ones again: their
``forward`` is set aside, and the last of them returns what it returned then. All the rest of the model's own code runs
as ever (embedding, masks, rotary angles, hooks); that the blocks hand on nothing else is checked on a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from monosema.models.calls import ModuleCall
from monosema.models.language_model import LanguageModel, SiteName
from monosema.models.verify import probe_tokens

_OF_OUTPUTS = ("hook_resid_post", "hook_normalized_resid_post", ":out")


@final
class Suffix:
    """What of ``model`` runs again after edits of ``names``: the blocks behind the first ``n_blocks``.

    ``n_blocks`` is 0 where nothing can be left out: a site lies before the blocks, the blocks hand on more than one
    activation, run several times in a pass, or have edits already. It is 0 as well where the probe's logits differ in
    any bit, for whatever reason: passes are then whole, which is slower and changes no figure.
    """

    def __init__(self, model: LanguageModel, names: Iterable[SiteName]) -> None:
        """Find the blocks to leave out; runs ``model`` on a few tokens."""
        self._model = model
        self.n_blocks = min((_n_before(model, name) for name in names), default=0)
        if self.n_blocks and (model.hooked_modules([]) or not self._holds()):
            self.n_blocks = 0

    @property
    def start(self) -> tuple[nn.Module, ...]:
        """The module whose value ``resumed`` wants, for ``capture``; none where nothing is left out."""
        return self._model.blocks[self.n_blocks - 1 : self.n_blocks]

    @property
    def start_name(self) -> str:
        """The name under which ``capture`` gives its value; empty where there is none."""
        return next((self._model.site(module).name for module in self.start), "")

    @contextmanager
    def resumed(self, start_BTD: Tensor | None) -> Iterator[None]:
        """Inside, forward passes on the tokens that gave ``start_BTD`` at ``start`` leave out the blocks up to it.

        Their results are those of whole passes, to the bit.
        """
        blocks = self._model.blocks[: self.n_blocks]
        if not blocks:
            yield
            return
        assert start_BTD is not None
        before = [block.__dict__.get("forward") for block in blocks]
        try:
            for block in blocks:
                block.__dict__["forward"] = _hands_on(block)
            blocks[-1].__dict__["forward"] = lambda *_, **__: start_BTD.clone()  # later blocks may add in place
            yield
        finally:
            for block, own in zip(blocks, before, strict=True):
                block.__dict__.pop("forward", None)
                if own is not None:
                    block.__dict__["forward"] = own

    def _holds(self) -> bool:
        model = self._model
        tokens_BT = probe_tokens(model.vocab_size, model.special_token_ids, model.device, model.context_size)
        whole_BTV, values = model.logits_and_sites(tokens_BT, self.start)
        try:
            # Without gradients as above: a processor's kernels may give other last bits where they are recorded.
            with torch.no_grad(), self.resumed(next(iter(values.values()))):
                return bool(torch.equal(model(tokens_BT), whole_BTV))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False  # a block gives its caller more than an activation


def _hands_on(block: nn.Module) -> Callable[..., Tensor]:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return ModuleCall(block, "in", args, kwargs).input

    return forward


def _n_before(model: LanguageModel, name: SiteName) -> int:
    """How many of the first blocks an edit of one site changes nothing in."""
    indices = {id(part): index for index, block in reversed(list(enumerate(model.blocks))) for part in block.modules()}
    modules = model.hooked_modules([name])
    if not all(id(module) in indices for module in modules):
        return len(model.blocks) if model.site(name).name.startswith("ln_final.") else 0
    first = min(indices[id(module)] for module in modules)
    is_output = modules == {model.blocks[first]} and model.site(name).name.endswith(_OF_OUTPUTS)
    return first + is_output
