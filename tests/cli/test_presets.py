"""Presets by name: ``--config examples:NAME``."""

from pathlib import Path

import pytest

from monosema.cli.main import main
from monosema.cli.presets import options_file, preset_table, presets


def test_a_name_is_the_file_of_the_package() -> None:
    assert options_file("examples:clt").parts[-3:] == ("examples", "builtin", "clt.yaml")
    assert options_file("examples:recipes/gpt2_transcoder").parts[-2:] == ("recipes", "gpt2_transcoder.yaml")
    assert options_file("examples/builtin/clt.yaml") == Path("examples/builtin/clt.yaml")


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_the_command_line_wins_over_a_preset(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--config", "examples:clt", "--training.tokens", "777", "--print-config"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "tokens: 777" in printed and "blocks.3.mlp.hook_in" in printed and "d_sae: 1024" in printed


def test_presets_are_listed_with_what_they_train(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--config", "examples:"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed == preset_table() + "\n"
    lines = dict(line.split(None, 1) for line in printed.splitlines())
    assert list(lines) == [f"examples:{name}" for name in presets()]
    assert lines["examples:sae"] == "An SAE of the residual stream after block 2"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("examples:ctl", "did you mean 'examples:clt'?"),
        ("examples:CLT", "did you mean 'examples:clt'?"),
        ("examples:gpt2_small_relu", "did you mean 'examples:recipes/gpt2_small_relu'?"),
        ("examples:../builtin/zzz", "unknown preset 'examples:../builtin/zzz'"),
        ("examples:zzz", "unknown preset 'examples:zzz'. The presets are"),
    ],
)
def test_an_unknown_name_is_refused_with_all_names(given: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", given, "--out", "never"]) == 2
    said = capsys.readouterr().err
    assert hint in said
    assert all(name in said for name in presets())
    assert not Path("never").exists()
