"""Answers with `{seg}` to plain text and spans."""

import pytest

from pixellm.model.processing_pixellm import parse_template


@pytest.mark.parametrize(("template", "text", "phrases"), [
    ("the red circle {seg}.", "the red circle.", ["the red circle"]),
    ("The dog {seg} and the blue ring {seg} can roll.", "The dog and the blue ring can roll.", ["The dog", "the blue ring"]),
    ("there are none.", "there are none.", []),
    ("the dogs {seg} {seg}.", "the dogs.", ["the dogs", "the dogs"]),
    ("{seg}", "", [""]),
    ("the {name} caf\u00e9 {seg}!", "the {name} caf\u00e9!", ["the {name} caf\u00e9"]),
])
def test_each_span_is_the_phrase_before_its_seg(template, text, phrases):
    found, spans = parse_template(template)
    assert found == text
    assert [found[start:end] for start, end in spans] == phrases
