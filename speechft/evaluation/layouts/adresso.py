"""ADReSSo 2021, for the diagnosis of Alzheimer's dementia."""

from __future__ import annotations

from pathlib import Path

from speechft.data import Manifest, Utterance
from speechft.errors import ManifestError
from speechft.evaluation.layouts.base import EvaluationData, Layout
from speechft.evaluation.layouts.files import files_in, first_with, missing, read_table

DIAGNOSES = {"ad": "Alzheimer's dementia, probable", "cn": "control"}
"""The classes, which are the names of the folders."""

TEST_LABELS = "label_test_task1.csv"
"""Labels of the test set, as the organisers send them on request."""

LOOKED_FOR = "train/audio/ad/ and train/audio/cn/ (also below diagnosis/ or ADReSSo21/diagnosis/)"

_LABELS = {"ad": "ad", "probablead": "ad", "1": "ad", "cn": "cn", "control": "cn", "0": "cn"}
_ABOVE = ("", "diagnosis", "ADReSSo21/diagnosis", "ADReSSo21-diagnosis-train/ADReSSo21/diagnosis",
          "ADReSSo21-diagnosis-test/ADReSSo21/diagnosis")  # fmt: skip


def adresso(root: str | Path, *, test_labels: str | Path | None = None) -> EvaluationData:
    """Read the diagnosis task of ADReSSo (Luz and others, 2021), one recording a person.

    Expected, as the archives unpack::

        ROOT/diagnosis/train/audio/ad/adrso024.wav     or without diagnosis/, or with
        ROOT/diagnosis/train/audio/cn/adrso002.wav        ADReSSo21/ above it
        ROOT/diagnosis/test-dist/audio/adrsdt1.wav
        ROOT/label_test_task1.csv                      ID,Dx with Control and ProbableAD

    The archive of the test has no labels; they come as a table, found by its name in ``root``,
    beside ``train`` or in ``test-dist``, or given. Recordings hold the interviewer too.

    Args:
        root: the folder.
        test_labels: a table with the columns ID (or adressfname) and Dx (or label), of which the
            values are ProbableAD, AD or 1, and Control, CN or 0.

    Returns:
        With labels of the test the parts "train" and "test". Without them the part "all" of the
        training recordings, for folds, and the test recordings are counted in ``left_out``. The
        label is ``diagnosis`` ("ad", "cn"), the groups are ``speaker``, the name of the file.

    Raises:
        ManifestError: naming the file and the line: a folder is missing or empty, a recording is
            in both folders, a label is unknown, given twice, of no recording or missing.
    """
    root = Path(root)
    above = [root / name for name in _ABOVE]
    base = find(root)
    if base is None:
        raise missing(root, "ADReSSo", LOOKED_FOR)
    train: dict[str, Utterance] = {}
    for diagnosis in DIAGNOSES:
        for file in files_in(base / "train" / "audio" / diagnosis, ".wav"):
            if file.stem in train:
                raise ManifestError(file, None, f"is also {train[file.stem].audio}")
            train[file.stem] = _utterance(file, diagnosis)
    test_base = first_with(above, "test-dist/audio")
    files = [] if test_base is None else files_in(test_base / "test-dist" / "audio", ".wav")
    if test_labels is None:
        places = [*above] if test_base is None else [*above, test_base / "test-dist"]
        found = first_with(places, TEST_LABELS)
        path = None if found is None else found / TEST_LABELS
    else:
        path = Path(test_labels)
        if not files:
            raise missing(root, "ADReSSo with labels of its test", "test-dist/audio/*.wav")
    if path is None or not files:
        return EvaluationData(
            name="adresso (training recordings)",
            parts={"all": Manifest(train.values(), source=base)},
            label="diagnosis",
            groups="speaker",
            left_out={"test recordings without labels": len(files)} if files else {},
        )
    test = _with_labels(files, path)
    return EvaluationData(
        name="adresso (official test)",
        parts={
            "train": Manifest(train.values(), source=base),
            "test": Manifest(test, source=path),
        },
        label="diagnosis",
        groups="speaker",
    )


def find(root: Path) -> Path | None:
    """The folder that holds ``train/``, or None."""
    for base in (root / name for name in _ABOVE):
        if all((base / "train" / "audio" / name).is_dir() for name in DIAGNOSES):
            return base
    return None


def _with_labels(files: list[Path], path: Path) -> list[Utterance]:
    unlabelled = {file.stem: file for file in files}
    lines: dict[str, int] = {}
    test = []
    for number, (name, value) in read_table(path, (("ID", "adressfname"), ("Dx", "label"))):
        stem = name.removesuffix(".wav")
        first = lines.setdefault(stem, number)
        if first != number:
            raise ManifestError(path, number, f"{name!r} is also line {first}")
        diagnosis = _LABELS.get(value.replace(" ", "").lower())
        if diagnosis is None:
            raise ManifestError(path, number, f"{value!r} is no diagnosis: ProbableAD or Control")
        file = unlabelled.pop(stem, None)
        if file is None:
            raise ManifestError(path, number, f"there is no recording {stem}.wav in the test")
        test.append(_utterance(file, diagnosis, line=number))
    if unlabelled:
        raise ManifestError(path, None, f"has no label of {', '.join(sorted(unlabelled))}")
    return test


def _utterance(file: Path, diagnosis: str, *, line: int | None = None) -> Utterance:
    return Utterance(
        id=file.stem,
        audio=file,
        speaker=file.stem,
        language="en",
        factors={"diagnosis": diagnosis},
        line=line,
    )


LAYOUT = Layout("adresso", adresso, find, LOOKED_FOR)
