"""Speech and voices from Debian packages: fetched with apt-get, unpacked without root.

Needs Debian or a system of its family (``apt-get update`` first) and ``pip install av soundfile``;
``av`` decodes G.722.
"""

from __future__ import annotations

import gzip
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

RATE = 16_000
FESTVOX = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
PROMPTS = {
    "en": "usr/share/asterisk/sounds/en_US_f_Allison",
    "es": "usr/share/asterisk/sounds/es_MX_f_Allison",
    "fr": "usr/share/asterisk/sounds/fr_CA_f_June",
    "it": "usr/share/asterisk/sounds/it_IT_m_Carlo",
    "ru": "usr/share/asterisk/sounds/ru_RU_f_IvrvoiceRU",
}
PROMPT_SPEAKERS = {
    "en": "allison-smith",
    "es": "allison-smith",
    "fr": "june-wallack",
    "it": "carlo-flora",
    "ru": "ivrvoice-ru",
}

Samples = npt.NDArray[np.int16]


@dataclass
class Clip:
    """An utterance: a row of a manifest, and its samples."""

    id: str
    samples: Samples
    text: str
    speaker: str
    language: str
    source: str
    license: str
    phones: list[tuple[float, str]] | None = None
    factors: dict[str, str] = field(default_factory=dict)


def install(packages: list[str], folder: Path, *, dependencies: bool = False) -> Path:
    """Unpack packages into ``folder/root`` and return it; what lies there already is not fetched.

    Args:
        packages: names.
        folder: for the .deb files and what they hold.
        dependencies: also what they need and the system lacks, so that programs in them run.
    """
    root, archives = folder / "root", folder / "debs"
    archives.mkdir(parents=True, exist_ok=True)
    wanted = list(packages)
    if dependencies:
        plan = ["apt-get", "install", "--simulate", "--no-install-recommends", *packages]
        wanted += re.findall(r"^Inst (\S+)", _output(plan), re.M)
    for package in dict.fromkeys(wanted):
        done = archives / f"{package}.unpacked"
        if done.exists():
            continue
        if not list(archives.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "-q", package], cwd=archives, check=True)
        (deb,) = archives.glob(f"{package}_*.deb")
        subprocess.run(["dpkg", "-x", str(deb.resolve()), str(root)], check=True)
        done.write_text(_output(["dpkg-deb", "-f", str(deb), "Version"]))
    return root


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def festvox_texts(root: Path) -> dict[str, str]:
    """Sentences of festvox-ru by name, without the stress marks."""
    listing = (root / FESTVOX / "etc/txt.done.data").read_text("utf-8")
    texts = re.findall(r'^\( (\S+) "(.*)" \)', listing, re.M)
    return {name: text.replace("+", "").strip() for name, text in texts}


def festvox_phones(label: Path, seconds: float) -> list[tuple[float, str]] | None:
    """Ends and phones of a sentence, or None where they do not fit its audio."""
    phones = read_labels(label)
    ends = [end for end, _ in phones]
    if any(a >= b for a, b in zip([0.0, *ends], ends, strict=False)):
        return None
    if abs(ends[-1] - seconds) >= 0.2:
        return None
    return [(min(end, seconds), phone) for end, phone in phones]


def prompt_texts(root: Path, language: str) -> dict[str, str]:
    """Texts by prompt, without sound effects and lines whose accents were lost to '?'."""
    package = f"asterisk-core-sounds-{language}"
    path = root / f"usr/share/doc/{package}/core-sounds-{language}.txt.gz"
    texts = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines():
        prompt, _, text = line.partition(":")
        text = " ".join(text.split())
        if text and not line.startswith(";") and not re.search(r"[\[\]?()<>]", text):
            texts[prompt.strip()] = text
    return texts


def read_wav(path: Path) -> Samples:
    """Samples of a 16-bit mono file at 16 kHz, bit for bit."""
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == RATE, path
    assert samples.ndim == 1, path
    return samples  # type: ignore[no-any-return]


def read_g722(path: Path) -> Samples:
    """Samples of an ITU-T G.722 file: 64 kbit/s, 16 kHz."""
    import av

    with av.open(str(path), format="g722") as container:
        blocks = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    samples: Samples = np.concatenate(blocks) if blocks else np.zeros(0, np.int16)
    assert samples.dtype == np.int16, path
    return samples


def read_labels(path: Path) -> list[tuple[float, str]]:
    """Ends and phones of an EST label file: a header up to '#', then END COLOUR PHONE."""
    _, _, body = path.read_text("utf-8").partition("#\n")
    rows = [line.split() for line in body.splitlines() if line.strip()]
    return [(float(row[0]), row[-1]) for row in rows]
