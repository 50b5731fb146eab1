"""VoxCeleb1, for speaker verification."""

from __future__ import annotations

from pathlib import Path

from speechft.data import Manifest, Utterance
from speechft.data.audio import SUFFIXES
from speechft.errors import ManifestError
from speechft.evaluation.layouts.base import EvaluationData, Layout
from speechft.evaluation.layouts.files import missing
from speechft.evaluation.layouts.trials import line_of, read_trials_and_names

TRIAL_LISTS = (
    "veri_test2.txt",
    "veri_test.txt",
    "list_test_all2.txt",
    "list_test_all.txt",
    "list_test_hard2.txt",
    "list_test_hard.txt",
)
"""Official lists, the cleaned one (2) before the first: VoxCeleb1-O, VoxCeleb1-E, VoxCeleb1-H."""

LOOKED_FOR = "wav/idNNNNN/VIDEO/NNNNN.wav or idNNNNN/... (also below dev/ and test/)"

_FOLDERS = ("", "wav", "test/wav", "dev/wav", "test", "dev", "vox1_test_wav/wav",
            "vox1_dev_wav/wav", "vox1_test_wav", "vox1_dev_wav")  # fmt: skip


def voxceleb1(root: str | Path, *, trials: str | Path | None = None) -> EvaluationData:
    """Read the utterances that a trial list of VoxCeleb1 names, and the trials.

    Expected, as the archives unpack (Nagrani, Chung, Zisserman, 2017)::

        ROOT/wav/id10270/5r0dWxy17C8/00001.wav     or without wav/, or below dev/, test/,
        ROOT/veri_test2.txt                           vox1_dev_wav/ and vox1_test_wav/

    VoxCeleb1-O is ``veri_test.txt`` (37 720 trials) and, cleaned, ``veri_test2.txt`` (37 611);
    VoxCeleb1-E is ``list_test_all``, VoxCeleb1-H ``list_test_hard``; both need the development
    set too. Nothing else of the folder is read. The id of an utterance is its path as the list
    has it, without the suffix, and its speaker the first part of that.

    Args:
        root: the folder.
        trials: a trial list, relative to ``root`` if it is there, or None for the first there is
            of :data:`TRIAL_LISTS` (so the cleaned VoxCeleb1-O before the first). The name of the
            result says which.

    Returns:
        The part "all" and its trials.

    Raises:
        ManifestError: naming the list and the line: as
            :func:`speechft.evaluation.layouts.read_trials`, an id that is not
            SPEAKER/VIDEO/FILE, an utterance without a file; or there is no list.
    """
    root = Path(root)
    bases = find(root)
    if not bases:
        raise missing(root, "VoxCeleb1", LOOKED_FOR)
    path = _trial_list(root, trials)
    pairs, names = read_trials_and_names(path)
    utterances = []
    for name in names:
        speaker, _, rest = name.partition("/")
        if not rest:
            raise ManifestError(
                path, line_of(path, name), f"{name!r} is not SPEAKER/VIDEO/FILE, as in VoxCeleb1"
            )
        audio = _audio(bases, name)
        if audio is None:
            raise ManifestError(
                path,
                line_of(path, name),
                f"there is no file {name}.wav in {' or '.join(map(str, bases))}",
            )
        utterances.append(Utterance(id=name, audio=audio, speaker=speaker))
    return EvaluationData(
        name=f"voxceleb1 ({path.name})",
        parts={"all": Manifest(utterances, source=path)},
        trials=pairs,
    )


def find(root: Path) -> list[Path]:
    """The folders of a root that hold folders of speakers."""
    return [
        root / name
        for name in _FOLDERS
        if any(path.is_dir() for path in (root / name).glob("id[0-9][0-9][0-9]*"))
    ]


def _trial_list(root: Path, trials: str | Path | None) -> Path:
    if trials is not None:
        inside = root / trials
        return inside if inside.is_file() else Path(trials)
    for name in TRIAL_LISTS:
        if (root / name).is_file():
            return root / name
    raise ManifestError(
        root,
        None,
        f"holds no trial list ({', '.join(TRIAL_LISTS)}): put one there or name it with trials",
    )


def _audio(bases: list[Path], name: str) -> Path | None:
    for suffix in SUFFIXES:
        for base in bases:
            path = base / (name + suffix)
            if path.is_file():
                return path
    return None


LAYOUT = Layout("voxceleb1", voxceleb1, find, LOOKED_FOR)
