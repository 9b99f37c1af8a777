"""KL of attention patterns: against softmax by hand, and against dictionaries whose figures are known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from evaluation_tiny import BOS, MASK, TOKENIZER, VOCABULARY, identity_sae, tiny_contexts, tiny_decoder, tiny_encoder
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from monosema.coders import SAE, Crosscoder, ReLU, SparseCoder
from monosema.data import TokenSplit
from monosema.evaluation import Report, evaluate, evaluate_many
from monosema.evaluation.comparison import write_csv
from monosema.evaluation.patterns import counted_queries
from monosema.evaluation.tasks import choose_masked, masked_token_task
from monosema.models import LanguageModel

D_HEAD = 4
TOLERANCE = 1e-6
"""Relative: also in float64 models, rotary angles and the softmax of a Llama are float32."""
FIGURES = ("pattern_kl", "pattern_kl_ablated", "pattern_kl_score", "n_pattern_queries")
HEAD = "blocks.1.attn.hook_q[0]"


def _random(hf, name: str, tokenizer=None) -> LanguageModel:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return LanguageModel(hf.double(), tokenizer, name=name)


def gpt2(**options) -> LanguageModel:
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return _random(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=BOS, eos_token_id=BOS, **options)), "gpt2")


def grouped(**options) -> LanguageModel:
    """A Llama of four query heads, of which pairs share a key head."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=BOS,
        eos_token_id=BOS,
        **options,
    )
    return _random(LlamaForCausalLM(config), "llama")


MODELS = {"gpt2": gpt2, "grouped": grouped}


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return grouped()


def head_sae(site: str = HEAD, width: int = D_HEAD, seed: int = 0) -> SparseCoder:
    coder = SAE(width, 12, activation=ReLU(), dtype="float64", seed=seed)
    coder.bind(site, site, {})
    return coder


def zero_sae(site: str = HEAD, width: int = D_HEAD) -> SparseCoder:
    coder = head_sae(site, width)
    with torch.no_grad():
        coder.W_dec.zero_()
    return coder


def rotated(x_BHTK: Tensor) -> Tensor:
    """Rotary embedding of the halves of each head (Su et al. 2021), base 10,000."""
    half = x_BHTK.shape[-1] // 2
    angles = torch.arange(x_BHTK.shape[2])[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    cos, sin = angles.cos().double(), angles.sin().double()
    a, b = x_BHTK.split(half, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def softmax_by_hand(model: LanguageModel, q: Tensor, k: Tensor) -> Tensor:
    """``[B, H, T, T]`` from projections ``[B, T, H·K]``: scaled scores, looking back only."""
    q, k = (x.unflatten(-1, (-1, D_HEAD)).transpose(1, 2) for x in (q, k))
    if model.name == "llama":
        q, k = rotated(q), rotated(k)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(D_HEAD)
    return scores.masked_fill(torch.ones(q.shape[2], q.shape[2]).triu(1).bool(), -math.inf).softmax(-1)


def kl_by_hand(p: Tensor, q: Tensor) -> Tensor:
    """Summed over keys, then the mean over heads: ``[B, T]`` of ``[B, H, T, T]``."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).mean(1)


def expected(
    model: LanguageModel, coder: SparseCoder, part: str, columns: slice, heads: list[int], tokens: Tensor
) -> dict[str, Tensor]:
    """By run, KL of each query ``[B, T]``."""
    names = [f"blocks.1.attn.hook_{each}" for each in "qk"]
    values = dict(zip("qk", model.capture(tokens, names).values(), strict=True))
    counted = tokens != BOS
    old = values[part][..., columns]
    with torch.no_grad():
        new = {"spliced": coder(old), "zero": old * 0, "mean": old[counted].mean(0).expand_as(old)}
    clean = softmax_by_hand(model, **values)[:, heads]
    found = {}
    for run, each in new.items():
        edited = values[part].clone()
        edited[..., columns] = torch.where(counted.unsqueeze(-1), each, old)
        found[run] = kl_by_hand(clean, softmax_by_hand(model, **{**values, part: edited})[:, heads])
    return found


CASES = {
    "gpt2": [("q[0]", [0]), ("q", [0, 1, 2, 3]), ("k[3]", [3])],
    "llama": [("q[0]", [0]), ("q[2]", [2]), ("k[1]", [2, 3]), ("k", [0, 1, 2, 3])],
}


def test_figures_are_those_of_softmax_by_hand(model: LanguageModel):
    contexts = tiny_contexts(model)
    counted = contexts != BOS
    for site, heads in CASES[model.name]:
        name = f"blocks.1.attn.hook_{site}"
        width = model.site(name).width
        first = int(site[2]) * D_HEAD if "[" in site else 0
        coder = head_sae(name, width)
        report = evaluate(coder, model, contexts, batch_size=4, progress=False)
        by_run = expected(model, coder, site[0], slice(first, first + width), heads, contexts)
        means = {run: kl[counted].mean().item() for run, kl in by_run.items()}
        assert means["zero"] > 0.01, "else the comparison would say little"
        assert report.ablations is not None
        assert report.pattern_kl_per_position is not None
        assert report.pattern_kl == pytest.approx(means["spliced"], rel=TOLERANCE), site
        assert report.pattern_kl_ablated == report.ablations["zero"].pattern_kl
        assert report.pattern_kl_score == report.ablations["zero"].pattern_kl_score
        assert report.n_pattern_queries == 6 * 8, "of 10 positions two are special, the first among them"
        for run in ("zero", "mean"):
            ablated, score = report.ablations[run], 1 - means["spliced"] / means[run]
            assert ablated.pattern_kl == pytest.approx(means[run], rel=TOLERANCE), (site, run)
            assert ablated.pattern_kl_score == pytest.approx(score, rel=TOLERANCE, abs=TOLERANCE), (site, run)
        for run, kl in by_run.items():
            by_hand = torch.stack([kl[:, t][counted[:, t]].mean() for t in range(10)])  # of none NaN
            assert by_hand.isnan().tolist() == [True, *[False] * 4, True, *[False] * 4]
            found = report.pattern_kl_per_position[run]
            torch.testing.assert_close(found, by_hand, rtol=TOLERANCE, atol=0, equal_nan=True)


def test_an_exact_dictionary_moves_nothing_and_a_silent_one_is_the_ablation(model: LanguageModel):
    contexts = tiny_contexts(model)
    for part in ("q[0]", "k[1]"):
        site = f"blocks.1.attn.hook_{part}"
        exact = evaluate(identity_sae(D_HEAD, site), model, contexts, progress=False)
        assert (exact.pattern_kl, exact.pattern_kl_score) == (0.0, 1.0)
        silent = evaluate(zero_sae(site), model, contexts, progress=False)
        assert silent.pattern_kl == silent.pattern_kl_ablated
        assert silent.pattern_kl_score == 0.0


def test_the_interval_is_that_of_documents(llama: LanguageModel):
    contexts = tiny_contexts(llama)
    report = evaluate(head_sae(), llama, contexts, progress=False)
    kl = expected(llama, head_sae(), "q", slice(0, 4), [0], contexts)["spliced"]
    documents = torch.stack([kl[:, 1:5], kl[:, 6:]], 1).flatten(0, 1)  # one begins at each special token
    rest = torch.tensor([documents[torch.arange(12) != i].mean() for i in range(12)])
    spread = 2.2009851601 * math.sqrt(rest.var(correction=0).item() * 11)  # t of 11 degrees of freedom
    assert report.pattern_kl is not None
    ends = report.pattern_kl - spread, report.pattern_kl + spread
    assert report.intervals["pattern_kl"] == pytest.approx(ends, rel=1e-4)
    assert report.intervals["pattern_kl_ablated"] == report.intervals["ablations/zero/pattern_kl"]
    low, high = report.intervals["pattern_kl_score"]
    assert low < report.pattern_kl_score < high


@pytest.mark.parametrize("name", sorted(MODELS))
def test_fast_attention_has_the_figures_of_eager_and_keeps_its_own_for_all_else(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    fast, eager = (MODELS[name](attn_implementation=each) for each in ("sdpa", "eager"))
    contexts = tiny_contexts(fast)
    found, reference = (evaluate(head_sae(), model, contexts, progress=False) for model in (fast, eager))
    assert fast.hf.config._attn_implementation == "sdpa"
    assert [getattr(found, each) for each in FIGURES] == pytest.approx(
        [getattr(reference, each) for each in FIGURES], rel=TOLERANCE
    )
    monkeypatch.setattr("monosema.evaluation.runs.compared_heads", lambda *_: None)
    without = evaluate(head_sae(), fast, contexts, progress=False)
    assert without.pattern_kl is None
    for each in ("ce_clean", "ce_spliced", "ce_ablated", "kl", "kl_ablated", "top1_agreement", "fve"):
        assert getattr(found, each) == getattr(without, each), each


def test_dictionaries_evaluated_together_have_what_each_has_alone(llama: LanguageModel):
    contexts = tiny_contexts(llama)
    coders = {
        "head 0": head_sae(),
        "head 1": head_sae("blocks.1.attn.hook_q[1]"),
        "keys": head_sae("blocks.1.attn.hook_k", 8),
        "layer 0": head_sae("blocks.0.attn.hook_k[1]"),
        "values": head_sae("blocks.1.attn.hook_v[0]"),
        "z": head_sae("blocks.1.attn.hook_z[0]"),
    }
    together = evaluate_many(coders, llama, contexts, batch_size=3, progress=False)
    for name, coder in coders.items():
        alone = evaluate(coder, llama, contexts, batch_size=3, progress=False)
        assert together[name].to_dict() == alone.to_dict(), name
        assert together[name].to_dict(per_latent=True) == alone.to_dict(per_latent=True), name
    assert len({together[name].pattern_kl for name in coders}) == 5
    for name in ("values", "z"):
        assert all(getattr(together[name], each) is None for each in (*FIGURES, "pattern_kl_per_position"))
        assert not any("attention" in note for note in together[name].notes)


def test_batches_do_not_matter(llama: LanguageModel):
    contexts = tiny_contexts(llama)
    one, many = (evaluate(head_sae(), llama, contexts, batch_size=size, progress=False) for size in (1, 6))
    assert [getattr(one, each) for each in FIGURES] == pytest.approx(
        [getattr(many, each) for each in FIGURES], rel=1e-12
    )
    assert one.pattern_kl_per_position is not None and many.pattern_kl_per_position is not None
    for run, per_position in one.pattern_kl_per_position.items():
        torch.testing.assert_close(per_position, many.pattern_kl_per_position[run], equal_nan=True, rtol=1e-12, atol=0)


def test_an_encoders_patterns_are_those_of_masked_text_both_ways():
    encoder = tiny_encoder(TOKENIZER)
    site = "blocks.1.attn.hook_k[0]"
    coder = SAE(8, 12, activation=ReLU(), dtype="float64")
    coder.bind(site, site, {})
    contexts = tiny_contexts(encoder)
    report = evaluate(coder, encoder, contexts, progress=False)
    special = (contexts == BOS) | (contexts == MASK)
    tokens = masked_token_task(contexts, choose_masked(special, 0), MASK).tokens
    q, k = encoder.capture(tokens, ["blocks.1.attn.hook_q", "blocks.1.attn.hook_k"]).values()
    edited = k.clone()
    with torch.no_grad():
        edited[..., :8] = torch.where(special.unsqueeze(-1), k[..., :8], coder(k[..., :8]))
    clean, spliced = (
        (q[..., :8] @ each[..., :8].transpose(-1, -2) / math.sqrt(8)).softmax(-1).unsqueeze(1) for each in (k, edited)
    )
    assert report.pattern_kl == pytest.approx(kl_by_hand(clean, spliced)[~special].mean().item(), rel=1e-9)
    assert report.n_pattern_queries == report.n_tokens == int((~special).sum())


def test_documents_kept_apart_have_the_patterns_of_each_alone(llama: LanguageModel):
    contexts = tiny_contexts(llama)
    numbers = (contexts == BOS).cumsum(1).to(torch.int32) - 1
    together = TokenSplit(contexts.int(), frozenset({BOS}), "contexts", documents=numbers)
    alone = torch.cat([contexts[:, :5], contexts[:, 5:]])
    apart = [evaluate(head_sae(), llama, each, progress=False) for each in (together, alone)]
    assert [getattr(apart[0], each) for each in FIGURES] == pytest.approx(
        [getattr(apart[1], each) for each in FIGURES], rel=1e-6
    )
    assert evaluate(head_sae(), llama, contexts, progress=False).pattern_kl != pytest.approx(
        apart[0].pattern_kl, rel=1e-2
    )


def test_a_query_with_one_key_does_not_count():
    counted = torch.tensor([[True] * 6, [True, False, True, True, True, False]])
    documents = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 1, -1]])
    expected = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]]).bool()
    assert torch.equal(counted_queries(counted, None, is_encoder=False), expected)
    expected = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0]]).bool()
    assert torch.equal(counted_queries(counted, documents, is_encoder=False), expected)
    assert torch.equal(counted_queries(counted, None, is_encoder=True), counted)


def test_text_without_special_tokens_leaves_out_the_first_of_each_context(llama: LanguageModel):
    contexts = tiny_contexts(llama)
    split = TokenSplit(contexts.int(), frozenset(), "contexts")
    report = evaluate(head_sae(), llama, split, progress=False)
    assert (report.n_tokens, report.n_pattern_queries) == (60, 54)
    assert report.pattern_kl_per_position is not None
    assert report.pattern_kl_per_position["spliced"].isnan().tolist() == [True] + [False] * 9


def test_one_blocks_attention_more_for_each_run_and_nothing_for_other_sites():
    model = tiny_decoder()
    contexts = tiny_contexts(model)
    counts = [0] * 5

    def count(index: int):
        def before(*_) -> None:
            counts[index] += 1

        return before

    parts = [block.input_layernorm for block in model.blocks] + [model.blocks[2].mlp, model.hf.get_output_embeddings()]
    for index, part in enumerate(parts):
        part.register_forward_pre_hook(count(index))

    def per_batch(coders: dict) -> list[float]:
        totals = []
        for n_contexts in (2, 2, 6):  # the first also learns what it must
            counts[:] = [0] * 5
            given = {"batch_size": 2, "outlier_norm_multiple": None, "progress": False}
            evaluate_many(coders, model, contexts[:n_contexts], **given)
            totals.append(counts.copy())
        return [(three - one) / 2 for one, three in zip(*totals[1:], strict=True)]

    def coders(part: str, n: int) -> dict:
        return {str(i): head_sae(f"blocks.2.attn.hook_{part}", 8, seed=i) for i in range(n)}

    values, queries = per_batch(coders("v[0]", 2)), per_batch(coders("q[0]", 2))
    assert queries[:2] == values[:2] == [1, 1]
    assert queries[2] - values[2] == 1 + 2 + 2, "clean, two ablations, two splices"
    assert queries[3:] == values[3:] == [5, 5], "the same for the losses; patterns end before the MLP"


def test_a_model_without_patterns_has_the_other_figures_and_a_note():
    model, contexts = gpt2(), tiny_contexts(gpt2())
    whole = evaluate(head_sae(), model, contexts, progress=False)
    attention = model.hf.transformer.h[1].attn
    own = attention.forward
    attention.forward = lambda *args, **kwargs: (own(*args, **kwargs)[0], None)
    report = evaluate(head_sae(), model, contexts, progress=False)
    assert all(getattr(report, each) is None for each in (*FIGURES, "pattern_kl_per_position"))
    (note,) = [note for note in report.notes if "attention" in note]
    assert note.startswith("no KL of attention patterns: GPT2Attention returned no attention weights")
    assert (report.ce_clean, report.ce_spliced, report.kl) == (whole.ce_clean, whole.ce_spliced, whole.kl)


def test_the_implementation_is_as_it_was_after_an_error(monkeypatch: pytest.MonkeyPatch):
    model = grouped(attn_implementation="sdpa")
    monkeypatch.setattr("monosema.evaluation.patterns.pattern_kl", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(head_sae(), model, tiny_contexts(model), progress=False)
    assert model.hf.config._attn_implementation == "sdpa"


def test_what_is_measured_and_what_is_not(llama: LanguageModel):
    contexts = tiny_contexts(llama)
    assert evaluate(head_sae(), llama, contexts, losses=False, progress=False).pattern_kl is None
    one = evaluate(head_sae(), llama, contexts, ablation="mean", progress=False)
    both = evaluate(head_sae(), llama, contexts, progress=False)
    assert one.ablations is not None and both.ablations is not None
    assert one.pattern_kl_ablated == one.ablations["mean"].pattern_kl == both.ablations["mean"].pattern_kl
    named = evaluate(head_sae(f"base:{HEAD}"), {"base": llama, "other": gpt2()}, contexts, progress=False)
    assert named.models is not None and named.pattern_kl is None
    assert named.models["base"].pattern_kl == both.pattern_kl
    assert Report.from_dict(json.loads(json.dumps(named.to_dict()))).models == named.models
    assert "pattern_kl_score" in str(named)
    pair = f"{HEAD}+blocks.1.attn.hook_q[1]"
    coder = Crosscoder([D_HEAD, D_HEAD], 12, activation=ReLU(), dtype="float64")
    coder.bind(pair, pair, {})
    assert evaluate(coder, llama, contexts, progress=False).pattern_kl is None


def test_the_report_keeps_the_figures_in_json_and_csv(llama: LanguageModel, tmp_path):
    report = evaluate(head_sae(), llama, tiny_contexts(llama), progress=False)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert len(report.to_dict(per_latent=True)["pattern_kl_per_position"]["spliced"]) == 10
    write_csv(
        {"a": report, "b": evaluate(head_sae("blocks.1.attn.hook_v[0]"), llama, tiny_contexts(llama))},
        tmp_path / "f.csv",
    )
    head, first, second = (line.split(",") for line in (tmp_path / "f.csv").read_text().splitlines())
    columns = {name: index for index, name in enumerate(head)}
    assert float(first[columns["pattern_kl"]]) == report.pattern_kl
    assert float(first[columns["pattern_kl low"]]) == report.intervals["pattern_kl"][0]
    assert first[columns["ablations/mean/pattern_kl_score"]] and not second[columns["ablations/mean/pattern_kl_score"]]
    assert "pattern_kl_score" in str(report)
