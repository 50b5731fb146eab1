"""Any data at all, as a manifest."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from speechft.data import Manifest, Utterance, read_manifest
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.layouts.base import SPLITS, EvaluationData
from speechft.evaluation.layouts.trials import read_trials

RETRIEVAL = ("queries", "documents")


def manifest(
    source: str | Path | Manifest,
    *,
    name: str = "manifest",
    label: str | None = None,
    groups: str | None = None,
    trials: str | Path | None = None,
    relevance: str | None = None,
) -> EvaluationData:
    """Take a manifest for an evaluation.

    If its rows have the factor ``part`` (train, validation and test, or queries and documents),
    they are split by it; otherwise they are the part "all".

    Args:
        source: a manifest, or what :func:`speechft.data.read_manifest` reads.
        name: printed with the results.
        label: the factor to classify; every row must have it.
        groups: the factor never to split between fitting and test; every row must have it.
        trials: a list that :func:`speechft.evaluation.layouts.read_trials` reads.
        relevance: the factor by which a query matches a document: the same value. A row without
            it matches nothing.

    Raises:
        ManifestError: as :func:`speechft.data.read_manifest`; naming the file and the line: a row
            has no part where others have one, an unknown part, or no such label; errors of
            ``trials``.
        ArgumentError: train and queries in one manifest, queries without documents, ``trials``
            where there are parts, ``relevance`` without queries, or by which nothing matches; the
            errors of :class:`speechft.evaluation.layouts.EvaluationData`.
    """
    rows = source if isinstance(source, Manifest) else read_manifest(source)
    if not len(rows):
        raise ArgumentError("source", "the manifest is empty")
    for factor in (label, groups):
        for utterance in rows:
            if factor is not None and utterance.label(factor) is None:
                raise _error(rows, utterance, f"{utterance.id!r} has no factor {factor!r}")
    parts = _parts(rows)
    if trials is not None and "all" not in parts:
        raise ArgumentError("trials", f"the manifest is split into {', '.join(parts)}")
    return EvaluationData(
        name=name,
        parts=parts,
        label=label,
        groups=groups,
        trials=None if trials is None else read_trials(trials, rows),
        relevance=None if relevance is None else _relevance(parts, relevance),
    )


def _parts(rows: Manifest) -> dict[str, Manifest]:
    for utterance in rows:
        if "part" in utterance.extra:
            raise _error(rows, utterance, "the part is a factor: call the column factors.part")
    if not any("part" in utterance.factors for utterance in rows):
        return {"all": rows}
    found: defaultdict[str, list[Utterance]] = defaultdict(list)
    for utterance in rows:
        part = utterance.factors.get("part")
        if part not in (*SPLITS, *RETRIEVAL):
            problem = "has no factor part, and others have" if part is None else f"part {part!r}"
            raise _error(
                rows,
                utterance,
                f"{utterance.id!r}: {problem}; wants {', '.join((*SPLITS, *RETRIEVAL))}",
            )
        found[str(part)].append(utterance)
    if found.keys() & set(RETRIEVAL) and found.keys() != set(RETRIEVAL):
        raise ArgumentError(
            "source", f"wants queries and documents together and alone, got {', '.join(found)}"
        )
    order = [part for part in (*SPLITS, *RETRIEVAL) if part in found]
    return {part: Manifest(found[part], source=rows.source) for part in order}


def _relevance(parts: dict[str, Manifest], factor: str) -> frozenset[tuple[str, str]]:
    if "queries" not in parts:
        raise ArgumentError("relevance", "wants a manifest of queries and documents")
    documents: defaultdict[object, list[str]] = defaultdict(list)
    for document in parts["documents"]:
        documents[document.label(factor)].append(document.id)
    documents.pop(None, None)
    return frozenset(
        (query.id, document)
        for query in parts["queries"]
        for document in documents.get(query.label(factor), ())
    )


def _error(rows: Manifest, utterance: Utterance, problem: str) -> ManifestError:
    return ManifestError(rows.source or "manifest", utterance.line, problem)
