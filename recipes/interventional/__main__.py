"""Interventional refinement of hubert-mini: make the grids, refine, judge.

    python -m recipes.interventional --work runs/interventional

Three ways, on one grid: in closed form, in closed form with recordings of people for the speaker
subspace, and as published. Sizes of the closed form are chosen on voices that it is not fitted on,
then all learn from these voices as well; how much recordings count, on people of their own. Goes on
where it stopped. Writes ``report.json``, ``report.md`` and pictures into the work folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from recipes.interventional.choose import choose
from recipes.interventional.choose_recorded import choose_recorded
from recipes.interventional.people import people
from recipes.interventional.report import row_of, table
from recipes.interventional.speech import join, prepare
from speechft import evaluate
from speechft.evaluation.tasks.label import Keyword
from speechft.evaluation.tasks.leakage import Leakage
from speechft.evaluation.tasks.speaker import Speaker
from speechft.methods import Interventional, InterventionalConfig
from speechft.methods.refine import refine
from speechft.training import TrainingSettings

MODEL = "speechft/hubert-mini"
LAYER = 3  # of 4


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/interventional"))
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    grids = prepare(work)
    found = json.loads((work / "sizes.json").read_text()) if (work / "sizes.json").exists() else {}
    if not found:
        found = choose(MODEL, LAYER, grids, work / "features")
        (work / "sizes.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"chosen: {found['chosen']}")
    grids["learn"] = work / "learn.jsonl"
    join(grids["learn"], {part: grids[part] for part in ("train", "choose")})
    grids["recorded"] = people(work)
    share = work / "recorded-share.json"
    if not share.exists():
        limit = found["keyword from speaker"]["limit"]
        tried = choose_recorded(MODEL, LAYER, grids, work / "features", limit)
        share.write_text(json.dumps(tried, indent=1) + "\n")
    recorded = json.loads(share.read_text())["chosen"]
    print(f"chosen with recordings: {recorded}")
    grids["learn-recorded"] = work / "learn-recorded.jsonl"
    parts = ("train", "choose", "recorded")
    join(grids["learn-recorded"], {part: grids[part] for part in parts})
    linear: dict[str, Any] = {"hidden_sizes": (), "fit": "discriminant"}
    ways: dict[str, dict[str, Any]] = {
        "closed form": {**linear, "sizes": found["chosen"]},
        "closed form with recordings": {
            **linear, "sizes": {**found["chosen"], "speaker": recorded["size"]},
            "recorded_share": recorded["share"], "noise_weights": {"speaker": recorded["weight"]},
        },
        "as published": {},
    }  # fmt: skip
    rows: dict[str, list[dict[str, float]]] = {}
    for name, settings in ways.items():
        # The closed form draws nothing: its seeds are those of the probes.
        seeds = range(1 if settings.get("fit") else arguments.seeds)
        probes = arguments.seeds if settings.get("fit") else 1
        rows[name] = [run(work, grids, name, settings, seed, probes) for seed in seeds]
        (work / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
        (work / "report.md").write_text(table(rows) + "\n")
        print(f"{name} done", flush=True)
    print(table(rows))


def run(
    work: Path,
    grids: dict[str, Path],
    name: str,
    settings: dict[str, Any],
    seed: int,
    probes: int,
) -> dict[str, float]:
    """Refine once, and judge on unseen voices and texts, and on real speakers."""
    output = work / "runs" / f"{name.replace(' ', '-')}-{seed}"
    if (output / "figures.json").exists():
        kept: dict[str, float] = json.loads((output / "figures.json").read_text())
        return kept
    config = InterventionalConfig(layer=LAYER, features=str(work), **settings)
    training = TrainingSettings(**{**Interventional.training_defaults, "seed": seed})
    start = time.perf_counter()
    if not (output / "report.json").exists():
        data = grids["learn" if config.recorded_share is None else "learn-recorded"]
        refine(
            model=MODEL, method="interventional", data=data, output=output, config=config,
            training=training,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    drawn = range(seed, seed + probes)
    plots = settings.get("fit") == "discriminant"
    reports = {
        "test": evaluate(
            model=output, data=grids["test"], seeds=drawn, plots=plots, output=output / "test",
            tasks=[Speaker(), Leakage(factors=("speaker", "text"))],
        ),
        "words": evaluate(
            model=output, data=grids["test-words"], seeds=drawn, plots=False,
            output=output / "words", tasks=[Keyword(groups="fold")],
        ),
        "real": evaluate(
            model=output, data="embedded", seeds=drawn, plots=False, output=output / "real",
            tasks=[Speaker(), Leakage(factors=("speaker",))],
        ),
    }  # fmt: skip
    figures = {**row_of(reports), "seconds": seconds}
    (output / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    main()
