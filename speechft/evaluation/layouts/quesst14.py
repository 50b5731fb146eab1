"""QUESST 2014, for query by example."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from speechft.data import Manifest, Utterance
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.layouts.base import EvaluationData, Layout
from speechft.evaluation.layouts.files import first_with, missing, read_lines

TYPES = ("T1", "T2", "T3")
"""Exact matches; variants of form, order or filler; spoken in a request."""

LOOKED_FOR = "scoring/language_key_utterances.lst (also below quesst14Database/)"

_TERM = re.compile(r"""\btermid\s*=\s*["']([^"']+)["']""")
# Object types of NIST's RTTM that say nothing of terms.
_OTHER_OBJECTS = {"SEGMENT", "NOSCORE", "NO_RT_METADATA", "NON-LEX", "NON-SPEECH", "FILLER",
                  "EDIT", "IP", "SU", "CB", "A/P", "SPEAKER", "SPKR-INFO"}  # fmt: skip


def quesst14(
    root: str | Path,
    *,
    queries: Literal["dev", "eval"] = "eval",
    language: str = "nnenglish",
) -> EvaluationData:
    """Read documents, queries and ground truth of QUESST 2014 (Anguera and others, 2014).

    Expected, as ``quesst14Database.tgz`` unpacks::

        ROOT/Audio/*.wav, dev_queries/*.wav, eval_queries/*.wav   or ROOT/quesst14Database/...
        ROOT/scoring/language_key_utterances.lst                  quesst14Database/Audio/X.wav LANG
        ROOT/scoring/language_key_dev.lst, language_key_eval.lst
        ROOT/scoring/groundtruth_quesst14_eval/quesst14_eval.rttm
        ROOT/scoring/groundtruth_quesst14_eval_T1/*.tlist.xml     (optional; also T2, T3)

    A query matches a document where a LEXEME line of the RTTM says so. SUPERB takes the documents
    and the queries of ``nnenglish``, the default here. Its figures come from the official scorer
    with the ground truth of all languages, in which queries that were not scored count as missed;
    so a score over these parts alone is not that of SUPERB.

    Args:
        root: the folder.
        queries: which queries; SUPERB chooses the layer on dev and reports eval.
        language: of documents and queries alike: albanian, basque, czech, nnenglish, romanian,
            slovak, or "all".

    Returns:
        The parts "queries" and "documents" and their relevance. A query that is in the ground
        truth by type has the factor ``query_type``, "T1", or "T1+T2" if it is of both. Rows of
        other languages are counted in ``left_out``.

    Raises:
        ArgumentError: ``queries`` is neither, or no document is in the language.
        ManifestError: naming the file and the line: a list or the RTTM is missing or malformed, a
            list names a file twice or one that is not there, or the RTTM a query or a document
            that the lists do not have.
    """
    root = Path(root)
    if queries not in ("dev", "eval"):
        raise ArgumentError("queries", f"wants 'dev' or 'eval', got {queries!r}")
    base = find(root)
    if base is None:
        raise missing(root, "QUESST 2014", LOOKED_FOR)
    scoring = base / "scoring"
    documents = _read_list(base, scoring / "language_key_utterances.lst")
    asked = _read_list(base, scoring / f"language_key_{queries}.lst")
    spoken = {str(utterance.language) for utterance in documents.values()}
    if language != "all" and language not in spoken:
        raise ArgumentError("language", f"wants {', '.join(sorted(spoken))} or all: {language!r}")
    types = _types(scoring, queries, asked)
    kept = {
        name: {
            id: utterance
            for id, utterance in rows.items()
            if language in ("all", utterance.language)
        }
        for name, rows in (("queries", asked), ("documents", documents))
    }
    pairs = _relevance(_rttm(scoring, queries), asked, documents)
    relevance = frozenset(
        (query, document)
        for query, document in pairs
        if query in kept["queries"] and document in kept["documents"]
    )
    return EvaluationData(
        name=f"quesst14 ({queries} queries, {language})",
        parts={
            "queries": Manifest(
                _with_type(utterance, types) for utterance in kept["queries"].values()
            ),
            "documents": Manifest(kept["documents"].values()),
        },
        relevance=relevance,
        left_out={
            "queries of other languages": len(asked) - len(kept["queries"]),
            "documents of other languages": len(documents) - len(kept["documents"]),
            "matches of other languages": len(pairs) - len(relevance),
        },
    )


def find(root: Path) -> Path | None:
    """The folder that holds ``scoring/``, or None."""
    return first_with((root, root / "quesst14Database"), "scoring/language_key_utterances.lst")


def _read_list(base: Path, path: Path) -> dict[str, Utterance]:
    """The rows of a list, by id: the name of the file without its suffix."""
    rows: dict[str, Utterance] = {}
    for number, line in read_lines(path):
        fields = line.split()
        if len(fields) != 2:
            raise ManifestError(path, number, f"wants FILE LANGUAGE, got {line[:80]!r}")
        # The lists name the database itself first, however its folder is called here.
        audio = base / fields[0].partition("/")[2]
        if not audio.is_file():
            raise ManifestError(path, number, f"there is no file {str(audio)!r}")
        if audio.stem in rows:
            raise ManifestError(
                path, number, f"{audio.stem!r} is also line {rows[audio.stem].line}"
            )
        rows[audio.stem] = Utterance(id=audio.stem, audio=audio, language=fields[1], line=number)
    return rows


def _rttm(scoring: Path, queries: str) -> Path:
    return scoring / f"groundtruth_quesst14_{queries}" / f"quesst14_{queries}.rttm"


def _relevance(
    path: Path, queries: dict[str, Utterance], documents: dict[str, Utterance]
) -> set[tuple[str, str]]:
    pairs: set[tuple[str, str]] = set()
    for number, line in read_lines(path):
        fields = line.split()
        if fields[0].startswith(";;") or fields[0] in _OTHER_OBJECTS:
            continue
        if fields[0] != "LEXEME" or len(fields) < 6:
            raise ManifestError(
                path,
                number,
                f"wants LEXEME DOCUMENT CHANNEL START DURATION QUERY ..., got {line[:80]!r}",
            )
        document, query = fields[1], fields[5]
        if query == "NO_KEYWORD":
            continue
        for id, known, name in ((document, documents, "document"), (query, queries, "query")):
            if id not in known:
                raise ManifestError(path, number, f"no list has the {name} {id!r}")
        pairs.add((query, document))
    return pairs


def _types(scoring: Path, queries: str, known: dict[str, Utterance]) -> dict[str, str]:
    types: dict[str, str] = {}
    for kind in TYPES:
        folder = scoring / f"groundtruth_quesst14_{queries}_{kind}"
        for path in sorted(folder.glob("*.tlist.xml")):
            for number, line in read_lines(path):
                for query in _TERM.findall(line):
                    if query not in known:
                        raise ManifestError(path, number, f"no list has the query {query!r}")
                    types[query] = f"{types[query]}+{kind}" if query in types else kind
    return types


def _with_type(utterance: Utterance, types: dict[str, str]) -> Utterance:
    kind = types.get(utterance.id)
    return utterance if kind is None else replace(utterance, factors={"query_type": kind})


LAYOUT = Layout("quesst14", quesst14, find, LOOKED_FOR)
