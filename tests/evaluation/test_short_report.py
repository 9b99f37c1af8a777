"""The figures that are read first: those of the report, with their intervals and every note."""

from known_report import report

from monosema.evaluation import ModelLosses, short_report

LOSSES = {"ce_clean": 2.0, "ce_spliced": 2.5, "ce_ablated": 7.0, "ce_loss_score": 0.9, "kl": 0.4, "kl_ablated": 4.0}
LOSSES |= {"kl_score": 0.9, "top1_agreement": 0.8, "n_predicted_tokens": 190_000}


def test_a_dozen_lines_of_the_reports_figures() -> None:
    found = report(
        **LOSSES,
        intervals={"fve": (0.7, 0.8), "ce_loss_score": (0.85, 0.95)},
        n_documents=12,
        overlap="none",
        notes=("look here", "and here"),
    )
    lines = short_report(found).splitlines()
    assert len(lines) == 11
    assert lines[0] == found.title == "2,048 latents at blocks.1.hook_resid_post"
    assert lines[1].split()[:4] == ["fve", "0.7500", "[0.7000,", "0.8000]"]
    assert lines[2].split()[:4] == ["ce_loss_score", "0.9000", "[0.8500,", "0.9500]"]
    assert lines[3].split()[:6] == ["cross-entropy", "2.0000", "/", "2.5000", "/", "7.0000"]
    assert [line.split()[:2] for line in lines[4:8]] == [
        ["kl_score", "0.9000"],
        ["l0", "32.0000"],
        ["dead_fraction", "0.2500"],
        ["norm_ratio", "0.9500"],
    ]
    assert lines[8].split(maxsplit=1)[1] == (
        "200,192 tokens of 12 documents (heldout, not trained on), 190,000 predictions"
    )
    assert "look here" in lines[9] and "and here" in lines[10]


def test_what_was_not_measured_is_left_out() -> None:
    text = short_report(report())
    assert "ce_loss_score" not in text and "cross-entropy" not in text and "fve_all_rows" not in text
    assert "fve_all_rows   0.5000" in short_report(report(fve_all_rows=0.5))
    assert "trained on)" in short_report(report(overlap="same tokens"))


def test_each_model_has_its_losses() -> None:
    text = short_report(report(models={"chat": ModelLosses(**LOSSES, ablations={}, intervals={})}))
    assert "ce_loss_score of chat" in text and "cross-entropy of chat" in text
