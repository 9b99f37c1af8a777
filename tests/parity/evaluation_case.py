"""A model, dictionaries and a text to evaluate, for us and for the peers; and every figure by its definition."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peer import Peer
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from monosema.coders import SAE, AbsTopK, BatchTopK, Gated, SparseCoder
from monosema.coders.config import ActivationConfig
from monosema.evaluation import Report, evaluate
from monosema.hub import load, save
from monosema.metrics import PublishedSums, log_probs, token_cross_entropy, token_kl
from monosema.models import LanguageModel

BOS, VOCABULARY, WIDTH, D_SAE = 0, 60, 16, 48
N_CONTEXTS, CONTEXT, BATCH = 12, 14, 4
SITE = "blocks.1.hook_resid_post"
ACTIVATIONS: dict[str, ActivationConfig] = {
    "BatchTopK": BatchTopK(k=6, weight_by_decoder_norm=False),
    "AbsTopK": AbsTopK(k=6, weight_by_decoder_norm=False),
    "Gated": Gated(),
}


@dataclass(frozen=True)
class Problem:
    """A model, a dictionary and a text, here and in files for the peer."""

    folder: Path
    model: LanguageModel
    coder: SparseCoder
    contexts: Tensor
    answers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the peer, by question."""

    @cached_property
    def report(self) -> Report:
        return evaluate(self.coder, self.model, self.contexts, n_tokens=None, batch_size=BATCH, progress=False)

    def saelens(self, peer: Peer, batch: int = BATCH, n_batches: int | None = None) -> Mapping[str, Any]:
        """All of its figures by name, on all contexts."""
        answer = self._answer(peer, "with_saelens", batch, n_batches)
        return flat(answer["metrics"]) | answer["features"]

    def saebench(
        self, peer: Peer, batch: int = BATCH, n_batches: int | None = None, restore_special: bool = True
    ) -> Mapping[str, Any]:
        """All of its figures by name, on all contexts; those of latents are lists."""
        folder = str(self.folder / "results")
        answer = self._answer(peer, "with_saebench", batch, n_batches, folder=folder, restore_special=restore_special)
        details = answer["eval_result_details"]
        return flat(answer["eval_result_metrics"]) | {key: [each[key] for each in details] for key in details[0]}

    def _answer(
        self, peer: Peer, command: str, batch: int, n_batches: int | None, **arguments: Any
    ) -> Mapping[str, Any]:
        arguments |= {"batch": batch, "n_batches": n_batches or N_CONTEXTS // batch}
        key = json.dumps([command, arguments])
        if key not in self.answers:
            self.answers[key] = peer.call(command, **self._files, **arguments)
        return self.answers[key]

    @property
    def _files(self) -> dict[str, str]:
        return {name: str(self.folder / name) for name in ("coder", "model", "tokens")}

    # -- the same by definition

    @cached_property
    def special(self) -> Tensor:
        return self.contexts == BOS

    @cached_property
    def site(self) -> Tensor:
        return self.model.capture(self.contexts, [SITE])[SITE]

    @cached_property
    def latents(self) -> Tensor:
        return self.coder.encode(self.site)

    @cached_property
    def reconstruction(self) -> Tensor:
        return self.coder.decode(self.latents)

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Sites and reconstructions at positions that are not special."""
        return self.site[~self.special], self.reconstruction[~self.special]

    def published(self, batch: int = BATCH) -> PublishedSums:
        total = PublishedSums(WIDTH)
        for part in range(0, N_CONTEXTS, batch):
            kept = ~self.special[part : part + batch]
            x, x_hat = self.site[part : part + batch][kept], self.reconstruction[part : part + batch][kept]
            total = total + PublishedSums.over(x, x_hat)
        return total

    def log_probs(self, replaced: Tensor | None = None) -> Tensor:
        """With ``replaced`` in the site's place at every position."""
        if replaced is None:
            return log_probs(self.model(self.contexts))
        with self.model.edits({SITE: lambda current: replaced}):
            return log_probs(self.model(self.contexts))

    @property
    def restored(self) -> Tensor:
        """The reconstruction, the site's own value at special positions."""
        return torch.where(self.special.unsqueeze(-1), self.site, self.reconstruction)

    def cross_entropy(self, log_p: Tensor) -> float:
        """As the peers count: where the input is not special, whatever the target."""
        return float(token_cross_entropy(log_p[:, :-1], self.contexts[:, 1:])[~self.special[:, :-1]].mean())

    def kl(self, log_q: Tensor) -> float:
        """As the peers count: at every position that is not special, the last one of a context included."""
        return float(token_kl(self.log_probs(), log_q)[~self.special].mean())


def flat(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for group in groups.values() for name, value in group.items()}


@torch.no_grad()
def make_problems(new_folder: Callable[[str], Path]) -> Mapping[str, Problem]:
    """By the name of the coder's activation: contexts that begin with BOS and have no other."""
    shape = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": WIDTH, "n_layer": 3, "n_head": 2}
    hf = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=BOS, eos_token_id=BOS)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in hf.parameters():
        if parameter.dim() == 2:
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    model = LanguageModel(hf, None, name="tiny")
    contexts = torch.randint(1, VOCABULARY, (N_CONTEXTS, CONTEXT), generator=generator)
    contexts[:, 0] = BOS
    for position in range(3, CONTEXT):  # text the model would write, so that ablation hurts
        contexts[:, position] = model(contexts[:, :position])[:, -1, 1:].argmax(-1) + 1
    site = model.capture(contexts, [SITE])[SITE][:, 1:].flatten(0, 1)
    made = {}
    for name, activation in ACTIVATIONS.items():
        folder = new_folder(name)
        hf.save_pretrained(folder / "model")
        save(_coder(activation, site), folder / "coder")
        save_file({"tokens": contexts}, folder / "tokens")
        made[name] = Problem(folder, model, load(folder / "coder"), contexts)  # type: ignore[arg-type]
    return made


def _coder(activation: ActivationConfig, site: Tensor) -> SparseCoder:
    """Unit decoder rows along some of the tokens, encoder rows nearly so, and the best scale."""
    coder = SAE(WIDTH, D_SAE, activation=activation)
    assert coder.b_dec is not None
    coder.b_dec.copy_(site.mean(0))
    directions = torch.nn.functional.normalize(site[::3][:D_SAE] - coder.b_dec)
    coder.W_dec.copy_(directions)
    coder.W_enc_rows.copy_(directions + 0.1 * torch.randn(D_SAE, WIDTH, generator=torch.Generator().manual_seed(3)))
    if isinstance(activation, BatchTopK):
        largest = coder.pre_activations(site).flatten().topk(6 * len(site) + 1).values
        coder.activation.set_threshold(float(largest[-2:].mean()))  # between two: no token is at the threshold
    elif isinstance(activation, Gated):
        coder.activation.get_parameter("b_gate").fill_(-9.0)
    written = coder(site) - coder.b_dec
    coder.W_dec.mul_((written * (site - coder.b_dec)).sum() / written.square().sum())
    coder.fold_W_dec_norm()
    coder.bind(SITE, SITE, {})
    return coder
