"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from speechft.cli import main

TINY = ["--batch-size", "3", "--steps", "2", "--device", "cpu", "--evaluate-utterances", "3"]


@pytest.fixture
def speech(tmp_path):
    from speechft.data import embedded_corpus, write_manifest

    path = tmp_path / "data.jsonl"
    write_manifest(embedded_corpus().filter(language="en")[:6], path)
    return str(path)


@pytest.fixture
def model(tmp_path):
    from speechft import models

    models.tiny().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_refine_prints_a_table_and_writes_the_model(tmp_path, speech, model, capsys):
    output = tmp_path / "run"
    arguments = ["refine", "score", "--model", model, "--data", speech, "--output", str(output)]
    assert main([*arguments, *TINY, "--tuned_layers=1", "--speeds", "[0.9, 1.1]"]) == 0
    printed = capsys.readouterr()
    assert "loss before → after" in printed.out
    assert "step 2 of 2" in printed.err
    report = json.loads((output / "report.json").read_text())
    assert report["settings"]["tuned_layers"] == 1
    assert report["settings"]["speeds"] == [0.9, 1.1]
    assert (output / "model.safetensors").exists()
    assert main([*arguments, *TINY]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["refin"], "did you mean refine?"),
        (["refine", "scor"], "did you mean score?"),
        (["refine", "score", "--modle", "x"], "did you mean --model?"),
        (["refine", "score", "--batchsize", "x"], "did you mean --batch-size?"),
        (["check", "embedded", "--jsn"], "did you mean --json?"),
        (["doctor", "--jason"], "did you mean --json?"),
        (["refine", "score", "--model", "x"], "data"),
        (["refine", "score", "--gamma", "high"], "gamma"),
    ],
)
def test_usage_errors_have_the_nearest_name_and_code_2(arguments, hint, capsys):
    assert main(arguments) == 2
    assert hint in capsys.readouterr().err


def test_yaml_keys_are_the_flags(tmp_path, speech, model, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("steps: 1\nbatch_size: 2\ngamma: 0.2\ndevice: cpu\nevaluate_utterances: 2\n")
    output = tmp_path / "run"
    arguments = ["refine", "score", "--model", model, "--data", speech, "--output", str(output)]
    assert main([*arguments, "--config", str(config)]) == 0
    assert json.loads((output / "report.json").read_text())["settings"]["gamma"] == 0.2
    config.write_text("step: 1\n")
    capsys.readouterr()
    assert main([*arguments, "--config", str(config)]) == 2
    assert "did you mean steps?" in capsys.readouterr().err
    assert main([*arguments, "--config", str(tmp_path / "none.yaml")]) == 2


def test_bad_data_is_code_3_and_names_the_line(tmp_path, model, capsys):
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text('{"audio": "missing.wav"}\n')
    arguments = ["refine", "score", "--model", model, "--data", str(manifest)]
    assert main([*arguments, "--output", str(tmp_path / "run"), *TINY]) == 3
    assert "bad.jsonl, line 1" in capsys.readouterr().err
    assert main(["check", str(manifest)]) == 3


def test_check_prints_what_is_there(capsys):
    assert main(["check", "embedded", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_doctor_knows_every_backend_of_every_op(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ops"]["soft_dtw"]["reference"] == "runs"
    assert found["ops"]["soft_dtw"].keys() == {"reference", "cpu", "cuda"}
    assert main(["doctor"]) == 0
    assert "soft_dtw" in capsys.readouterr().out


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    assert "refine" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["--version"]) == 0


def test_importing_speechft_imports_nothing_heavy():
    heavy = ("transformers", "torchaudio", "numba", "triton", "soundfile", "accelerate", "scipy")
    code = (
        "import torch, sys; before = set(sys.modules); import speechft, speechft.augment; "
        f"print([m for m in {heavy!r} if m in sys.modules and m not in before])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
