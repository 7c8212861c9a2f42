"""Stop strings: the same result however the text is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnic.errors import InputError
from omnic.runtime.stopping import StopMatcher


def whole(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The stop string that is complete first, the longest of several, by trying every beginning."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(
    text=st.text("abc", max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 20), max_size=6),
)
def test_cutting_does_not_matter(text, stops, cuts):
    edges = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(text[a:b]) for a, b in itertools.pairwise(edges)) + matcher.finish()
    assert (shown, matcher.found) == whole(text, stops)


def test_no_more_is_held_back_than_needed():
    matcher = StopMatcher(["END"])
    assert [matcher.push(c) for c in "aENE"] == ["a", "", "", "EN"]
    assert matcher.push("NDx") == ""
    assert matcher.found == "END"
    assert matcher.push("more") == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InputError, match="a stop string is empty"):
        StopMatcher([""])
