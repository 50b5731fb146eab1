"""The embedded corpus, and what ``check`` says about it and about worse data."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechft.data import Scan, check, embedded_corpus, load_audio, read_phones, scan
from speechft.data.embedded import CORPUS

LICENSES = {
    "festvox-ru": "LicenseRef-festvox-ru",
    "asterisk-core-sounds-it-g722": "CC-BY-3.0",
    "asterisk-core-sounds-ru-g722": "CC-BY-3.0",
    "pocketsphinx-testdata": "BSD-2-Clause",
}


@pytest.fixture(scope="module")
def scanned() -> Scan:
    return scan(embedded_corpus())


def test_all_of_it_decodes_and_is_small(scanned: Scan) -> None:
    assert scanned.ledger.rows == scanned.ledger.seen == len(embedded_corpus()) >= 70
    assert 6 * 60 < scanned.ledger.seconds < 10 * 60
    files = sorted(CORPUS.rglob("*.flac"))
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert files == sorted(utterance.audio for utterance in embedded_corpus())
    for utterance in embedded_corpus():
        info = soundfile.info(utterance.audio)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert np.abs(load_audio(utterance)).max() > 0.02


def test_every_clip_has_its_labels_and_its_licence() -> None:
    attribution = (CORPUS / "ATTRIBUTION.md").read_text("utf-8")
    for utterance in embedded_corpus():
        assert utterance.text
        assert utterance.speaker
        assert utterance.language in ("en", "it", "ru")
        assert "?" not in utterance.text or utterance.extra["source"] == "festvox-ru"
        source = utterance.extra["source"]
        assert utterance.extra["license"] == LICENSES[source]
        assert f"## {source} " in attribution
    speakers = {utterance.speaker for utterance in embedded_corpus()}
    assert len(speakers) == 5


def test_attribution_carries_the_licence_texts_and_the_changes() -> None:
    attribution = (CORPUS / "ATTRIBUTION.md").read_text("utf-8")
    for phrase in (
        "Nickolay V. Shmyrev",
        "Any modifications must be clearly marked as such",
        "Carlo Flora",
        "Maxim Topal",
        "http://creativecommons.org/licenses/by/3.0/",
        "Creative Commons Notice",
        "Carnegie Mellon University",
        "Redistributions in binary form must reproduce",
        "Changes made",
        "decoded from G.722",
    ):
        assert phrase in attribution
    assert "ShareAlike" not in attribution


def test_phone_labels_rise_and_stay_within_their_clip(scanned: Scan) -> None:
    labels = set()
    with_phones = [utterance for utterance in scanned.manifest if utterance.phones is not None]
    assert {utterance.extra["source"] for utterance in with_phones} == {"festvox-ru"}
    assert len(with_phones) >= 30
    for utterance in with_phones:
        assert utterance.phones is not None
        assert utterance.duration is not None
        phones = read_phones(utterance.phones)
        assert all(a.end == b.start < b.end for a, b in pairwise(phones))
        assert utterance.duration - 0.2 < phones[-1].end <= utterance.duration
        labels |= {phone.label for phone in phones}
    assert len(labels) >= 45


def test_phone_labels_fit_the_sound() -> None:
    """Pauses are quieter than vowels: the labels belong to these clips, at these times."""
    power: dict[bool, list[float]] = {True: [], False: []}
    for utterance in embedded_corpus():
        if utterance.phones is None:
            continue
        samples = load_audio(utterance).astype(np.float64)
        for phone in read_phones(utterance.phones):
            part = samples[round(phone.start * 16_000) : round(phone.end * 16_000)]
            if phone.label in ("pau", "aa", "oo", "ii"):
                power[phone.label == "pau"].append(float(np.mean(part**2)))
    assert np.median(power[True]) < 1e-2 * np.median(power[False])


def test_prompts_are_in_both_languages() -> None:
    spoken: dict[str, set[str]] = {"it": set(), "ru": set()}
    for utterance in embedded_corpus():
        if utterance.language is not None and "prompt" in utterance.factors:
            spoken[utterance.language].add(str(utterance.factors["prompt"]))
    assert spoken["it"] == spoken["ru"]
    assert len(spoken["it"]) >= 15


def test_check_of_the_corpus() -> None:
    report = check(embedded_corpus().filter(language="en"))
    assert report.ok
    assert report.ledger.rows == 10
    assert report.sample_rates == {16_000: 10}
    assert report.speakers == 2
    text = str(report)
    assert "10: 10 good, 0 bad" in text
    assert "16000 Hz × 10" in text


def test_check_finds_what_is_wrong(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(np.arange(8_000) / 5)
    soundfile.write(tmp_path / "clean.wav", np.stack([tone, tone], 1), 8_000)
    soundfile.write(tmp_path / "clipped.wav", np.clip(tone * 8, -1, 1), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "short.wav", tone[:100], 16_000)
    (tmp_path / "text.wav").write_text("no audio")
    report = check(tmp_path)
    assert not report.ok
    assert (report.ledger.rows, report.ledger.seen) == (5, 3)
    assert report.seconds == pytest.approx(2.5)
    assert report.durations == (0.5, 1.0, 1.0)
    assert (report.sample_rates, report.channels) == ({8_000: 1, 16_000: 2}, {1: 2, 2: 1})
    assert report.clipped_utterances == ("clipped",)
    assert report.clipped == pytest.approx(0.92 * 8 / 40, rel=0.1)
    assert report.silent == ("silent",)
    assert [skip.id for skip in report.bad] == ["short", "text"]
    assert "bad: " + str(tmp_path / "short.wav") + ": too short: 100 samples" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["rows"] == 5


def test_ledgers_are_written(tmp_path: Path, scanned: Scan) -> None:
    scanned.ledger.write(tmp_path / "ledger.json")
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    assert ledger["seen"] + ledger["skipped"] == ledger["rows"] == len(scanned.manifest)
