"""Recordings of people, for what a synthesizer's voices do not show.

Prompts of six telephone systems, the dialogues of a game in two languages and the letters and
syllables of a teaching program in twenty, all from Debian packages. Nobody of them is known to be
in the corpus that ships with speechft, which is for testing. One name is one person, as far as the
packages say. No text is given: what is said differs from person to person.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from recipes.debian import PROMPT_SPEAKERS, PROMPTS, RATE, Samples, install, read_g722
from speechft.data import Manifest, Utterance, write_manifest

LANGUAGES = ("en", "es", "fr")  # of the prompts; the Italian and the Russian voice are for testing
PACKAGES = [
    *(f"asterisk-core-sounds-{language}-g722" for language in LANGUAGES),
    "asterisk-prompt-es-co", "asterisk-prompt-fr-armelle", "asterisk-prompt-it-menardi-wav",
    "fillets-ng-data-cs", "fillets-ng-data-nl", "klettres-data",
]  # fmt: skip
SOUNDS = Path("usr/share/asterisk/sounds")
OTHER_PROMPTS = {
    "es-co": (SOUNDS / "es", ".gsm"),
    "armelle": (SOUNDS / "fr", ".gsm"),
    "menardi": (SOUNDS / "it_IT_f_Menardi", ".wav"),
}
MOST = 400  # utterances of one person
SHORTEST, LONGEST = 0.5, 12.0  # seconds


def people(work: Path) -> Path:
    """Fetch and decode what is not there yet; the manifest, of labels ``speaker`` alone."""
    manifest = work / "recorded.jsonl"
    if manifest.exists():
        return manifest
    root = install(PACKAGES, work / "packages")
    files: dict[str, list[Path]] = {}
    for name, path in recordings(root):
        files.setdefault(name, []).append(path)
    rows = []
    for name, paths in sorted(files.items()):
        random.Random(name).shuffle(paths)
        taken = 0
        for path in paths:
            samples = decoded(path)
            seconds = len(samples) / RATE
            if taken == MOST or not SHORTEST <= seconds <= LONGEST or not samples.any():
                continue
            audio = work / "recorded" / name / f"{taken}.flac"
            audio.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(audio, samples, RATE, subtype="PCM_16")
            rows.append(
                Utterance(f"recorded/{name}/{taken}", audio, duration=seconds, speaker=name)
            )
            taken += 1
    write_manifest(Manifest(rows), manifest)
    return manifest


def recordings(root: Path) -> Iterator[tuple[str, Path]]:
    """Who, and a file, in an order of their own."""
    for language in LANGUAGES:
        for path in sorted((root / PROMPTS[language]).rglob("*.g722")):
            yield PROMPT_SPEAKERS[language], path
    for name, (folder, suffix) in OTHER_PROMPTS.items():
        for path in sorted((root / folder).rglob(f"*{suffix}")):
            yield name, path
    for path in sorted((root / "usr/share/games/fillets-ng/sound").rglob("*.ogg")):
        # The two fish: barrel/cs/bar-m-barel.ogg is by the small one, in Czech.
        parts = path.stem.split("-")
        if len(parts) > 2 and parts[1] in ("m", "v") and path.parent.name in ("cs", "nl"):
            yield f"fillets-{path.parent.name}-{parts[1]}", path
    letters = root / "usr/share/klettres"
    for path in sorted(letters.rglob("*.ogg")):
        yield f"klettres-{path.relative_to(letters).parts[0]}", path


def decoded(path: Path) -> Samples:
    """16-bit samples at 16 kHz, of one channel."""
    import soxr

    if path.suffix == ".g722":
        return read_g722(path)
    if path.suffix == ".gsm":
        import av

        with av.open(str(path), format="gsm") as container:
            blocks = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        samples, rate = np.concatenate(blocks).astype(np.float32) / 32768, 8000
    else:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
        samples = channels.mean(1)
    resampled = soxr.resample(samples, rate, RATE) * 32768
    clipped: Samples = np.clip(resampled, -32768, 32767).astype(np.int16)
    return clipped
