"""Every method on hubert-mini, from the same recordings, judged on the same held-out speech.

    python -m recipes.compare --work runs/compare

Goes on where it stopped; ``--only NAME ...`` does some of the ways, so that several processes can
share the work. Writes ``compare.json``, ``compare.md`` and ``compare.png`` into the work folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import transformers

from recipes.compare.report import draw, rows_of, table
from recipes.compare.speech import grid, judged, recordings
from recipes.compare.ways import MODEL, WAYS, Way
from speechft import evaluate
from speechft.evaluation.tasks import Leakage, Phones, Query, Retrieval, Speaker
from speechft.methods.refine import refine
from speechft.models import SubspaceModel, load

CHANGES = ("speed 0.8", "pitch +4")
UNTUNED = "untuned"


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[UNTUNED, *WAYS], default=[UNTUNED, *WAYS])
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for name in arguments.only:
            start = time.perf_counter()
            found = run(work, name, seed)
            done = f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s; "
            print(done + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
    every = {
        name: [
            json.loads(path.read_text(encoding="utf-8"))
            for seed in range(arguments.seeds)
            if (path := folder(work, name, seed) / f"figures-{seed}.json").exists()
        ]
        for name in (UNTUNED, *WAYS)
    }
    every = {name: figures for name, figures in every.items() if figures}
    (work / "compare.json").write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    if UNTUNED in every:
        rows = rows_of(every, UNTUNED)
        text = table(rows, {name: way.labels for name, way in WAYS.items()})
        (work / "compare.md").write_text(text + "\n", encoding="utf-8")
        draw(rows, work / "compare.png")
        print(text)


def folder(work: Path, name: str, seed: int) -> Path:
    """Of a run."""
    if name in WAYS and not WAYS[name].drawn:
        seed = 0  # refined once; what is fitted and tested is drawn anew
    return work / "runs" / f"{name.replace(' + ', '+').lower()}-{seed}"


def run(work: Path, name: str, seed: int) -> dict[str, float]:
    """Refine once and judge once, or read what was found."""
    place = folder(work, name, seed)
    path = place / f"figures-{seed}.json"
    if path.exists():
        kept: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    place.mkdir(parents=True, exist_ok=True)
    if name == UNTUNED:
        found = judge(load(MODEL), None, seed)
    else:
        way = WAYS[name]
        if not (place / "cost.json").exists():
            cost = learn(way, work, place, seed)
            (place / "cost.json").write_text(json.dumps(cost) + "\n", encoding="utf-8")
        cost = json.loads((place / "cost.json").read_text(encoding="utf-8"))
        of_utterances = None if way.vectors is None else way.vectors(place)
        found = {**judge(way.frames(place), of_utterances, seed), **cost}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def learn(way: Way, work: Path, place: Path, seed: int) -> dict[str, float]:
    """One run of refinement; seconds of audio that it took, and of processors."""
    data = grid(work) if way.labels == "a grid" else recordings(work)
    start = time.process_time()  # the same beside another job
    report = refine(
        model=MODEL, method=way.method, output=place, config=way.config, data=data,
        training=way.settings(seed), resume=any((place / "checkpoints").glob("checkpoint-*")),
    )  # fmt: skip
    seconds = time.process_time() - start
    # A closed form takes no steps: it reads all of its data once.
    return {"audio": report.audio_seconds or report.data["seconds"], "processor": seconds}


def judge(encoder: Any, of_utterances: Any, seed: int) -> dict[str, float]:
    """All figures, of the last layer; over the changes, their mean."""
    sentences, people = judged()
    last = encoder.num_layers
    tasks = [
        Phones(layers=(last,), conditions=("unchanged", *CHANGES), penalties=(3e-3,)),
        Query(conditions=CHANGES, phones=4),
        Retrieval(conditions=CHANGES, layers=(last,)),
    ]
    content = evaluate(model=encoder, tasks=tasks, data=sentences, seeds=[seed], progress=False)
    leaks = evaluate(
        model=encoder, tasks=[Leakage(factors=("speaker",))], data=people, seeds=[seed],
        progress=False,
    )["leakage"]  # fmt: skip

    def mean(task: str, figure: str) -> float:
        values = [content[task].figure(figure, layer=last, condition=c).mean for c in CHANGES]
        return sum(values) / len(values)

    eer = leaks.figure("EER", of="speaker from whole").mean
    found = {
        "phones": content["phones"].figure("accuracy", layer=last, condition="unchanged").mean,
        "phones, changed": mean("phones", "accuracy"),
        "query": mean("query", "MTWV"),
        "retrieval": mean("retrieval", "MAP"),
        "EER from frames": eer,
        "probe from frames": leaks.figure("probe", of="speaker from whole").mean,
        "EER": eer,
    }
    if of_utterances is not None:
        task = Speaker()
        of = evaluate(
            model=of_utterances, tasks=[task], data=people, seeds=[seed], progress=False
        )["speaker"]  # fmt: skip
        subspace = "speaker" if isinstance(of_utterances, SubspaceModel) else ""
        found["EER"] = of.figure("EER", of=subspace).mean
    return found


if __name__ == "__main__":
    main()
