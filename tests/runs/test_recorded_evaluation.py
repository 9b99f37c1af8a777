"""The options of evaluation that a run recorded, as far as a file may say them."""

from pathlib import Path

import pytest

from monosema.core.errors import ConfigError
from monosema.runs.recorded_evaluation import recorded_evaluation


def test_what_a_run_recorded_is_found(tmp_path: Path) -> None:
    (tmp_path / "k16").mkdir()
    (tmp_path / "k16" / "config.yaml").write_text("evaluation: {n_tokens: null, ablation: mean, out: /x}")
    assert recorded_evaluation(tmp_path / "k16") == {"n_tokens": None, "ablation": "mean"}
    assert recorded_evaluation(tmp_path, "k16") == {"n_tokens": None, "ablation": "mean"}
    assert recorded_evaluation(tmp_path) == recorded_evaluation("owner/name") == {}


@pytest.mark.parametrize("text", ["evaluation: 3", "training: {}", "{", "evaluation: {other: 1}"])
def test_a_run_without_such_options_has_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert recorded_evaluation(tmp_path) == {}


@pytest.mark.parametrize("option", ["n_tokens: 5.0", "n_tokens: true", "n_loss_tokens: many", "ablation: [zero]"])
def test_other_values_are_refused_by_name(tmp_path: Path, option: str) -> None:
    (tmp_path / "config.yaml").write_text(f"evaluation: {{{option}}}")
    with pytest.raises(ConfigError, match=rf"says evaluation\.{option.split(':')[0]} = .*not taken from a file"):
        recorded_evaluation(tmp_path)
