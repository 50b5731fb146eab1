"""The speech that hubert-mini hears, and that which it never hears.

Writes ``speech/*.wav`` and these manifests, of which only the first is for pre-training:

* ``pretrain.jsonl``: recorded speech of four people and synthesized speech, in four languages;
* ``heard-speaker.jsonl``: the last 120 sentences of festvox-ru, with phones;
* ``unheard-speaker.jsonl``: an English voice that pre-training has not heard, with phones (flite);
* ``unheard-language.jsonl``: Italian, which it has not heard, by an unheard voice, with phones
  (festival);
* ``unheard-people.jsonl``: recordings of two people it has not heard, in Italian and Russian.

``split.json`` names every sentence, speaker and language that is held out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import soundfile
from tqdm import tqdm

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
from recipes.hubert_mini.voices import ESPEAK_VARIANTS, PACKAGES, Engines

SPLIT = Path(__file__).with_name("split.json")
RECORDINGS = [
    "festvox-ru",
    *(f"asterisk-core-sounds-{it}{end}" for it in PROMPTS for end in ("", "-g722")),
]
FLITE_VOICES = ("kal16", "awb", "slt")
MIN_SAMPLES = 400  # a frame of the encoder
PROBE_SENTENCES = 120


def prepare(work: Path) -> Path:
    """Install, decode and synthesize into ``work/speech``; does nothing if that is there."""
    folder = work / "speech"
    if (folder / "done").exists():
        return folder
    install(RECORDINGS, work)
    root = install(PACKAGES, work, dependencies=True)
    split = json.loads(SPLIT.read_text("utf-8"))
    engines = Engines(root)
    people = set(split["held_out"]["speakers"])
    sentences = set(split["held_out"]["festvox-ru"])

    recorded = [*festvox(root), *prompts(root)]
    heard, held, unheard = [], [], []
    for utterance in recorded:
        if utterance.speaker in people:
            unheard.append(utterance)
        elif utterance.id.removeprefix("festvox-ru/") in sentences:
            held.append(utterance)
        else:
            heard.append(utterance)
    held = [
        row for row in held if row.id.removeprefix("festvox-ru/") in split["probe"]["festvox-ru"]
    ]

    write(folder, "pretrain", [*heard, *synthesized(engines, heard)])
    write(folder, "heard-speaker", held)
    write(folder, "unheard-people", unheard)
    english = [row for row in heard if row.language == "en"]
    italian = [row for row in unheard if row.language == "it"]
    write(folder, "unheard-speaker", flite(engines, english, "rms"))
    write(folder, "unheard-language", festival(engines, italian, "lp_diphone"))
    (folder / "done").touch()
    return folder


def festvox(root: Path) -> Iterator[Clip]:
    """Sentences of festvox-ru, with phones where they fit the audio."""
    texts = festvox_texts(root)
    for path in sorted((root / FESTVOX).glob("wav/*.wav")):
        samples = read_wav(path)
        label = root / FESTVOX / "lab" / f"{path.stem}.lab"
        yield Clip(
            f"festvox-ru/{path.stem}", samples, texts.get(path.stem, ""), "nsh", "ru",
            "festvox-ru", "LicenseRef-festvox-ru",
            festvox_phones(label, len(samples) / RATE) if label.is_file() else None,
        )  # fmt: skip


def prompts(root: Path) -> Iterator[Clip]:
    """Telephone prompts with a text, in five languages."""
    for language, folder in PROMPTS.items():
        for prompt, text in sorted(prompt_texts(root, language).items()):
            path = root / folder / f"{prompt}.g722"
            samples = read_g722(path) if path.is_file() else None
            if samples is None or len(samples) < MIN_SAMPLES:
                continue
            yield Clip(
                f"{language}/{prompt}", samples, text, PROMPT_SPEAKERS[language], language,
                f"asterisk-core-sounds-{language}-g722",
                "CC-BY-3.0" if language in ("it", "ru") else "CC-BY-SA-3.0",
                factors={"prompt": prompt},
            )  # fmt: skip


def synthesized(engines: Engines, heard: list[Clip]) -> Iterator[Clip]:
    """Texts of the heard utterances in other voices: espeak-ng (4 languages) and flite."""
    rng = random.Random(0)
    for language, count in {"en": 150, "es": 150, "fr": 150, "ru": 60}.items():
        rows = [row for row in heard if row.language == language and row.text]
        for row in tqdm(rng.sample(rows, count), f"espeak-ng {language}"):
            variant = rng.choice(ESPEAK_VARIANTS)
            said = engines.espeak(
                row.text, voice=f"{language}+{variant}", pitch=rng.randint(20, 80),
                words_a_minute=rng.randint(130, 210),
            )  # fmt: skip
            yield Clip(
                f"espeak/{row.id}", said.samples, row.text, f"espeak-{variant}", language,
                "espeak-ng", "output unencumbered",
            )  # fmt: skip
    english = [row for row in heard if row.language == "en"]
    for voice in FLITE_VOICES:
        yield from flite(engines, english, voice)


def flite(engines: Engines, rows: list[Clip], voice: str) -> Iterator[Clip]:
    """120 texts in a voice of flite."""
    for row in tqdm(_choose(rows, PROBE_SENTENCES, voice), f"flite {voice}"):
        said = engines.flite(row.text, voice=voice)
        yield Clip(
            f"flite-{voice}/{row.id}", said.samples, row.text, f"flite-{voice}", "en", "flite",
            "LicenseRef-flite", _within(said.phones, said.samples),
        )  # fmt: skip


def festival(engines: Engines, rows: list[Clip], voice: str) -> Iterator[Clip]:
    """120 Italian texts in a voice of festival."""
    for row in tqdm(_choose(rows, PROBE_SENTENCES, voice), f"festival {voice}"):
        said = engines.festival(row.text, voice=voice)
        yield Clip(
            f"festival-{voice}/{row.id}", said.samples, row.text, f"festival-{voice}", "it",
            "festvox-italp16k", "LicenseRef-festvox-italp16k", _within(said.phones, said.samples),
        )  # fmt: skip


def _choose(rows: list[Clip], count: int, seed: str) -> list[Clip]:
    """Some of the longer texts, always the same."""
    longer = [row for row in rows if 25 <= len(row.text) <= 120 and not row.phones]
    return random.Random(seed).sample(longer, count)


def _within(
    phones: list[tuple[float, str]] | None, samples: Samples
) -> list[tuple[float, str]] | None:
    """Labels whose times rise and end with the audio; None if they do not fit it."""
    if phones is None:
        return None
    seconds, kept, start = len(samples) / RATE, [], 0.0
    for end, phone in phones:
        end = min(end, seconds)
        if end - start > 1e-4:
            kept.append((end, phone))
            start = end
    return kept


def write(folder: Path, name: str, rows: Iterator[Clip] | list[Clip]) -> None:
    """Audio, phones and a manifest."""
    count, seconds = 0, 0.0
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as manifest:
        for row in rows:
            path = folder / f"{row.id}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, row.samples, RATE, subtype="PCM_16")
            entry: dict[str, object] = {
                "id": row.id, "audio": f"{row.id}.wav", "duration": len(row.samples) / RATE,
                "speaker": row.speaker, "language": row.language, "text": row.text,
            }  # fmt: skip
            if row.phones:
                lines = [f"{end:.5f} {phone}" for end, phone in row.phones]
                path.with_suffix(".phones").write_text("\n".join(lines) + "\n", "utf-8")
                entry["phones"] = f"{row.id}.phones"
            if row.factors:
                entry["factors"] = row.factors
            entry |= {"source": row.source, "license": row.license}
            manifest.write(json.dumps(entry, ensure_ascii=False) + "\n")
            count, seconds = count + 1, seconds + len(row.samples) / RATE
    print(f"{name}: {count} utterances, {seconds / 60:.1f} minutes")
