"""What is wrong with a run's options is said before anything is loaded."""

from pathlib import Path

import pytest

import monosema as ms
from monosema.core.config import from_plain, merge
from monosema.core.errors import ConfigError, FileError, UnknownNameError
from monosema.models import load
from monosema.runs import launch as launching
from monosema.runs.config import RunConfig
from monosema.runs.launch import launch

SITE, OTHER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
MLP = {"hook_names": ["blocks.0.mlp.hook_in"], "targets": ["blocks.0.hook_mlp_out"]}
BOTH = {"hook_names": ["blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"], "targets": ["a", "b"]}

REFUSED = {
    "more active latents than there are": ({"coder": {"d_sae": 8}}, "k=32 exceeds d_sae=8"),
    "k annealed from above the latents": ({"coder": {"d_sae": 64}, "training": {"k_start": 65}}, "k_start=65 exceeds"),
    "a count loss on a fixed count": ({"training": {"sparsity": {"kind": "L0"}}}, "BatchTopK and L0 cannot be used"),
    "token scaling of a skip transcoder": (
        {"stream": MLP, "coder": {"skip": True}, "training": {"input_scaling": "layer_norm"}},
        "SkipTranscoder and layer_norm cannot be used together",
    ),
    "token scaling of a causal crosscoder": (
        {
            "stream": {"hook_names": [SITE, OTHER]},
            "coder": {"causal": True},
            "training": {"input_scaling": "layer_norm"},
        },
        "cannot be used with causal=True",
    ),
    "a prefix wider than the dictionary": (
        {"coder": {"d_sae": 64}, "training": {"levels": {"kind": "Matryoshka", "widths": [8, 65]}}},
        "Matryoshka",
    ),
    "site weights of other sites": ({"training": {"site_weights": [1, 2]}}, "2 site_weights for 1 sites written"),
    "fine-tuning alone of nothing": ({"training": {"tokens": 0, "finetuning": {"tokens": 64}}}, "tokens=0 leaves"),
    "more parts than rows": (
        {"stream": {"batch_size": 4}, "training": {"gradient_accumulation": 5}},
        "gradient_accumulation=5 exceeds",
    ),
    "a batch of nothing": ({"stream": {"batch_size": 0}}, "batch_size, model_batch_size and epochs"),
    "a chunk of two sizes": ({"stream": {"chunk_contexts": 4, "chunk_bytes": 99}}, "chunk_contexts or chunk_bytes"),
    "compiling in a thread": ({"stream": {"prefetch": True, "compile": "default"}}, "prefetch=True and compile"),
    "CUDA graphs": ({"stream": {"compile": "reduce-overhead"}}, "use compile='default'"),
    "an unknown dtype": ({"stream": {"dtype": "float31"}}, "float32"),
    "an unknown dtype of the model": ({"model": {"dtype": "float31"}}, "float32"),
    "a share above one": ({"tokens": {"heldout_fraction": 1.5}}, "heldout_fraction must be at least 0"),
    "evaluation on nothing": ({"tokens": {"heldout_fraction": 0}, "training": {"eval_every": 5}}, "eval_every needs"),
    "evaluation of nothing": ({"evaluation": {"n_tokens": 0}}, "n_tokens must be at least 1"),
    "a mask for one site": ({"coder": {"causal": True}}, "needs a crosscoder: two or more sites in stream.hook_names"),
    "a mask for a transcoder": ({"stream": MLP, "coder": {"causal": True}}, "this run's sites make a transcoder"),
    "tied decoders of an SAE": ({"coder": {"tied": "per_target"}}, "tied decoders belong to a cross-layer transcoder"),
    "a skip connection of an SAE": ({"coder": {"skip": True}}, "name them with stream.targets"),
    "a skip connection of several": ({"stream": BOTH, "coder": {"skip": True}}, "belongs to a transcoder of one site"),
    "a bias of several": ({"stream": BOTH, "coder": {"b_dec": "separate"}}, "leave out coder.b_dec"),
    "a bias of a crosscoder": (
        {"stream": {"hook_names": [SITE, OTHER]}, "coder": {"b_dec": "none"}},
        "a crosscoder's b_dec belongs to its output",
    ),
    "a site read twice": ({"stream": {"hook_names": [SITE, OTHER, SITE]}}, f"'{SITE}' is named twice"),
    "a site written twice": ({"stream": {**BOTH, "targets": ["a", "a"]}}, "'a' is named twice"),
    "a misspelt model": ({"model": {"source": "bultin"}}, "unknown model 'bultin'; did you mean 'builtin'"),
    "a misspelt text": ({"tokens": {"source": "sdtlib"}}, "unknown text 'sdtlib'; did you mean 'stdlib'"),
    "no SAE to connect to": ({"training": {"sparse_connection": {"path": "/nowhere/at/all"}}}, "/nowhere/at/all"),
}


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr(load, "load_model", loaded)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_no_model_is_refused_before_it_loads(case: str, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    with pytest.raises((ConfigError, UnknownNameError, FileError)) as refusal:
        launch(from_plain(RunConfig, options), tmp_path / "run")
    assert message in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"coder": {"expansion_factor": 0.5}},
        {"coder": {"activation": {"kind": "TopK", "k": 100_000}}},
        {"coder": {"d_sae": 200_000}, "training": {"levels": {"kind": "Matryoshka", "widths": [100_000]}}},
        {"stream": MLP, "coder": {"skip": True, "b_dec": "separate"}},
        {"stream": {"hook_names": [SITE, OTHER]}, "coder": {"causal": True}},
        {"stream": BOTH, "coder": {"tied": "per_source"}},
        {"training": {"input_scaling": "layer_norm"}},
        {"model": {"source": "gpt2"}, "tokens": {"source": "squad"}},
    ],
    ids=str,
)
def test_what_may_be_right_goes_on_to_the_model(options: dict, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a model was loaded first"):
        launch(from_plain(RunConfig, options), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coder": {"expansion_factor": 0.5}}, "k=32 exceeds d_sae=8"),
        ({"training": {"k_start": 300}}, "k_start=300 exceeds the 256 latents"),
        ({"stream": {"hook_names": ["blocks.9.hook_resid_post"]}}, "blocks.9.hook_resid_post"),
    ],
)
def test_what_needs_widths_is_refused_before_the_text(
    options: dict, message: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the text was loaded first")

    monkeypatch.setattr(launching, "build_tokens", loaded)
    plain = merge({"model": {"source": str(model_folder)}, "stream": {"hook_names": [SITE]}}, options)
    with pytest.raises((ConfigError, UnknownNameError)) as refusal:
        launch(from_plain(RunConfig, plain), tmp_path / "run")
    assert message in str(refusal.value)


def test_a_stream_refuses_a_site_named_twice(model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    with pytest.raises(ConfigError, match=f"'{SITE}' is named twice"):
        ms.ActivationStream(model, tokens, [SITE, SITE], 64)
