"""A plan measures without touching anything, and refuses what does not fit with what would."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import monosema as ms
from monosema.core.config import from_plain, merge
from monosema.core.errors import ConfigError
from monosema.runs import needs as needing
from monosema.runs import pace as pacing
from monosema.runs.config import CacheSource, RunConfig
from monosema.runs.needs import Needs
from monosema.runs.pace import Pace, times
from monosema.runs.session import build_tokens

SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def config(model_folder: Path, text_file: Path) -> Callable[..., RunConfig]:
    plain = {
        "model": {"source": str(model_folder)},
        "tokens": {"source": str(text_file), "context_size": 32, "heldout_fraction": 0.1},
        "stream": {"hook_names": [SITE], "batch_size": 64, "chunk_contexts": 40, "model_batch_size": 8},
        "coder": {"d_sae": 640, "activation": {"kind": "TopK", "k": 4}},
        "training": {"tokens": 6400},
    }
    return lambda **options: from_plain(RunConfig, merge(plain, options))


def test_a_measurement_draws_and_writes_nothing(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    planned = ms.plan(config(), seconds=0.2, out=tmp_path / "run")
    assert torch.equal(before, torch.random.get_rng_state())
    assert list(tmp_path.iterdir()) == []
    pace, times = planned.pace, planned.times
    assert pace is not None and times is not None
    assert min(pace.harvest, pace.step, pace.evaluation, pace.checkpoint_byte) > 0
    assert times.harvest == planned.needs.n_model_tokens / pace.harvest
    assert times.steps == planned.needs.n_steps * pace.step
    assert times.training == times.harvest + times.steps
    assert times.total == times.start + times.training + times.checkpoints + times.evaluation
    assert times.tokens_per_second == planned.needs.n_tokens / times.training
    assert "steps/s" in str(planned) and "operations" in str(planned)


def test_a_run_of_one_step_can_be_measured(config: Callable[..., RunConfig]) -> None:
    planned = ms.plan(config(training={"tokens": 64}, tokens={"heldout_fraction": 0.0}), seconds=0.01)
    assert planned.pace is not None and planned.times is not None
    assert (planned.needs.n_steps, planned.pace.evaluation) == (1, 0.0)


def test_times_by_hand(config: Callable[..., RunConfig]) -> None:
    run = config(training={"eval_every": 40}, evaluation={"n_tokens": 96})
    models = needing.outline_models(run)
    tokens = build_tokens(run.tokens, models)
    wanted = needing.needs(run, models, tokens)
    pace = Pace(load=1, warm_up=2, initialise=3, harvest=100, step=0.5, evaluation=0.25, checkpoint_byte=1e-3)
    alone = times(run, tokens, wanted, pace, load_text=4)
    assert alone.start == 10
    assert (alone.harvest, alone.steps, alone.training) == (6752 / 100, 50, 67.52 + 50)  # 211 contexts of 32
    assert alone.evaluation == 96 * 0.25 * (1 + 100 // 40)
    assert alone.checkpoints == pytest.approx(10 * wanted.disk.checkpoint * 1e-3)
    ahead = times(run, tokens, replace(wanted, prefetch=True), pace, load_text=4)
    first = 67.52 * wanted.rows_in_chunk / 6400
    assert ahead.training == pytest.approx(first + max(67.52 - first, 50))


def test_no_seconds_loads_no_weights(config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(pacing, "build_models", loaded)
    assert ms.plan(config(), seconds=0).times is None
    with pytest.raises(AssertionError, match="weights were loaded"):
        ms.plan(config(), seconds=1)


def test_what_memory_has_no_room_for_is_refused(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = needing.outline_models(config())
    tokens = build_tokens(config().tokens, models)

    def fits(**options: object) -> bool:
        return needing.needs(config(**options), models, tokens, count_model=False).fits

    total = needing.needs(config(), models, tokens).memory[0].total
    monkeypatch.setattr(needing, "free_memory", lambda device: total - 60_000)
    planned = ms.plan(config(), seconds=1)
    assert planned.pace is None
    (problem,) = planned.problems
    assert "do not fit into memory of cpu; one of these would: coder.d_sae=" in problem
    advice = problem.split("one of these would: ")[1].split(", ")
    assert len(advice) == 4
    for what in advice:
        section, name, value = what.replace("=", ".").split(".")
        assert fits(**fitting(section, name, int(value)))
        over = int(value) + (1 if name != "chunk_bytes" else 64 * 72)
        assert not fits(**fitting(section, name, over))


def fitting(section: str, name: str, value: int) -> dict[str, object]:
    return {section: {name: value} | ({"chunk_contexts": None} if name == "chunk_bytes" else {})}


def test_nothing_fits_where_the_model_alone_does_not(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needing, "free_memory", lambda device: 1000)
    (problem,) = ms.plan(config(coder={"d_sae": 16}), seconds=1).problems
    assert "no change of one option makes it fit" in problem


def test_what_the_disk_has_no_room_for_is_refused(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(coder={"d_sae": 32})
    need = ms.plan(run, seconds=0, cache="float32").needs.disk
    # the run's 6,400 rows and at most a context more, each of 16 values and three numbers of origin
    n_rows, rest = divmod(need.cache, 4 * 16 + 12)
    assert rest == 0 and 6400 <= n_rows < 6400 + 31
    small = ms.plan(run, seconds=0, cache="int8").needs.disk
    assert small.cache == n_rows * (16 + 12)
    monkeypatch.setattr(needing, "free_disk", lambda path: small.total)
    (problem,) = ms.plan(run, seconds=1, cache="float32").problems
    assert "do not fit on the disk; one of these would: a cache in int8" in problem


def test_a_cache_is_as_large_as_said(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    from monosema.data import ActivationStream
    from monosema.data.cache import write_cache
    from monosema.runs.session import build_model, build_stream

    run = config()
    model = build_model(run.model)
    stream: ActivationStream = build_stream(run.stream, model, build_tokens(run.tokens, model))
    said = ms.plan(run, seconds=0, cache="bfloat16").needs.disk.cache
    manifest = write_cache(stream, tmp_path, tokens=6400, dtype="bfloat16")
    assert manifest is not None and manifest.n_rows * (2 * 16 + 12) == said


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seconds": -1.0}, "seconds must not be negative"), ({"cache": "float64"}, "cache must be one of")],
)
def test_options_out_of_range(config: Callable[..., RunConfig], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ms.plan(config(), **options)


def test_a_crosscoder_between_models_is_planned(config: Callable[..., RunConfig], model_folder: Path) -> None:
    run = config(
        other_models={"chat": {"source": str(model_folder)}},
        stream={"hook_names": [f"base:{SITE}", "chat:blocks.0.hook_resid_post"]},
    )
    one, two = (ms.plan(each, seconds=0).needs for each in (config(), run))
    assert two.model_parameters == 2 * one.model_parameters
    assert two.dictionary_parameters == 2 * 32 * 640 + 640 + 32
    assert one.operations.model is not None
    assert two.operations.model == one.operations.model * 3 // 2


def test_a_start_is_counted_as_it_is(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    coder = ms.SAE(16, 128, activation=ms.TopK(k=4))
    ms.save(coder, tmp_path / "start")
    planned = ms.plan(config(coder={"d_sae": None, "start_from": str(tmp_path / "start")}), seconds=0)
    assert planned.needs.dictionary_parameters == sum(each.numel() for each in coder.parameters())
    assert json.dumps(planned.to_dict())


def test_needs_fit_where_memory_is_not_known(config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needing, "free_memory", lambda device: None)
    found: Needs = ms.plan(config(), seconds=0).needs
    assert found.fits


def test_a_run_on_a_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave out cache"):
        ms.plan(RunConfig(cache=CacheSource(folder="c")), seconds=0)
