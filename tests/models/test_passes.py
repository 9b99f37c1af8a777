"""What an edit is told of its pass: against token ids, masks and documents given, and passes without a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from monosema.core.errors import UserError
from monosema.models import LanguageModel, PassContext, load_model

SITE = "blocks.1.hook_resid_post"
PROMPTS = torch.tensor([[2, 2, 5, 6], [3, 4, 7, 8]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
GREEDY = {"do_sample": False, "pad_token_id": 2, "eos_token_id": None}


@contextmanager
def followed(model: LanguageModel, site: str = SITE) -> Iterator[list[PassContext]]:
    """The contexts of all passes inside."""
    seen: list[PassContext] = []

    def note(value: Tensor, context: PassContext) -> Tensor:
        assert context.positions.shape == value.shape[:2]
        seen.append(context)
        return value

    with model.edits({site: note}):
        yield seen


def generate(model: LanguageModel, **options: Any) -> Any:
    return model.hf.generate(PROMPTS, attention_mask=MASK, max_new_tokens=3, **{**GREEDY, **options})


def test_a_pass_over_plain_contexts(model_of: Callable[[str], LanguageModel]):
    model = model_of("gpt2")  # special tokens 0 and 1, no padding token
    ids = torch.tensor([[0, 5, 6], [7, 1, 8]])
    with followed(model) as seen:
        model(ids)
        model.capture(ids[:1], [SITE])
    first, second = seen
    assert torch.equal(first.token_ids, ids)
    assert first.positions.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert first.is_special.tolist() == [[True, False, False], [False, True, False]]
    assert not first.is_padding.any() and not first.is_generated.any()
    assert first.is_prompt and first.n_cached == 0
    assert second.number != first.number and torch.equal(second.token_ids, ids[:1])


def test_padding_before_and_behind_the_text(model_of: Callable[[str], LanguageModel]):
    model = model_of("llama")
    with followed(model) as seen:
        model(PROMPTS, attention_mask=MASK)
        model(PROMPTS.flip(1), attention_mask=MASK.flip(1))
    assert seen[0].positions[0, 2:].tolist() == [0, 1] and seen[0].positions[1].tolist() == [0, 1, 2, 3]
    assert seen[0].is_padding.tolist() == (MASK == 0).tolist()
    assert seen[0].is_special.tolist() == [[True, True, False, False], [False] * 4]
    assert seen[1].positions[0, :2].tolist() == [0, 1]
    assert seen[1].is_padding.tolist() == (MASK.flip(1) == 0).tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # by restarted positions, by a mask
def test_documents_in_one_context_count_from_zero(family: str, model_of: Callable[[str], LanguageModel]):
    model = model_of(family)
    documents = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 1, 1, 2, 2]])
    with followed(model) as seen:
        model(torch.full((2, 6), 9), documents_BT=documents)
        model(torch.full((2, 6), 9))
    (context, plain) = seen
    assert context.positions[0, :5].tolist() == [0, 1, 2, 0, 1] and context.positions[1].tolist() == [0, 0, 1, 2, 0, 1]
    assert context.is_padding.tolist() == (documents < 0).tolist()
    assert plain.positions.tolist() == [[0, 1, 2, 3, 4, 5]] * 2, "the documents of one pass are not those of the next"


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "llama", "mamba"])
def test_generation_with_a_cache_tells_what_passes_over_the_whole_text_tell(
    family: str, model_of: Callable[[str], LanguageModel]
):
    model = model_of(family)
    with followed(model) as cached:
        text = generate(model, use_cache=True)
    with followed(model) as whole:
        assert torch.equal(generate(model, use_cache=False), text)
    assert [each.token_ids.shape[1] for each in cached] == [4, 1, 1]
    assert [each.token_ids.shape[1] for each in whole] == [4, 5, 6]
    assert [each.n_cached for each in cached] == [0, 4, 5] and [each.n_cached for each in whole] == [0, 0, 0]
    assert [each.is_prompt for each in cached] == [each.is_prompt for each in whole] == [True, False, False]
    for name in ("token_ids", "positions", "is_padding", "is_special", "is_generated"):
        parts = torch.cat([getattr(each, name) for each in cached], 1)
        assert torch.equal(parts, getattr(whole[-1], name)), name
    assert whole[-1].positions[:, 2:].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert whole[-1].is_generated.tolist() == [[False] * 4 + [True] * 2] * 2
    assert torch.equal(whole[-1].token_ids, text[:, :-1])


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True}])
def test_other_ways_to_generate_keep_places_and_padding(
    options: dict[str, Any], model_of: Callable[[str], LanguageModel]
):
    model = model_of("gemma2")
    with followed(model) as seen:
        generate(model, **options)
    copies = options.get("num_beams", 1)
    assert [each.n_cached for each in seen] == [0, 4, 5] and [each.is_prompt for each in seen] == [True, False, False]
    assert torch.equal(seen[0].is_padding, (MASK == 0).repeat_interleave(copies, 0))
    assert seen[1].positions.flatten().tolist() == [2] * copies + [4] * copies
    assert not seen[2].is_padding.any() and seen[2].is_generated.all()


def test_embeddings_in_place_of_ids(model_of: Callable[[str], LanguageModel]):
    model = model_of("llama")
    with followed(model) as seen:
        embeddings = model.hf.get_input_embeddings()(PROMPTS[1:])
        model.hf.generate(inputs_embeds=embeddings, max_new_tokens=2, **GREEDY)
    assert seen[0].token_ids is None and not seen[0].is_special.any()
    assert seen[0].is_prompt and not seen[1].is_prompt
    assert seen[1].token_ids is not None and seen[1].positions.tolist() == [[4]]


def test_a_cache_of_ones_own(model_of: Callable[[str], LanguageModel]):
    model = model_of("llama")
    with followed(model) as seen:
        cache = model.hf(PROMPTS[1:, :2], use_cache=True).past_key_values
        model.hf(PROMPTS[1:, 2:], past_key_values=cache, use_cache=True)  # the rest of a prompt
        model.hf(torch.tensor([[9]]), past_key_values=cache, use_cache=True)
    assert [each.positions.tolist() for each in seen] == [[[0, 1]], [[2, 3]], [[4]]]
    assert [each.is_prompt for each in seen] == [True, True, False]
    assert seen[2].is_generated.all()


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_edit_by_position_steers_generation_alike_with_and_without_a_cache(
    use_cache: bool, make_hf: Callable[..., Any]
):
    """One token of the prompt and one generated token are moved, by their positions in sequences padded on the left."""
    model = load_model(make_hf("llama", attn_implementation="sdpa"))  # eager attention gives NaN behind padding
    direction = torch.linspace(-3, 3, 32, dtype=torch.float64)

    def edit(value: Tensor, context: PassContext) -> Tensor:
        chosen = (context.positions == 1) & ~context.is_padding | (context.positions == 4) & context.is_generated
        return value + chosen.unsqueeze(-1) * direction

    options = {"output_scores": True, "return_dict_in_generate": True, "use_cache": use_cache}
    plain = generate(model, **options)
    with model.edits({SITE: edit}):
        steered = generate(model, **options)
    text = steered.sequences
    positions = torch.tensor([[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])
    chosen = torch.tensor([[0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0]]) == 1
    mask = torch.cat([MASK, torch.ones(2, 2, dtype=torch.int64)], 1)
    assert not torch.allclose(plain.scores[0], steered.scores[0])
    with torch.no_grad(), model.edits({SITE: lambda value: value + chosen.unsqueeze(-1) * direction}):
        logits = model.hf(text[:, :-1], attention_mask=mask, position_ids=positions).logits
    for step, scores in enumerate(steered.scores):
        torch.testing.assert_close(scores, logits[:, 3 + step].to(scores), rtol=1e-5, atol=1e-5)


def test_functions_of_the_value_alone_work_as_ever(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    """Whatever has no second argument without a default gets the value alone."""
    model = model_of("llama")
    with model.edits({SITE: lambda value: value * 2}):
        expected = model(tokens)
    single: list[Callable[..., Any]] = [
        lambda value, factor=2.0: value * factor,
        lambda *values: values[0] * 2,
        functools.partial(lambda factor, value: value * factor, 2),
        functools.partial(torch.mul, other=2.0),
        torch.nn.Identity(),
    ]
    for function in single[:-1]:
        with model.edits({SITE: function}):
            assert torch.equal(model(tokens), expected)
    with model.edits({SITE: single[-1]}):
        assert torch.equal(model(tokens), model(tokens))
    bound = SimpleNamespace(factor=2)
    method = functools.partial(lambda self, value, context: value * self.factor, bound)
    with model.edits({SITE: method}):
        assert torch.equal(model(tokens), expected)


def test_functions_that_need_more_are_refused(model_of: Callable[[str], LanguageModel]):
    model = model_of("llama")
    for function in (lambda value, context, factor: value, lambda value, *, factor: value):
        wanted = rf"edit of '{SITE}' needs the arguments .*factor"
        with pytest.raises(UserError, match=wanted), model.edits({SITE: function}):
            pass


def test_a_part_of_the_model_by_itself_has_no_context(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    model = model_of("llama")
    with followed(model):
        model.capture(tokens, [SITE])  # a pass that is stopped leaves nothing behind
        with pytest.raises(UserError, match=r"takes the context of a forward pass, and a part of the model runs"):
            model.hf.model(tokens)


def test_nothing_is_left_on_the_model(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    model = model_of("llama")
    model(tokens)

    def n_hooks() -> int:
        return len(model.hf._forward_hooks) + len(model.hf._forward_pre_hooks)

    def fail(value: Tensor, context: PassContext) -> Tensor:
        raise RuntimeError("inside the edit")

    before = n_hooks()
    with model.edits({SITE: lambda value: value}):
        assert n_hooks() == before and "generate" not in vars(model.hf), "values alone need no pass"
    with followed(model), followed(model):
        assert n_hooks() == before + 2 and "generate" in vars(model.hf)
    with pytest.raises(RuntimeError, match="inside the edit"), model.edits({SITE: fail}):
        model.hf.generate(tokens, max_new_tokens=1, **GREEDY)
    assert n_hooks() == before and "generate" not in vars(model.hf)
    assert model._passes._context is None and not model._passes._generations


def test_contexts_follow_the_value_to_its_device():
    context = PassContext(
        token_ids=None,
        positions=torch.zeros(1, 2, dtype=torch.int64),
        is_padding=torch.zeros(1, 2, dtype=torch.bool),
        is_special=torch.zeros(1, 2, dtype=torch.bool),
        is_generated=torch.zeros(1, 2, dtype=torch.bool),
        is_prompt=True,
        n_cached=0,
        number=1,
    )
    moved = context.to(torch.device("meta"))
    assert all(getattr(moved, name).is_meta for name in ("positions", "is_padding", "is_special", "is_generated"))
    assert context.to(torch.device("cpu")) is context


def test_models_of_half_precision_and_heads(make_hf: Callable[..., Any]):
    """An edit of one head in a context, on a model in bfloat16."""
    model = load_model(make_hf("llama", torch.bfloat16))
    with followed(model, "blocks.1.attn.hook_z[1]") as seen:
        model(PROMPTS)
    assert seen[0].positions.tolist() == [[0, 1, 2, 3]] * 2
