"""One call for every layout: a folder is known by what lies in it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speechft.data import Manifest, embedded_corpus
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.layouts.adresso import LAYOUT as ADRESSO
from speechft.evaluation.layouts.base import EvaluationData, Layout
from speechft.evaluation.layouts.crema_d import LAYOUT as CREMA_D
from speechft.evaluation.layouts.iemocap import LAYOUT as IEMOCAP
from speechft.evaluation.layouts.librispeech import LAYOUT as LIBRISPEECH
from speechft.evaluation.layouts.msp_podcast import LAYOUT as MSP_PODCAST
from speechft.evaluation.layouts.plain import manifest
from speechft.evaluation.layouts.quesst14 import LAYOUT as QUESST14
from speechft.evaluation.layouts.speech_commands import LAYOUT as SPEECH_COMMANDS
from speechft.evaluation.layouts.voxceleb1 import LAYOUT as VOXCELEB1

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        VOXCELEB1,
        SPEECH_COMMANDS,
        LIBRISPEECH,
        QUESST14,
        IEMOCAP,
        CREMA_D,
        MSP_PODCAST,
        ADRESSO,
    )
}
"""The layouts that a folder is looked at for, by name."""

EMBEDDED = "embedded"
"""The source that is the corpus of the package."""


def read_evaluation_data(
    source: str | Path | Manifest,
    *,
    layout: str = "auto",
    trials: str | Path | None = None,
    split: str | None = None,
    version: str | None = None,
    test_root: str | Path | None = None,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    queries: str | None = None,
    language: str | None = None,
    classes: Sequence[str] | None = None,
    test_labels: str | Path | None = None,
    label: str | None = None,
    groups: str | None = None,
    relevance: str | None = None,
) -> EvaluationData:
    """Read an evaluation from wherever it is.

    Args:
        source: "embedded" for the corpus that ships with speechft, a manifest, a file of one, or
            a folder laid out as its publisher did.
        layout: a name of :data:`LAYOUTS`; "manifest", which also takes a folder of audio; or
            "auto", which knows manifests by their files and folders by what lies in them.
        trials: of ``voxceleb1`` and ``manifest``.
        split: of ``speech_commands``: "superb" or "torchaudio". Likewise ``version`` and
            ``test_root``.
        version: of ``speech_commands``.
        test_root: of ``speech_commands``.
        train: of ``librispeech``: the folder of the part. Likewise ``validation`` and ``test``.
        validation: of ``librispeech``.
        test: of ``librispeech``, the folder; of ``msp_podcast``, the partition.
        queries: of ``quesst14``: "dev" or "eval".
        language: of ``quesst14``.
        classes: of ``msp_podcast``.
        test_labels: of ``adresso``.
        label: of ``manifest``: the factor to classify.
        groups: of ``manifest``: the factor never to split.
        relevance: of ``manifest``: the factor by which queries match documents.

        None is the default of the reader of that layout, where all of them are described.

    Raises:
        ArgumentError: no such layout (the nearest name is in the message), an argument that the
            layout does not take, a folder that fits several layouts; errors of the reader.
        ManifestError: a folder that fits none, or errors of the reader.
    """
    given = {
        name: value
        for name, value in (
            ("trials", trials),
            ("split", split),
            ("version", version),
            ("test_root", test_root),
            ("train", train),
            ("validation", validation),
            ("test", test),
            ("queries", queries),
            ("language", language),
            ("classes", classes),
            ("test_labels", test_labels),
            ("label", label),
            ("groups", groups),
            ("relevance", relevance),
        )
        if value is not None
    }
    if layout not in ("auto", "manifest", *LAYOUTS):
        raise ArgumentError("layout", f"there is no {layout!r}{_nearest(layout)}")
    if isinstance(source, Manifest) or source == EMBEDDED:
        if layout not in ("auto", "manifest"):
            raise ArgumentError("layout", f"{layout} is of folders, and source is a manifest")
        if not isinstance(source, Manifest):
            return _read("manifest", manifest, embedded_corpus(), {**given, "name": EMBEDDED})
        return _read("manifest", manifest, source, given)
    source = Path(source)
    if layout == "auto":
        layout = detect(source)
    reader = manifest if layout == "manifest" else LAYOUTS[layout].read
    return _read(layout, reader, source, given)


def detect(source: Path) -> str:
    """The layout of a file or a folder.

    Raises:
        ManifestError: there is no such file, or the folder fits no layout.
        ArgumentError: it fits several.
    """
    if source.is_file():
        return "manifest"
    if not source.is_dir():
        raise ManifestError(
            source, None, f"there is no such file or folder, nor is it {EMBEDDED!r}"
        )
    found = [layout.name for layout in LAYOUTS.values() if layout.find(source)]
    if len(found) > 1:
        raise ArgumentError("layout", f"{source} fits {' and '.join(found)}: say which")
    if not found:
        wanted = "".join(f"\n  {each.name}: {each.looked_for}" for each in LAYOUTS.values())
        raise ManifestError(
            source,
            None,
            "fits no layout. Give a folder that holds one of the following, a manifest (.jsonl or "
            f".csv), or layout='manifest' for a folder of audio. Looked for:{wanted}",
        )
    return found[0]


def _read(
    layout: str, reader: Callable[..., EvaluationData], source: Any, given: dict[str, Any]
) -> EvaluationData:
    takes = [
        name
        for name, parameter in inspect.signature(reader).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for name in given:
        if name not in takes:
            takes_what = f"takes {', '.join(takes)}" if takes else "takes no arguments"
            raise ArgumentError(name, f"the layout {layout} has no such argument: it {takes_what}")
    return reader(source, **given)


def _nearest(name: str) -> str:
    known = ["auto", "manifest", *LAYOUTS]
    found = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(known)}"
