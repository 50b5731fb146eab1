"""Weighted sums as they are written down."""

from __future__ import annotations

import pytest

from speechft.errors import ConfigError
from speechft.methods.weights import parse_weights

KNOWN = ("triplet", "barlow_twins", "vicreg", "dino")


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        (["triplet"], {"triplet": 1.0}),
        (("triplet:1", "barlow_twins:0.05"), {"triplet": 1.0, "barlow_twins": 0.05}),
        (["vicreg:5e-4", "dino : 2", "triplet"], {"vicreg": 5e-4, "dino": 2.0, "triplet": 1.0}),
    ],
)
def test_names_have_weights_in_their_order(entries, wanted):
    found = parse_weights(entries, KNOWN)
    assert found == wanted
    assert list(found) == list(wanted)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "losses: wants one or more of triplet, barlow_twins, vicreg, dino; there are none"),
        (["barlow_twin:0.1"], "losses: no 'barlow_twin'; did you mean 'barlow_twins'?"),
        (["ctc"], "losses: no 'ctc'; there are: triplet, barlow_twins"),
        ([""], "losses: no ''; there are"),
        (["dino", "triplet:1", "dino:0.2"], "losses: 'dino' is there twice"),
        (["dino:"], "the weight of 'dino:' wants a finite number above 0, got ''"),
        (["dino:0"], "got '0'"),
        (["dino:-1"], "got '-1'"),
        (["dino:nan"], "got 'nan'"),
        (["dino:inf"], "got 'inf'"),
        (["dino:1:2"], "the weight of 'dino:1:2' wants a finite number above 0, got '1:2'"),
        ("dino", "losses: wants a list of NAME:WEIGHT, got 'dino'"),
        ([3], "losses: wants a list of NAME:WEIGHT"),
    ],
)
def test_says_what_is_wrong(entries, words):
    with pytest.raises(ConfigError) as caught:
        parse_weights(entries, KNOWN)
    assert words in str(caught.value)


def test_errors_name_the_setting():
    with pytest.raises(ConfigError, match="objectives: no 'scor'; did you mean 'score'"):
        parse_weights(["scor:1"], ["score", "dino"], setting="objectives")
