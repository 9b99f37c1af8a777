"""What SAEBench and sae-lens ask of a dictionary, without either of them."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

import pytest
import torch

from monosema.coders import (
    CLT,
    SAE,
    AbsTopK,
    BatchTopK,
    Crosscoder,
    Gated,
    JumpReLU,
    ReLU,
    SparseCoder,
    TanhReLU,
    TopK,
    Transcoder,
)
from monosema.coders.config import ActivationConfig
from monosema.compat import saebench
from monosema.core.errors import ConfigError

D_IN, D_SAE, SITE = 6, 16, "blocks.3.hook_resid_post"
ACTIVATIONS = {
    "standard": ReLU(),
    "tanh_relu": TanhReLU(),
    "topk": TopK(k=3),
    "abs_topk": AbsTopK(k=3),
    "batch_topk": BatchTopK(k=3),
    "jumprelu": JumpReLU(),
    "gated": Gated(),
}


def sae(activation: ActivationConfig | None = None, site: str = SITE, **options: Any) -> SparseCoder:
    coder = SAE(D_IN, D_SAE, activation=activation or ReLU(), **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            values = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) / 2
            parameter.copy_(values.abs() if name.endswith("threshold") else values)
    coder.bind(site, site, {"model": {"name": "gpt2"}})
    return coder


def rows(*leading: int) -> torch.Tensor:
    return torch.randn(*leading, D_IN, generator=torch.Generator().manual_seed(2)) + 0.5


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("leading", [(7,), (3, 4)])
def test_it_computes_what_the_coder_does_to_the_bit(name: str, leading: tuple[int, ...]) -> None:
    coder = sae(ACTIVATIONS[name])
    adapted, x = saebench.adapter(coder), rows(*leading)
    with torch.no_grad():
        latents = coder.encode(x)
        assert torch.equal(adapted.encode(x), latents)
        assert torch.equal(adapted.decode(latents), coder.decode(latents))
        assert torch.equal(adapted(x), coder.decode(latents))
    assert latents.shape == (*leading, D_SAE)
    assert adapted.cfg.architecture == name


def test_the_decoder_is_differentiable() -> None:
    adapted = saebench.adapter(sae())
    latents = torch.ones(2, D_SAE, requires_grad=True)
    adapted.decode(latents).sum().backward()
    torch.testing.assert_close(latents.grad, adapted.W_dec.sum(1).expand(2, -1))


def test_weights_have_the_names_and_shapes_of_saebench() -> None:
    coder = sae()
    adapted = saebench.adapter(coder)
    assert adapted.W_enc.shape == (D_IN, D_SAE)
    assert adapted.W_dec.data.shape == (D_SAE, D_IN)
    assert adapted.b_enc is coder.b_enc
    assert adapted.b_dec is coder.b_dec
    assert not hasattr(adapted, "b_mag")
    assert (adapted.device, adapted.dtype) == (torch.device("cpu"), torch.float32)
    assert torch.equal(saebench.adapter(sae(b_dec="none")).b_dec, torch.zeros(D_IN))


def test_gated_has_its_bias_where_saebench_looks_for_it() -> None:
    adapted = saebench.adapter(sae(Gated()))
    assert adapted.b_enc is None
    assert adapted.b_mag.shape == (D_SAE,)


def test_a_cast_returns_itself_and_leaves_the_coder() -> None:
    coder = sae()
    adapted = saebench.adapter(coder)
    assert adapted.to(device="cpu", dtype=torch.float32) is adapted
    assert adapted.coder is coder  # nothing to do, nothing copied
    assert adapted.to(device="cpu", dtype=torch.bfloat16) is adapted
    assert (adapted.dtype, adapted.W_enc.dtype, adapted.cfg.dtype) == (torch.bfloat16, torch.bfloat16, "bfloat16")
    assert (coder.dtype, coder.config.dtype) == (torch.float32, "float32")
    with torch.no_grad():
        assert adapted(rows(4)).dtype == torch.bfloat16
        assert adapted.decode(torch.ones(2, D_SAE)).dtype == torch.bfloat16
    assert adapted.to(torch.float64).cfg.dtype == "float64"
    assert adapted.to("cpu").dtype == torch.float64


def test_the_config_is_a_mutable_dataclass_that_answers_for_its_metadata() -> None:
    cfg = saebench.adapter(sae()).cfg
    assert is_dataclass(cfg)
    assert json.loads(json.dumps(cfg.to_dict())) == json.loads(json.dumps(asdict(cfg)))
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer, cfg.hook_head_index) == ("gpt2", SITE, 3, None)
    assert (cfg.d_in, cfg.d_sae, cfg.dtype, cfg.device) == (D_IN, D_SAE, "float32", "cpu")
    assert (cfg.context_size, cfg.prepend_bos, cfg.seqpos_slice) == (128, True, (None,))
    assert (cfg.normalize_activations, cfg.model_from_pretrained_kwargs) == ("none", {})
    assert cfg.metadata.hook_name == SITE
    cfg.metadata.hook_name = "blocks.4.hook_resid_post"
    assert cfg.hook_name == "blocks.4.hook_resid_post"
    cfg.metadata = cfg.metadata  # SAEBench does this
    cfg.architecture_str = cfg.architecture  # type: ignore[attr-defined]  # and this


def test_what_training_recorded_is_what_is_evaluated_on() -> None:
    coder = sae(site="blocks.2.attn.hook_z[5]")
    tokens = {"source": "text", "context_size": 64, "begin_context": None, "positions": {"start": 2, "stop": 60}}
    coder.metadata["tokens"] = tokens
    cfg = saebench.adapter(coder).cfg
    assert (cfg.hook_name, cfg.hook_head_index, cfg.hook_layer) == ("blocks.2.attn.hook_z", 5, 2)
    assert (cfg.context_size, cfg.prepend_bos, cfg.seqpos_slice) == (64, False, (2, 60))
    cfg = saebench.adapter(coder, model_name="other", context_size=32, prepend_bos=True).cfg
    assert (cfg.model_name, cfg.context_size, cfg.prepend_bos) == ("other", 32, True)


def test_what_saelens_recorded_is_used_too() -> None:
    coder = sae()
    coder.metadata = {"saelens": {"model_name": "pythia-70m", "context_size": 99, "prepend_bos": False}}
    cfg = saebench.adapter(coder).cfg
    assert (cfg.model_name, cfg.context_size, cfg.prepend_bos) == ("pythia-70m", 99, False)


def test_the_embedding_counts_as_layer_zero() -> None:
    assert saebench.adapter(sae(site="hook_embed")).cfg.hook_layer == 0


def test_what_these_tools_cannot_evaluate_is_refused() -> None:
    transcoder = Transcoder(D_IN, D_IN, D_SAE, activation=ReLU())
    transcoder.bind("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", {})
    crosscoder = Crosscoder((3, 3), D_SAE, activation=ReLU())
    crosscoder.bind(
        "blocks.1.hook_resid_post+blocks.2.hook_resid_post", "blocks.1.hook_resid_post+blocks.2.hook_resid_post", {}
    )
    for coder, words in (
        (transcoder, r"a transcoder \(blocks.1.mlp.hook_in -> "),
        (crosscoder, "a crosscoder"),
        (CLT((4, 4), (4, 4), D_SAE, activation=ReLU()), "evaluate_replacement"),
        (sae(token_scaling="layer_norm"), "token_scaling='layer_norm'"),
        (SAE(D_IN, D_SAE, activation=ReLU()), r"coder\.bind"),
        (sae(site="model.layers.3:out"), "TransformerLens"),
    ):
        with pytest.raises(ConfigError, match=words):
            saebench.adapter(coder)


def test_a_model_that_is_not_recorded_must_be_named() -> None:
    coder = sae()
    coder.metadata.clear()
    with pytest.raises(ConfigError, match="model_name='gpt2'"):
        saebench.adapter(coder)
    assert saebench.adapter(coder, model_name="gpt2-medium").cfg.model_name == "gpt2-medium"
