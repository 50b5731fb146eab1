"""A folder in the layout of VoxCeleb has speakers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechft.data import read_manifest
from speechft.errors import ManifestError


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(800, np.float32), 16_000)


@pytest.mark.parametrize("above", ["", "wav", "dev/aac"])
def test_the_speaker_is_the_folder_above_the_video(tmp_path: Path, above: str) -> None:
    for name in ("id10270/5r0dWxy17C8/00001.wav", "id00012/2DLq_Kkc1r8/00016.flac"):
        write(tmp_path / above / name)
    found = {row.id.split("/")[-3]: row.speaker for row in read_manifest(tmp_path)}
    assert found == {"id10270": "id10270", "id00012": "id00012"}


def test_one_file_of_another_layout_and_there_are_no_speakers(tmp_path: Path) -> None:
    write(tmp_path / "id10270/5r0dWxy17C8/00001.wav")
    write(tmp_path / "noise/00001.wav")
    assert [row.speaker for row in read_manifest(tmp_path)] == [None, None]


def test_voxceleb2_as_it_comes_is_met_with_advice(tmp_path: Path) -> None:
    (tmp_path / "id00012/video").mkdir(parents=True)
    (tmp_path / "id00012/video/00016.m4a").write_bytes(b"\0")
    with pytest.raises(ManifestError, match=r"AAC.*ffmpeg"):
        read_manifest(tmp_path)
