"""Speech Commands, for keyword spotting, in two splits that are often taken for one another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from speechft.data import Manifest, Utterance
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.layouts.base import EvaluationData, Layout
from speechft.evaluation.layouts.files import files_in, folders_in, missing, read_lines
from speechft.evaluation.layouts.silence import NOISE, silence

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
"""The ten words of the 12-class task; the other two are ``_unknown_`` and ``_silence_``."""

WORDS = {
    "v0.01": frozenset(KEYWORDS).union(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
        ["bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow"],
    )
}
WORDS["v0.02"] = WORDS["v0.01"].union(("backward", "forward", "follow", "learn", "visual"))

LOOKED_FOR = f"{NOISE}/ beside a folder for each word (also below speech_commands_v0.01/ or v0.02)"

Split = Literal["superb", "torchaudio"]


def speech_commands(
    root: str | Path,
    *,
    split: Split = "superb",
    version: str | None = None,
    test_root: str | Path | None = None,
) -> EvaluationData:
    """Read Speech Commands v0.01 (30 words) or v0.02 (35 words; Warden, 2018).

    Expected, as the archives unpack::

        ROOT/speech_commands_v0.01/yes/0a7c2a8d_nohash_0.wav      or ROOT/yes/...
        ROOT/speech_commands_v0.01/_background_noise_/*.wav
        ROOT/speech_commands_v0.01/validation_list.txt, testing_list.txt
        ROOT/speech_commands_test_set_v0.01/yes/*.wav, _unknown_/*.wav, _silence_/*.wav

    ``split="superb"``: 12 classes. The test part is the official test set, the folder
    ``speech_commands_test_set_*``. Training and validation are the other folder, split by the
    hash of the speaker (10 % validation; the 10 % of testing are left out, and counted), as
    SUPERB and TensorFlow's recipe do; words that are not among the ten are ``_unknown_``. SUPERB
    (v0.01) draws its silence for both at random from the six files of background noise, one
    second at a time, in as many draws as balance the classes. Here it is every whole second of
    these files, in order: each tenth one, from the first, is validation, the others are
    training. So it is always the same, and the two share no sample; classes are not balanced.

    ``split="torchaudio"``: every word is a class, without silence. Validation and test are
    ``validation_list.txt`` and ``testing_list.txt``, training is the rest.

    Args:
        root: the folder that holds the above, or ``speech_commands_v0.0N`` itself.
        split: which of the two.
        version: "v0.01" or "v0.02", where ``root`` holds both.
        test_root: the official test set, where it is not beside the other folder.

    Returns:
        Training, validation and test, with the label ``keyword``. Speakers are the hashes in the
        names of the files.

    Raises:
        ArgumentError: an unknown split or version, or two versions to choose from.
        ManifestError: naming the file and the line: a folder or list is missing, a word's folder
            is missing or empty or of no known word, a list names a file twice or one that is not
            there, a name has no ``_nohash_``, background noise is too short.
        AudioError: background noise that cannot be decoded.
    """
    root = Path(root)
    if split not in ("superb", "torchaudio"):
        raise ArgumentError("split", f"wants 'superb' or 'torchaudio', got {split!r}")
    if version is not None and version not in WORDS:
        raise ArgumentError("version", f"wants v0.01 or v0.02, got {version!r}")
    bases = find(root)
    if version is not None and len(bases) > 1:
        bases = [base for base in bases if base.name == f"speech_commands_{version}"]
    if not bases:
        raise missing(root, "Speech Commands", LOOKED_FOR)
    if len(bases) > 1:
        raise ArgumentError("version", f"there are {' and '.join(map(str, bases))}: choose one")
    base = bases[0]
    found = _version(base)
    if version not in (None, found):
        raise ArgumentError("version", f"{base} has the words of {found}, not of {version}")
    if split == "torchaudio":
        return _listed(base, found)
    name = f"speech_commands_test_set_{found}"
    if test_root is None:
        test_root = base.parent / name
        if not test_root.is_dir():
            raise ManifestError(
                test_root,
                None,
                f"there is no such folder: SUPERB tests on the separate archive {name}; unpack it "
                "there, say where it is with test_root, or ask for split='torchaudio'",
            )
    return _superb(base, Path(test_root), found)


def find(root: Path) -> list[Path]:
    """The folders of words in a root."""
    versions = [f"speech_commands_{version}" for version in WORDS]
    folders = [root, *(root / name for name in versions)]
    folders += [root / "SpeechCommands" / name for name in versions]
    return [folder for folder in folders if (folder / NOISE).is_dir()]


def _version(base: Path) -> str:
    words = {folder.name for folder in folders_in(base)} - {NOISE}
    version = "v0.02" if words - WORDS["v0.01"] else "v0.01"
    absent, unknown = WORDS[version] - words, words - WORDS[version]
    if unknown:
        raise ManifestError(
            base / min(unknown),
            None,
            "is not a word of Speech Commands: move it away, or read your own data as a manifest",
        )
    if absent:
        raise ManifestError(
            base, None, f"{version} is not complete: no folder for {', '.join(sorted(absent))}"
        )
    return version


def _superb(base: Path, test_root: Path, version: str) -> EvaluationData:
    parts: dict[str, list[Utterance]] = {"train": [], "validation": [], "testing": []}
    for word in sorted(WORDS[version]):
        for file in files_in(base / word, ".wav"):
            keyword = word if word in KEYWORDS else "_unknown_"
            parts[part_by_hash(_speaker(file))].append(_utterance(file, word, keyword))
    for part, segments in silence(base / NOISE).items():
        parts[part] += segments
    classes = (*KEYWORDS, "_unknown_", "_silence_")
    test: list[Utterance] = []
    for folder in folders_in(test_root):
        if folder.name not in classes:
            raise ManifestError(folder, None, f"is none of the 12 classes, {', '.join(classes)}")
    for name in classes:
        for file in files_in(test_root / name, ".wav"):
            speaker = file.name.partition("_nohash_")[0] if "_nohash_" in file.name else None
            test.append(
                Utterance(
                    id=f"test_set/{name}/{file.stem}",
                    audio=file,
                    speaker=speaker,
                    factors={"keyword": name},
                )
            )
    return EvaluationData(
        name=f"speech_commands {version} (SUPERB: official test set, 12 classes)",
        parts={
            "train": Manifest(parts["train"], source=base),
            "validation": Manifest(parts["validation"], source=base),
            "test": Manifest(test, source=test_root),
        },
        label="keyword",
        left_out={"speakers of testing in the training archive": len(parts["testing"])},
    )


def _listed(base: Path, version: str) -> EvaluationData:
    part_of: dict[str, str] = {}
    lines: dict[str, tuple[Path, int]] = {}
    for part, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        path = base / name
        for number, line in read_lines(path):
            entry = line.strip()
            if entry in part_of:
                first, at = lines[entry]
                raise ManifestError(
                    path, number, f"{entry!r} is also line {at} of {first.name}: it has one part"
                )
            part_of[entry], lines[entry] = part, (path, number)
    parts: dict[str, list[Utterance]] = {"train": [], "validation": [], "test": []}
    for word in sorted(WORDS[version]):
        for file in files_in(base / word, ".wav"):
            _speaker(file)
            part = part_of.pop(f"{word}/{file.name}", "train")
            parts[part].append(_utterance(file, word, word))
    if part_of:
        entry = next(iter(part_of))
        raise ManifestError(*lines[entry], f"there is no file {str(base / entry)!r}")
    return EvaluationData(
        name=f"speech_commands {version} (torchaudio: official lists, {len(WORDS[version])} words)",
        parts={part: Manifest(found, source=base) for part, found in parts.items()},
        label="keyword",
    )


def _utterance(file: Path, word: str, keyword: str) -> Utterance:
    return Utterance(
        id=f"{word}/{file.stem}",
        audio=file,
        speaker=_speaker(file),
        factors={"keyword": keyword} if keyword == word else {"keyword": keyword, "word": word},
    )


def _speaker(file: Path) -> str:
    speaker, mark, _ = file.name.partition("_nohash_")
    if not mark or not speaker:
        raise ManifestError(file, None, "wants a name SPEAKER_nohash_N.wav")
    return speaker


def part_by_hash(speaker: str) -> str:
    """The part of a speaker by the rule of the data set's README: SHA-1, in 2**27 steps."""
    top = 2**27 - 1
    step = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (top + 1)
    percent = step * (100.0 / top)
    return "validation" if percent < 10 else "testing" if percent < 20 else "train"


LAYOUT = Layout("speech_commands", speech_commands, find, LOOKED_FOR)
