"""Build the speech that ships with speechft (``speechft/data/corpus``) from Debian packages.

    python -m recipes.corpus --work FOLDER   # packages are fetched there and kept

Needs what :mod:`recipes.debian` needs. The choice of clips is deterministic; the bytes of a FLAC
file may change with the version of libFLAC, its samples not.

What may be copied: festvox-ru (BSD-like), the Italian and Russian Asterisk prompts (CC-BY-3.0) and
pocketsphinx-testdata (BSD-2). The English, Spanish and French prompts are CC-BY-SA: they stay out.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import soundfile

from recipes.debian import (
    FESTVOX,
    PROMPT_SPEAKERS,
    PROMPTS,
    RATE,
    Clip,
    Samples,
    festvox_phones,
    festvox_texts,
    install,
    prompt_texts,
    read_g722,
    read_wav,
)

OUT = Path(__file__).resolve().parent.parent / "speechft" / "data" / "corpus"
PACKAGES = (
    "festvox-ru",
    "asterisk-core-sounds-it",
    "asterisk-core-sounds-it-g722",
    "asterisk-core-sounds-ru",
    "asterisk-core-sounds-ru-g722",
    "pocketsphinx-testdata",
)
LANGUAGES = ("it", "ru")

# Bytes of FLAC from each source; with pocketsphinx, all of which is taken, under 8 MB.
FESTVOX_BYTES = 4_150_000
PROMPT_BYTES = 1_600_000


def main() -> None:
    """Unpack, choose, encode, and write the manifest and the attribution."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/corpus"))
    root = install(list(PACKAGES), parser.parse_args().work)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    clips = [*festvox(root), *prompts(root), *pocketsphinx(root)]
    size = sum(write(clip) for clip in clips)
    write_manifest(clips)
    write_attribution(clips, root)
    minutes = sum(len(clip.samples) for clip in clips) / RATE / 60
    print(f"{len(clips)} clips, {minutes:.1f} minutes, {size / 1e6:.2f} MB of FLAC")
    assert size <= 8_000_000


def festvox(root: Path) -> Iterator[Clip]:
    """Read sentences of 3 to 10 s with phone labels, evenly over the recording sessions."""
    texts = festvox_texts(root)
    usable = []
    for label in sorted((root / FESTVOX).glob("lab/*.lab")):
        name = label.stem
        samples = read_wav(root / FESTVOX / "wav" / f"{name}.wav")
        seconds = len(samples) / RATE
        phones = festvox_phones(label, seconds)
        if name in texts and phones and 3 <= seconds <= 10:
            usable.append(
                Clip(
                    id=f"festvox-ru/{name}",
                    samples=samples,
                    text=texts[name],
                    speaker="nsh",
                    language="ru",
                    source="festvox-ru",
                    license="LicenseRef-festvox-ru",
                    phones=phones,
                )
            )
    yield from fill([[clip] for clip in usable], FESTVOX_BYTES)


def prompts(root: Path) -> list[Clip]:
    """Prompts of 2 to 8 s that are recorded in both languages, so that content is shared."""
    texts = {language: prompt_texts(root, language) for language in LANGUAGES}
    pairs = []
    for prompt in sorted(set(texts["it"]) & set(texts["ru"])):
        pair = []
        for language in LANGUAGES:
            package = f"asterisk-core-sounds-{language}-g722"
            path = root / PROMPTS[language] / f"{prompt}.g722"
            if path.is_file():
                pair.append(
                    Clip(
                        id=f"{language}/{prompt}",
                        samples=read_g722(path),
                        text=texts[language][prompt],
                        speaker=PROMPT_SPEAKERS[language],
                        language=language,
                        source=package,
                        license="CC-BY-3.0",
                        factors={"prompt": prompt},
                    )
                )
        if len(pair) == 2 and all(2 <= len(clip.samples) / RATE <= 8 for clip in pair):
            pairs.append(pair)
    chosen = list(fill(pairs, 2 * PROMPT_BYTES))
    return sorted(chosen, key=lambda clip: clip.id)


def pocketsphinx(root: Path) -> Iterator[Clip]:
    """All ten transcribed recordings: one reader of a novel, one speaker of card names."""
    data = root / "usr/share/pocketsphinx/test/data"
    for folder, listing, speaker in (
        ("librivox", "transcription", "librivox-sense-and-sensibility"),
        ("cards", "cards.transcription", "cards"),
    ):
        lines = (data / folder / listing).read_text("utf-8")
        for text, name in re.findall(r"<s>(.*)</s> \((\S+)\)", lines):
            yield Clip(
                id=f"{folder}/{name}",
                samples=read_wav(data / folder / f"{name}.wav"),
                text=text.strip(),
                speaker=speaker,
                language="en",
                source="pocketsphinx-testdata",
                license="BSD-2-Clause",
            )


def fill(groups: list[list[Clip]], budget: int) -> Iterator[Clip]:
    """As many groups as fit the budget, evenly spaced over all of them."""
    sizes = [sum(flac_bytes(clip) for clip in group) for group in groups]
    for count in range(len(groups), 0, -1):
        picks = [index * len(groups) // count for index in range(count)]
        if sum(sizes[pick] for pick in picks) <= budget:
            for pick in picks:
                yield from groups[pick]
            return


def flac_bytes(clip: Clip) -> int:
    """Size of a clip once it is encoded."""
    with tempfile.NamedTemporaryFile(suffix=".flac") as file:
        encode(clip.samples, Path(file.name))
        return Path(file.name).stat().st_size


def encode(samples: Samples, path: Path) -> None:
    """FLAC at its highest level, 16 bits."""
    soundfile.write(path, samples, RATE, format="FLAC", subtype="PCM_16", compression_level=1.0)


def write(clip: Clip) -> int:
    """Write the audio and phones of a clip; bytes of the audio."""
    path = OUT / f"{clip.id}.flac"
    path.parent.mkdir(exist_ok=True)
    encode(clip.samples, path)
    if clip.phones:
        lines = [f"{end:.5f}".rstrip("0").rstrip(".") + f" {phone}" for end, phone in clip.phones]
        path.with_suffix(".phones").write_text("\n".join(lines) + "\n", "utf-8")
    return path.stat().st_size


def write_manifest(clips: list[Clip]) -> None:
    """One line a clip, in speechft's schema."""
    with open(OUT / "manifest.jsonl", "w", encoding="utf-8") as file:
        for clip in clips:
            row: dict[str, object] = {
                "id": clip.id,
                "audio": f"{clip.id}.flac",
                "duration": len(clip.samples) / RATE,
                "speaker": clip.speaker,
                "language": clip.language,
                "text": clip.text,
            }
            if clip.phones:
                row["phones"] = f"{clip.id}.phones"
            if clip.factors:
                row["factors"] = clip.factors
            row |= {"source": clip.source, "license": clip.license}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


INTRODUCTION = """\
# Whose speech this is

The recordings in this folder were made by others and are not covered by the licence of speechft.
They were selected from four packages of Debian 12 by `recipes/corpus.py`, which can rebuild the
folder. `manifest.jsonl` names the source and the licence of every clip.

**Changes made to all of them:** a selection of the clips; stored as FLAC (16 kHz, mono, 16 bits);
transcripts and labels moved into `manifest.jsonl` and `.phones` files. No clip was cut, resampled,
filtered or changed in level.
"""

SOURCES = {
    "festvox-ru": """\
Folder `festvox-ru/`. Russian, one male speaker ("nsh"), read sentences with phone labels.
Copyright (c) 2005 Nickolay V. Shmyrev. Licence: BSD-like, below (`LicenseRef-festvox-ru`).
Origin: Russian language support for the Festival project, voice `msu_ru_nsh_clunits`.
Further changes: stress marks ("+") removed from the texts; labels rewritten as end time and phone,
the last end moved to the end of the audio where it lay beyond.
""",
    "asterisk-core-sounds-it-g722": """\
Folder `it/`. Italian telephone prompts, one male speaker. Copyright 2012 Carlo Flora.
Licence: Creative Commons Attribution 3.0 Unported (CC-BY-3.0),
http://creativecommons.org/licenses/by/3.0/, text below.
Recorded by Carlo Flora (http://www.carloflora.com, http://www.segreterietelefoniche.it);
translated by Silvia Petrin from the English original distributed by Digium.
Further changes: decoded from G.722.
""",
    "asterisk-core-sounds-ru-g722": """\
Folder `ru/`. Russian telephone prompts, one female speaker (the package calls the voice
`ru_RU_f_IvrvoiceRU`). Copyright: 2010, Maxim. Provided by Maxim Topal, http://www.ivrvoice.ru.
Licence: Creative Commons Attribution 3.0 Unported (CC-BY-3.0),
http://creativecommons.org/licenses/by/3.0/, text below.
Further changes: decoded from G.722.
""",
    "pocketsphinx-testdata": """\
Folders `librivox/` (English, a volunteer of LibriVox reading Jane Austen's *Sense and
Sensibility*, chapter 1) and `cards/` (English, one speaker naming playing cards).
Copyright 1995-2014 Carnegie Mellon University, 2014-2015 Alpha Cephei Inc.
Licence: BSD-2-Clause, below.
""",
}


def write_attribution(clips: list[Clip], root: Path) -> None:
    """Credits, changes, and the licence texts as the packages carry them."""
    versions = {
        name: (root.parent / f"debs/{name}.unpacked").read_text().strip() for name in SOURCES
    }
    parts = [INTRODUCTION]
    for source, text in SOURCES.items():
        mine = [clip for clip in clips if clip.source == source]
        seconds = sum(len(clip.samples) for clip in mine) / RATE
        parts.append(
            f"## {source} {versions[source]}\n\n{text}\n{len(mine)} clips, {seconds:.0f} seconds.\n"
        )
    for title, package, heading in (
        ("BSD-like licence of festvox-ru", "festvox-ru", "License: BSD-like"),
        ("BSD-2-Clause licence of pocketsphinx", "pocketsphinx-testdata", "License: BSD-2"),
        ("CC-BY-3.0", "asterisk-core-sounds-it-g722", "License: CC-BY-3.0"),
    ):
        text = license_text(root / f"usr/share/doc/{package}/copyright", heading)
        parts.append(f"## Text of the licence: {title}\n\n```text\n{text}\n```\n")
    (OUT / "ATTRIBUTION.md").write_text("\n".join(parts), "utf-8")


def license_text(path: Path, heading: str) -> str:
    """The longest paragraph of a Debian copyright file under this heading."""
    texts: list[list[str]] = []
    for line in path.read_text("utf-8").splitlines():
        if line == heading:
            texts.append([])
        elif texts and line.startswith(" "):
            texts[-1].append("" if line.strip() == "." else line[1:].rstrip())
        elif texts and texts[-1] and texts[-1][-1] != "\0":
            texts[-1].append("\0")  # the paragraph has ended
    cut = ["\n".join(text).partition("\0")[0] for text in texts]
    return max(cut, key=len).strip("\n")


if __name__ == "__main__":
    main()
