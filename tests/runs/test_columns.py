"""Whose sites are whose: a coder is never renamed unless that was asked for."""

from __future__ import annotations

import pytest

import monosema as ms
from monosema.core.errors import ConfigError, ShapeError, UnknownNameError
from monosema.data.sites import RowLayout, layout_of
from monosema.runs.columns import columns_of

D = 8
FIRST, SECOND, OTHER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.0.hook_mlp_out"


def sae(name: str | None = None):
    return ms.SAE(D, 16, hook_name=name)


def transcoder(*names: str):
    return ms.Transcoder(D, D, 16, **dict(zip(("hook_name", "hook_name_out"), names, strict=False)))


def layout(*reads: str, writes: tuple[str, ...] = ()) -> RowLayout:
    sides = [tuple((name, D) for name in names) for names in (reads, writes or reads)]
    return RowLayout(*sides)


@pytest.mark.parametrize("out", [True, False])
def test_a_dictionary_of_another_site_is_not_renamed_silently(model, tokens, tmp_path, out):
    stream = ms.ActivationStream(model, tokens, SECOND, batch_size=32)
    config = ms.TrainingConfig(tokens=32 * 2)
    options = {"out": tmp_path / "run" if out else None, "progress": False, "evaluation": False}
    coder = ms.SAE(stream.d_in, 32, hook_name=FIRST)
    with pytest.raises(ConfigError, match=f"is for {FIRST}, the source's sites are {SECOND}; .*start_at_other_sites"):
        ms.train(coder, stream, config, **options)
    assert coder.hook_name == FIRST
    assert not (tmp_path / "run").exists()
    result = ms.train(coder, stream, config, start_at_other_sites=True, **options)
    assert (result.coder.hook_name, result.coder.hook_name_out) == (SECOND, SECOND)


def test_a_loaded_dictionary_is_trained_elsewhere_only_when_asked_and_the_config_says_so(model, tokens, tmp_path):
    config = ms.TrainingConfig(tokens=32 * 2)

    def train(coder, name, out, **options):
        stream = ms.ActivationStream(model, tokens, name, batch_size=32)
        return ms.train(coder, stream, config, out=tmp_path / out, progress=False, evaluation=False, **options)

    width = model.site(FIRST).width
    train(ms.SAE(width, 32), FIRST, "a")
    with pytest.raises(ConfigError, match="start_at_other_sites=True"):
        train(ms.load(tmp_path / "a"), SECOND, "b")
    train(ms.load(tmp_path / "a"), SECOND, "b", start_at_other_sites=True)
    assert "start_at_other_sites: true" in (tmp_path / "b" / "config.yaml").read_text()
    again = train(ms.load(tmp_path / "a"), SECOND, "b", start_at_other_sites=True)
    assert again.resumed_from == again.n_steps
    assert train(ms.load(tmp_path / "a"), FIRST, "c").coder.hook_name == FIRST


@pytest.mark.parametrize(
    ("coder", "source", "names"),
    [
        (sae(), layout(FIRST), (FIRST, FIRST)),
        (sae(FIRST), layout(FIRST), (FIRST, FIRST)),
        (sae("input"), layout(FIRST), (FIRST, FIRST)),
        (sae(SECOND), layout(FIRST, SECOND), (SECOND, SECOND)),
        (sae(FIRST), layout(FIRST, writes=(OTHER,)), (FIRST, FIRST)),
        (sae(), layout_of(D), ("input", "input")),
        (sae(FIRST), layout_of(D), (FIRST, FIRST)),
        (transcoder(), layout(FIRST, writes=(OTHER,)), (FIRST, OTHER)),
        (transcoder(FIRST), layout(FIRST, writes=(OTHER,)), (FIRST, OTHER)),
        (transcoder(FIRST, OTHER), layout_of(2 * D, D), (FIRST, OTHER)),
        (transcoder(FIRST), layout_of(2 * D, D), (FIRST, "target")),
        (transcoder(), layout_of(2 * D, D), ("input", "target")),
        (ms.Crosscoder((D, D), 16, hook_names=(SECOND, FIRST)), layout(FIRST, SECOND), 2 * (f"{SECOND}+{FIRST}",)),
        (ms.Crosscoder((D, D), 16), layout_of(2 * D), ("input", "input")),
    ],
)
def test_names_are_the_sources_where_it_has_some_and_the_coders_elsewhere(coder, source, names):
    columns = columns_of(coder, source)
    assert (columns.hook_name, columns.hook_name_out) == names


@pytest.mark.parametrize(
    ("coder", "source"),
    [
        (sae(SECOND), layout(FIRST)),
        (transcoder(SECOND, "blocks.1.hook_mlp_out"), layout(FIRST, writes=(OTHER,))),
        (ms.Crosscoder((D, D), 16, hook_names=("x", "y")), layout(FIRST, SECOND)),
    ],
)
def test_other_sites_are_refused_unless_asked_for(coder, source):
    with pytest.raises(ConfigError, match=r"the coder is for .*, the source's sites are "):
        columns_of(coder, source)
    columns = columns_of(coder, source, at_other_sites=True)
    assert (columns.hook_name, columns.hook_name_out) == (source.read_name, source.write_name)
    assert columns.slices is None


def test_a_source_that_gives_only_some_of_its_sites_is_refused():
    for source in (layout(FIRST, SECOND), layout(FIRST, writes=(SECOND,))):
        with pytest.raises(UnknownNameError, match=f"unknown site of the stream '{OTHER}'"):
            columns_of(transcoder(FIRST, OTHER), source)
    moved = columns_of(transcoder(FIRST, OTHER), layout(FIRST, writes=(SECOND,)), at_other_sites=True)
    assert (moved.hook_name, moved.hook_name_out) == (FIRST, SECOND)


@pytest.mark.parametrize("at_other_sites", [False, True])
def test_a_transcoder_needs_targets_and_an_autoencoder_has_none(at_other_sites):
    with pytest.raises(ConfigError, match=r"writes other sites than it reads \(input -> target\).*with targets="):
        columns_of(transcoder(), layout(FIRST), at_other_sites=at_other_sites)
    with pytest.raises(ConfigError, match=r"reconstructs what it reads \(input\).*leave out targets="):
        columns_of(sae("input"), layout(FIRST, writes=(OTHER,)), at_other_sites=at_other_sites)


def test_widths_that_differ_are_refused():
    with pytest.raises(ShapeError, match="Make the coder with d_in=8"):
        columns_of(ms.SAE(D + 1, 16), layout(FIRST))
    with pytest.raises(ShapeError, match=r"sites read are \(4, 12\) wide, the source's \[8, 8\]"):
        columns_of(ms.Crosscoder((4, 12), 16), layout(FIRST, SECOND))
