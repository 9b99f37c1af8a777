"""Names cover neither points nor each other."""

from __future__ import annotations

from monosema.evaluation.page.labels import Box, Labels


def test_a_name_goes_where_there_is_room():
    labels = Labels(Box(0, 0, 200, 200))
    first = labels.placed("name", 100, 100)
    assert first is not None and (first.text, first.get("text-anchor")) == ("name", "start")
    assert float(first.get("y")) > 100  # right and below
    second = labels.placed("name", 100, 100)
    assert second is not None and second.get("text-anchor") == "end"
    assert float(second.get("y")) < 100  # left and above
    corner = labels.placed("name", 196, 196)
    assert corner is not None and corner.get("text-anchor") == "end"
    assert labels.n_left_out == 0
    labels.keep_free(Box(0, 0, 200, 200))
    assert labels.placed("name", 50, 50) is None
    assert labels.n_left_out == 1


def test_long_names_keep_their_end():
    placed = Labels(Box(0, 0, 1000, 100)).placed("runs/a very long name of a folder/k64", 10, 50)
    assert placed is not None
    assert placed.text == "… name of a folder/k64"


def test_boxes_meet_where_they_overlap():
    box = Box(0, 0, 10, 10)
    assert box.meets(Box(9, 9, 20, 20)) and not box.meets(Box(10, 0, 20, 10))
    assert box.holds(Box(0, 0, 10, 10)) and not box.holds(Box(0, 0, 10, 11))
