"""Every MLP replaced at once: against coders whose score is known, and against forward passes without hooks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from evaluation_tiny import (
    BOS,
    MASK,
    VOCABULARY,
    WIDTH,
    constant_sae,
    identity_sae,
    random_sae,
    random_transcoder,
    runs_of_blocks,
    tiny_contexts,
    tiny_encoder,
)
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import GPT2Config, GPT2LMHeadModel

from monosema.coders import CLT, SAE, BatchTopK, CrossLayerTranscoder, ReLU, SparseCoder, Transcoder
from monosema.core.errors import ConfigError, DataError, ShapeError, UserError
from monosema.data import Tokens, TokenSplit
from monosema.evaluation import ReplacementReport, evaluate, evaluate_replacement
from monosema.metrics import fve
from monosema.models import LanguageModel

N_LAYERS = 3
READ = tuple(f"blocks.{layer}.mlp.hook_in" for layer in range(N_LAYERS))
WRITTEN = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS))


@pytest.fixture(scope="module")
def relu_model() -> LanguageModel:
    """A GPT-2 whose MLPs are ``ReLU(x W_1 + b_1) W_2 + b_2``: each is itself a transcoder."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=WIDTH,
        n_layer=N_LAYERS,
        n_head=2,
        n_inner=24,
        activation_function="relu",
        bos_token_id=BOS,
        eos_token_id=BOS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    hf, generator = GPT2LMHeadModel(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.dim() == 2 or "mlp" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return LanguageModel(hf.double(), None, name="tiny-gpt2")


@pytest.fixture(scope="module")
def text(relu_model: LanguageModel) -> Tensor:
    return tiny_contexts(relu_model)


def transcoders(skip: bool = False) -> list[SparseCoder]:
    """One for each MLP, bad ones; each with a bias."""
    coders = []
    for layer, (read, written) in enumerate(zip(READ, WRITTEN, strict=True)):
        coder = Transcoder(WIDTH, WIDTH, 24, activation=ReLU(), skip=skip, dtype="float64", seed=layer)
        fill(coder, layer)
        coder.bind(read, written, {})
        coders.append(coder)
    return coders


def cross_layer(tied: str = "none", n: int = N_LAYERS) -> CrossLayerTranscoder:
    coder = CLT([WIDTH] * n, [WIDTH] * n, 24, activation=ReLU(), tied=tied, dtype="float64")
    fill(coder, 7)
    coder.bind("+".join(READ[:n]), "+".join(WRITTEN[:n]), {})
    return coder


def fill(coder: torch.nn.Module, seed: int) -> None:
    """Biases and skip connections that are not zero, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            if name.rpartition(".")[2] in ("b_dec", "b_enc", "W_skip"):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def perfect(model: LanguageModel) -> list[SparseCoder]:
    """The MLPs themselves."""
    coders = transcoders()
    with torch.no_grad():
        for coder, block in zip(coders, model.hf.transformer.h, strict=True):
            coder.W_enc_rows.copy_(block.mlp.c_fc.weight.T)
            coder.b_enc.copy_(block.mlp.c_fc.bias)
            coder.W_dec.copy_(block.mlp.c_proj.weight)
            coder.b_dec.copy_(block.mlp.c_proj.bias)
    return coders


def perfect_stack(model: LanguageModel) -> CrossLayerTranscoder:
    """The MLPs themselves, written to their own layer alone."""
    stack = cross_layer()
    with torch.no_grad():
        for layer, coder in zip(stack.members, perfect(model), strict=True):
            layer.W_enc_rows.copy_(coder.W_enc_rows)
            layer.b_enc.copy_(coder.b_enc)
            layer.W_dec.zero_()
            layer.W_dec[:, :WIDTH] = coder.W_dec
        stack.b_dec.copy_(torch.cat([coder.b_dec for coder in perfect(model)]))
    return stack


@contextmanager
def patched(model: LanguageModel, mlps: dict[int, Callable[[Tensor], Tensor]], special: Tensor) -> Iterator[None]:
    """The MLP modules' ``forward`` exchanged outside special positions; no hook anywhere."""
    modules = {layer: model.hf.transformer.h[layer].mlp for layer in mlps}
    own = {layer: module.forward for layer, module in modules.items()}

    def replaced(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(special.unsqueeze(-1), own[layer](x), mlps[layer](x))

    try:
        for layer, module in modules.items():
            module.forward = replaced(layer)
        yield
    finally:
        for module in modules.values():
            del module.forward


class ByHand:
    """What the report must say, from plain forward passes with ``mlps`` in place of the model's."""

    def __init__(self, model: LanguageModel, contexts: Tensor, mlps: dict[int, Callable[[Tensor], Tensor]]):
        special = contexts == BOS
        self.outputs: dict[int, Tensor] = {}
        self.inputs: dict[int, Tensor] = {}

        def watched(layer: int) -> Callable[[Tensor], Tensor]:
            def run(x: Tensor) -> Tensor:
                self.inputs[layer], self.outputs[layer] = x[~special], mlps[layer](x)[~special]
                return mlps[layer](x)

            return run

        def logits() -> Tensor:
            return model.hf(input_ids=contexts, use_cache=False).logits

        clean_mlps: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[[Tensor], Tensor]:
            module = model.hf.transformer.h[layer].mlp
            whole = type(module).forward

            def run(x: Tensor) -> Tensor:
                clean_mlps[layer] = whole(module, x)[~special]
                return whole(module, x)

            return run

        with torch.no_grad():
            with patched(model, {layer: keep(layer) for layer in mlps}, special):
                clean = logits()
            with patched(model, {layer: watched(layer) for layer in mlps}, special):
                replaced = logits()
            with patched(model, dict.fromkeys(mlps, torch.zeros_like), special):
                zero = logits()
        counted = ~special[:, :-1] & ~special[:, 1:]
        targets = contexts[:, 1:][counted]
        runs = [run[:, :-1][counted] for run in (clean, replaced, zero)]
        self.ce_clean, self.ce_replaced, self.ce_zero = (cross_entropy(run, targets).item() for run in runs)
        log_p, *others = (run.log_softmax(-1) for run in runs)
        self.kl, self.kl_zero = (
            kl_div(log_q, log_p, log_target=True, reduction="batchmean").item() for log_q in others
        )
        self.fve = [fve(clean_mlps[layer], self.outputs[layer]) for layer in mlps]
        self.n_predicted = len(targets)


def assert_same(report: ReplacementReport, by_hand: ByHand) -> None:
    for name in ("ce_clean", "ce_replaced", "ce_zero", "kl", "kl_zero"):
        assert getattr(report, name) == pytest.approx(getattr(by_hand, name), rel=1e-10), name
    score = (by_hand.ce_zero - by_hand.ce_replaced) / (by_hand.ce_zero - by_hand.ce_clean)
    assert report.replacement_score == pytest.approx(score, rel=1e-9)
    assert [layer.fve for layer in report.layers] == pytest.approx(by_hand.fve, rel=1e-10)
    assert report.n_predicted_tokens == by_hand.n_predicted
    assert by_hand.ce_zero > by_hand.ce_clean + 0.5  # else the comparison would say little


@pytest.mark.parametrize("kind", ["transcoders", "stack"])
def test_the_mlps_themselves_score_one(kind: str, relu_model: LanguageModel, text: Tensor):
    coders = perfect(relu_model) if kind == "transcoders" else perfect_stack(relu_model)
    report = evaluate_replacement(coders, relu_model, text)
    assert report.replacement_score == pytest.approx(1.0, abs=1e-12)
    assert report.ce_replaced == pytest.approx(report.ce_clean, rel=1e-13)
    assert report.kl == pytest.approx(0.0, abs=1e-13)
    assert [layer.fve for layer in report.layers] == pytest.approx([1.0] * N_LAYERS, abs=1e-13)
    firing = []
    for block, x in zip(relu_model.hf.transformer.h, relu_model.capture(text, READ).values(), strict=True):
        pre = x[text != BOS] @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        firing.append((pre > 0).sum(-1).double().mean().item())
    assert [layer.l0 for layer in report.layers] == pytest.approx(firing, rel=1e-12)
    assert report.l0 == pytest.approx(sum(firing), rel=1e-12)


def test_coders_that_write_zero_score_zero(relu_model: LanguageModel, text: Tensor):
    coders = transcoders()
    stack = cross_layer()
    with torch.no_grad():
        for each in [*coders, *stack.members]:
            each.W_dec.zero_()
        for each in [*coders, stack]:
            each.b_dec.zero_()
    for each in (coders, stack):
        report = evaluate_replacement(each, relu_model, text)
        assert report.replacement_score == 0.0
        assert report.ce_replaced == report.ce_zero > report.ce_clean
        assert report.kl == report.kl_zero


@pytest.mark.parametrize("skip", [False, True], ids=["transcoders", "skip transcoders"])
def test_transcoders_read_the_replaced_run(skip: bool, relu_model: LanguageModel, text: Tensor):
    coders = transcoders(skip)
    by_hand = ByHand(relu_model, text, dict(enumerate(coders)))
    report = evaluate_replacement(coders, relu_model, text)
    assert_same(report, by_hand)
    for layer, coder in enumerate(coders):
        l0 = (coder.encode(by_hand.inputs[layer]) > 0).sum(-1).double().mean().item()
        assert report.layers[layer].l0 == pytest.approx(l0, rel=1e-12)
    clean = relu_model.capture(text, READ)[READ[2]][text != BOS]
    assert not torch.allclose(clean, by_hand.inputs[2]), "the last layer must see what the others changed"
    assert report.n_tokens == int((text != BOS).sum())
    assert report.n_special_positions == int((text == BOS).sum())


@pytest.mark.parametrize("tied", ["none", "per_source", "per_target"])
def test_a_cross_layer_transcoder_writes_to_all_later_layers(tied: str, relu_model: LanguageModel, text: Tensor):
    stack = cross_layer(tied)
    latents: dict[int, Tensor] = {}

    def mlp(target: int) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            own = stack.members[target]
            latents[target] = torch.relu(x @ own.W_enc_rows.T + own.b_enc)
            out = stack.b_dec[target * WIDTH : (target + 1) * WIDTH].expand_as(x)
            for source in range(target + 1):
                start = 0 if tied == "per_source" else (target - source) * WIDTH
                out = out + latents[source] @ stack.members[source].W_dec[:, start : start + WIDTH]
            return out

        return run

    by_hand = ByHand(relu_model, text, {layer: mlp(layer) for layer in range(N_LAYERS)})
    report = evaluate_replacement(stack, relu_model, text)
    assert_same(report, by_hand)
    l0 = [(latents[layer][text != BOS] > 0).sum(-1).double().mean().item() for layer in range(N_LAYERS)]
    assert [layer.l0 for layer in report.layers] == pytest.approx(l0, rel=1e-12)
    assert [(layer.hook_name, layer.hook_name_out, layer.d_sae) for layer in report.layers] == [
        (read, written, 24) for read, written in zip(READ, WRITTEN, strict=True)
    ]


def test_some_mlps_may_be_left_and_kinds_may_be_mixed(relu_model: LanguageModel, text: Tensor):
    only = {2: transcoders()[2], 0: transcoders()[0]}
    by_hand = ByHand(relu_model, text, only)
    report = evaluate_replacement({"late": only[2], "early": only[0]}, relu_model, text)
    assert_same(report, by_hand)
    assert any("1 of the model's 3 MLPs stay as they are: blocks.1.hook_mlp_out" in note for note in report.notes)
    mixed = evaluate_replacement([cross_layer(n=2), transcoders()[2]], relu_model, text)
    assert [layer.hook_name_out for layer in mixed.layers] == list(WRITTEN)
    assert not any("stay as they are" in note for note in mixed.notes)
    single = evaluate_replacement(transcoders()[1], relu_model, text)
    alone = evaluate(transcoders()[1], relu_model, text)
    for mine, theirs in (("replacement_score", "ce_loss_score"), ("ce_replaced", "ce_spliced"), ("kl", "kl")):
        assert getattr(single, mine) == pytest.approx(getattr(alone, theirs), rel=1e-10)
    assert single.layers[0].fve == pytest.approx(alone.fve, rel=1e-12)
    assert single.layers[0].l0 == alone.l0
    assert single.top1_agreement == alone.top1_agreement < 1
    assert single.intervals["ce_replaced"] == pytest.approx(alone.intervals["ce_spliced"], rel=1e-10)
    assert set(single.intervals) == {
        *("replacement_score", "ce_clean", "ce_replaced", "ce_zero", "kl", "kl_zero", "top1_agreement")
    }


def test_blocks_before_the_first_site_run_once(relu_model: LanguageModel, text: Tensor):
    totals = []
    for n in (1, 1, 2):  # the first also learns the shape of where runs begin
        counts = runs_of_blocks(relu_model)
        evaluate_replacement(transcoders()[2], relu_model, text[:n], batch_size=1)
        totals.append(counts.copy())
    per_batch = [two - one for one, two in zip(*totals[1:], strict=True)]
    assert per_batch == [1, 1, 3, 3]


def test_a_normalised_site_may_be_read(decoder: LanguageModel, contexts: Tensor):
    coder = random_transcoder("blocks.1.ln2.hook_normalized")
    report = evaluate_replacement(coder, decoder, contexts)
    assert report.ce_replaced == pytest.approx(evaluate(coder, decoder, contexts).ce_spliced, rel=1e-10)


def test_saes_one_after_the_other(decoder: LanguageModel, contexts: Tensor):
    first, second = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
    exact = evaluate_replacement([identity_sae(site=first), identity_sae(site=second)], decoder, contexts)
    assert exact.replacement_score == pytest.approx(1.0, abs=1e-12)
    half = [constant_sae(0.5, first), identity_sae(site=second)]
    report = evaluate_replacement(half, decoder, contexts)
    assert report.ce_replaced == pytest.approx(evaluate(half[0], decoder, contexts).ce_spliced, rel=1e-12)
    transcoder = random_transcoder("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    reader = random_sae("blocks.1.hook_mlp_out")
    reader.bind("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post", {})
    chain = evaluate_replacement([reader, transcoder], decoder, contexts)
    x = decoder.capture(contexts, ["blocks.1.mlp.hook_in"])["blocks.1.mlp.hook_in"][contexts != BOS]
    l0 = (reader.encode(transcoder(x)) != 0).sum(-1).double().mean().item()
    assert chain.layers[0].l0 == pytest.approx(l0, rel=1e-12), "it reads what the transcoder wrote"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_any_batch_size_gives_the_same_report(batch_size: int, relu_model: LanguageModel, text: Tensor):
    whole = evaluate_replacement(cross_layer(), relu_model, text)
    part = evaluate_replacement(cross_layer(), relu_model, text, batch_size=batch_size)
    for name in ("replacement_score", "ce_clean", "ce_replaced", "ce_zero", "kl", "kl_zero", "l0"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=1e-10)
    assert [layer.fve for layer in part.layers] == pytest.approx([layer.fve for layer in whole.layers], rel=1e-10)
    assert evaluate_replacement(cross_layer(), relu_model, text, n_tokens=21).n_tokens == 3 * 8


def test_a_batch_dependent_coder_has_its_inference_rule(relu_model: LanguageModel, text: Tensor):
    coders = []
    for read, written in zip(READ, WRITTEN, strict=True):
        coder = Transcoder(WIDTH, WIDTH, 24, activation=BatchTopK(k=3), dtype="float64")
        coder.activation.set_threshold(0.8)
        coder.bind(read, written, {})
        coders.append(coder.train())
    by_hand = ByHand(
        relu_model, text, {n: (lambda x, c=coder: c.decode(c.encode(x))) for n, coder in enumerate(coders)}
    )
    assert_same(evaluate_replacement(coders, relu_model, text), by_hand)
    assert all(coder.training for coder in coders)


def test_an_encoder_predicts_masked_tokens(encoder: LanguageModel, contexts: Tensor):
    sites = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"
    report = evaluate_replacement(random_transcoder(*sites), encoder, contexts)
    alone = evaluate(random_transcoder(*sites), encoder, contexts)
    assert report.ce_replaced == pytest.approx(alone.ce_spliced, rel=1e-12)
    assert report.ce_zero == pytest.approx(alone.ce_ablated, rel=1e-12)
    assert report.n_tokens == int(((contexts != BOS) & (contexts != MASK)).sum())
    assert any("masked text" in note for note in report.notes)
    with pytest.raises(ConfigError, match="no mask token"):
        evaluate_replacement(random_transcoder(*sites), tiny_encoder(), contexts)


def test_the_held_out_split_is_used_and_overlap_is_of_all(relu_model: LanguageModel, text: Tensor):
    train, heldout = (
        TokenSplit(part.int(), frozenset({BOS}), name) for part, name in ((text[:4], "train"), (text[4:], "heldout"))
    )
    tokens = Tokens(train, heldout, {"source": "test"})
    coders = transcoders()
    for coder in coders:
        coder.metadata["tokens"] = {"fingerprint": train.fingerprint}
    report = evaluate_replacement(coders, relu_model, tokens)
    assert (report.split, report.overlap, report.tokens_fingerprint) == ("heldout", "none", heldout.fingerprint)
    assert report.ce_replaced == evaluate_replacement(coders, relu_model, text[4:]).ce_replaced
    coders[1].metadata.clear()
    assert evaluate_replacement(coders, relu_model, tokens).overlap == "unknown"
    trained_on = evaluate_replacement(coders, relu_model, train)
    assert trained_on.overlap == "same tokens"
    assert any("trained on these very tokens" in note for note in trained_on.notes)


def test_text_table_and_json(relu_model: LanguageModel, text: Tensor):
    report = evaluate_replacement(transcoders(), relu_model, text)
    shown = str(report)
    assert shown.splitlines()[0] == "3 sites of tiny-gpt2 replaced at once (zero ablation)"
    for part in (
        f"{report.replacement_score:.4f}",
        WRITTEN[2],
        f"fve {report.layers[2].fve:.4f}",
        f"ce_replaced                   {report.ce_replaced:.4f}  [{report.intervals['ce_replaced'][0]:.4f}, ",
        "n_predicted_tokens",
    ):
        assert part in shown
    assert f"<td>{WRITTEN[2]}</td>" in report._repr_html_()
    assert ReplacementReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report
    undefined = report.to_dict()
    del undefined["intervals"], undefined["top1_agreement"]  # as older versions wrote it
    undefined["replacement_score"] = undefined["layers"][0]["fve"] = None
    read = ReplacementReport.from_dict(undefined)
    assert math.isnan(read.replacement_score)
    assert math.isnan(read.layers[0].fve)
    assert "undefined" in str(read)


def test_what_does_not_fit_is_refused(relu_model: LanguageModel, decoder: LanguageModel, text: Tensor):
    with pytest.raises(ConfigError, match="no coder given"):
        evaluate_replacement([], relu_model, text)
    with pytest.raises(ConfigError, match=r"two coders write 'blocks.0.hook_mlp_out'"):
        evaluate_replacement([cross_layer(), transcoders()[0]], relu_model, text)
    joined = SAE(2 * WIDTH, 24, activation=ReLU(), dtype="float64")
    joined.bind("+".join(WRITTEN[:2]), "+".join(WRITTEN[:2]), {})
    with pytest.raises(ConfigError, match="joins several sites"):
        evaluate_replacement(joined, relu_model, text)
    backwards = transcoders()[0]
    backwards.bind(WRITTEN[1], WRITTEN[0], {})
    with pytest.raises(UserError, match=r"computes 'blocks.0.hook_mlp_out' before 'blocks.1.hook_mlp_out'"):
        evaluate_replacement(backwards, relu_model, text)
    scale = Transcoder(1, WIDTH, 4, activation=ReLU(), dtype="float64")
    scale.bind("blocks.0.ln2.hook_scale", WRITTEN[0], {})
    with pytest.raises(UserError, match=r"ln2.hook_scale' of tiny-gpt2 can be read but not written.*another site"):
        evaluate_replacement(scale, relu_model, text)
    narrow = Transcoder(8, WIDTH, 4, activation=ReLU())
    narrow.bind(READ[0], WRITTEN[0], {})
    with pytest.raises(ShapeError, match="d_in is 8"):
        evaluate_replacement(narrow, relu_model, text)
    with pytest.raises(ConfigError, match="n_tokens"):
        evaluate_replacement(transcoders(), relu_model, text, n_tokens=0)
    with pytest.raises(DataError, match="at least 2 tokens"):
        evaluate_replacement(transcoders(), relu_model, torch.zeros(2, 4, dtype=torch.long))
    damaged = transcoders()
    with torch.no_grad():
        damaged[1].W_dec.fill_(1e308)
    with pytest.raises(DataError, match=r"what is written to 'blocks.1.hook_mlp_out', batch 0"):
        evaluate_replacement(damaged, relu_model, text)
    with torch.no_grad():
        damaged[1].W_dec[0, 0] = math.nan
    with pytest.raises(DataError, match=r"the coder's W_dec must be finite"):
        evaluate_replacement(damaged, relu_model, text)
    assert relu_model(text).isfinite().all(), "no hook stays behind"
