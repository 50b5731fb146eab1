"""Synthesized voices: (text, voice) to samples at 16 kHz and, where the engine says them, phones.

``espeak-ng`` is a formant synthesizer and a weak stand-in for people; ``flite`` and ``festival``
join recordings of people. All three give the same samples every time they run.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from recipes.debian import RATE, Samples, read_labels

PACKAGES = ["espeak-ng", "flite", "festival", "festvox-italp16k"]
ESPEAK_VARIANTS = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5",
    "Andy", "Annie", "Denis", "Diogo", "Gene", "Jacky", "Lee", "Mario", "Michael", "Steph",
    "steph2",
)  # fmt: skip


class Spoken(NamedTuple):
    """What a voice said. ``phones`` are (end in seconds, label), or None."""

    samples: Samples
    phones: list[tuple[float, str]] | None


class Engines:
    """The engines of an unpacked ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        self.environment = os.environ | {
            "LD_LIBRARY_PATH": f"{libraries}:{libraries / 'pulseaudio'}",
            "ESPEAK_DATA_PATH": str(libraries / "espeak-ng-data"),
        }

    def espeak(self, text: str, *, voice: str, pitch: int, words_a_minute: int) -> Spoken:
        """``voice`` is a language and a variant, such as ``"fr+f2"``."""
        settings = ["-v", voice, "-p", str(pitch), "-s", str(words_a_minute)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "said.wav"
            self._run(["espeak-ng", *settings, "-w", str(path), "--stdin"], text)
            return Spoken(_read(path), None)

    def flite(self, text: str, *, voice: str) -> Spoken:
        """English; phones in flite's set."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "said.wav"
            said = self._run(["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(path)])
            pairs = [token.rpartition(":") for token in said.split()]
            return Spoken(_read(path), [(float(end), phone) for phone, _, end in pairs])

    def festival(self, text: str, *, voice: str) -> Spoken:
        """Phones in the voice's set."""
        share = self.root / "usr/share/festival"
        # The engine reads Latin-1, and a quotation mark would end its string.
        plain = unicodedata.normalize("NFKC", text).replace("’", "'")
        quoted = plain.replace("\\", " ").replace('"', " ")
        with tempfile.TemporaryDirectory() as folder:
            wave, labels = Path(folder) / "said.wav", Path(folder) / "said.lab"
            script = Path(folder) / "say.scm"
            # The program looks for its library where the package would be installed: say where. If
            # it is installed there as well, it has looked for voices and lexicons by now: let it
            # look for voices again, and say where the lexicons are.
            script.write_text(
                f'(set! datadir "{share}")\n(set! libdir "{share}/")\n'
                f"(set! load-path (cons libdir nil))\n"
                f'(set! voice-path (cons "{share}/voices/" nil))\n(set! lexdir "{share}/dicts/")\n'
                f'(load "{share}/init.scm")\n(search-for-voices)\n(voice_{voice})\n'
                f'(set! said (utt.synth (Utterance Text "{quoted}")))\n'
                f'(utt.save.wave said "{wave}" \'riff)\n(utt.save.segs said "{labels}")\n',
                encoding="latin-1",
            )
            self._run(["festival", "--libdir", f"{share}/", "-b", str(script)])
            return Spoken(_read(wave), read_labels(labels))

    def _run(self, command: list[str], stdin: str = "") -> str:
        program = self.root / "usr/bin" / command[0]
        done = subprocess.run(
            [str(program), *command[1:]],
            input=stdin, capture_output=True, text=True, env=self.environment, check=False,
        )  # fmt: skip
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise RuntimeError(f"{program} ended with {done.returncode}: {said or 'no message'}")
        return done.stdout


def _read(path: Path) -> Samples:
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != RATE:
        samples = soxr.resample(samples, rate, RATE)
    pcm: Samples = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    return pcm
