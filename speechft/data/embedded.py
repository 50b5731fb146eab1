"""The speech that ships with speechft: seven minutes, five speakers, three languages.

``speechft/data/corpus/ATTRIBUTION.md`` says whose it is and under which licences;
``recipes/corpus.py`` made it.
"""

from __future__ import annotations

from pathlib import Path

from speechft.data.manifest import Manifest
from speechft.data.readers import read_manifest

CORPUS = Path(__file__).parent / "corpus"


def embedded_corpus() -> Manifest:
    """Read sentences and prompts, 16 kHz mono FLAC, under 8 MB in all.

    Every utterance has a text, a speaker, a language and ``extra["source"]``, the package it came
    from. Those of ``festvox-ru`` have phone labels. Prompts recorded in Italian and in Russian
    share the factor ``prompt``: the same content in two voices and two languages.
    """
    return read_manifest(CORPUS / "manifest.jsonl")
