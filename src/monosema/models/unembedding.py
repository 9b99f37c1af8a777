"""A model's last linear map by itself: logits of some rows at a time, in memory that is used again.

``[B, T, V]`` logits of a large vocabulary are the largest tensor of a forward pass, and most of the time of writing
them goes into memory that is new to the process. Where they are nothing but ``hidden @ W_U + b_U``, a pass can end at
the unembedding and the rows that matter be multiplied out as they are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from monosema.models.language_model import LanguageModel, SiteName
from monosema.models.verify import probe_tokens


@final
class Unembedding:
    """The unembedding of ``model``, where its logits are that product and nothing else.

    ``site`` is the name under which ``capture`` gives what it reads, ``[B, T, D]``. It is empty where logits are more
    than the product (scaled or soft-capped), where the module is no plain linear map, and where it is edited. Callers
    then take the model's own logits, which is slower and changes no figure beyond the order of a sum.
    Shape letters: B batch, T token, N rows, D width, V vocabulary.
    """

    def __init__(self, model: LanguageModel, edited: Iterable[SiteName] = ()) -> None:
        """Find it; ``edited`` are sites that will be. Runs ``model`` on a few tokens."""
        self._memory = torch.empty(0)
        self.site = ""
        module = model.hf.get_output_embeddings()
        if type(module) is not nn.Linear or module in model.hooked_modules(edited):
            return
        self._module = module
        path = next(path for path, each in model.hf.named_modules() if each is module)
        tokens_BT = probe_tokens(model.vocab_size, model.special_token_ids, model.device, model.context_size)
        logits_BTV, values = model.logits_and_sites(tokens_BT, [f"{path}:in"])
        hidden_BTD = values[f"{path}:in"]
        where = (module.weight.dtype, module.weight.device)
        if any((each.dtype, each.device) != where for each in (hidden_BTD, logits_BTV)):
            return  # under autocast, or moved there by the module itself
        with torch.no_grad():  # the module's own call on the same shape: to the bit on any processor
            product_BTV = nn.functional.linear(hidden_BTD, module.weight, module.bias)
        if torch.equal(product_BTV, logits_BTV):
            self.site = f"{path}:in"

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """``hidden @ W_U + b_U``, ``[N, V]``, without gradients. The next call overwrites it."""
        weight_VD, bias_V = self._module.weight.detach(), self._module.bias
        n, vocab_size = len(hidden_ND), len(weight_VD)
        if self._memory.numel() < n * vocab_size or self._memory.dtype != hidden_ND.dtype:
            self._memory = hidden_ND.new_empty(n * vocab_size)
        out_NV = self._memory[: n * vocab_size].view(n, vocab_size)
        if bias_V is None:
            return torch.mm(hidden_ND, weight_VD.T, out=out_NV)
        return torch.addmm(bias_V.detach(), hidden_ND, weight_VD.T, out=out_NV)
