"""What the encoder has learnt: the phone probe by layer, against log-mel and its own first weights.

On three sets that pre-training never heard: sentences of a speaker it knows; a voice that it does
not know, in a language it knows (and with texts that it has heard from others); and a voice and a
language that it does not know.
"""

from __future__ import annotations

import json
from pathlib import Path

from speechft.data import read_manifest
from speechft.evaluation import EvaluationData, TaskResult, evaluate
from speechft.evaluation.plots import layer_curves
from speechft.evaluation.tasks import Phones
from speechft.models import load

SETS = {
    "heard-speaker": "festvox-ru, sentences held out (a heard speaker)",
    "unheard-speaker": "flite rms, English (an unheard speaker)",
    "unheard-language": "festival lp, Italian (an unheard speaker and language)",
}
UNTRAINED = "speechft/hubert-mini-untrained"
PROBE = Phones(penalties=(3e-4, 3e-3))


def report(folder: Path, speech: Path, output: Path, *, seeds: int = 3) -> None:
    """Judge the model in ``folder``; writes ``probe.json``, ``probe.md`` and a picture a set.

    Three quarters of each set of 120 fit and validate the probe and a quarter tests it; the seed
    draws which.
    """
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, TaskResult]] = {}
    for name, title in SETS.items():
        data = EvaluationData(title, {"all": read_manifest(speech / f"{name}.jsonl")})
        found[name] = {
            model: evaluate(model=encoder, tasks=[PROBE], data=data, seeds=seeds)["phones"]
            for model, encoder in (
                ("log-mel", "log-mel"),
                ("untrained", load(UNTRAINED)),
                ("hubert-mini", load(folder)),
            )
        }
        layer_curves(
            {model: found[name][model] for model in ("hubert-mini", "log-mel", "untrained")},
            output / f"probe-{name}.png", title=title,
        )  # fmt: skip
        print(table(found[name]), flush=True)
    content = {
        name: {model: result.to_dict() for model, result in results.items()}
        for name, results in found.items()
    }
    (output / "probe.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    lines = [f"### {SETS[name]}\n\n{table(results)}\n" for name, results in found.items()]
    (output / "probe.md").write_text("\n".join(lines), encoding="utf-8")


def table(results: dict[str, TaskResult]) -> str:
    """Accuracy in %, a column a layer, in Markdown."""
    layers = [figure.layer for figure in results["hubert-mini"].figures]
    lines = [
        "| | " + " | ".join(f"layer {layer}" for layer in layers) + " |",
        "|---" * (len(layers) + 1) + "|",
    ]
    for model, result in results.items():
        cells = [
            f"{100 * figure.mean:.1f} ± {100 * (figure.spread or 0):.1f}"
            for figure in result.figures
        ]
        cells += [""] * (len(layers) - len(cells))
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
