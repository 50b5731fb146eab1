"""Two-step tuning of hubert-mini for languages, by few labels, beside end-to-end tuning.

    python -m recipes.combined --work runs/combined

Settings are those of :data:`CONFIG`, chosen on voices of their own (``--choose`` runs on these).
Goes on where it stopped. Writes ``report-test.md`` into the work folder.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.combined.report import table
from recipes.combined.speech import prepare
from speechft.evaluation import EvaluationData
from speechft.methods.two_step import two_step
from speechft.methods.two_step_config import TwoStepConfig

# Chosen with --choose: dropout of both sides, mining, the learning rate, the layer by its probe.
CONFIG = TwoStepConfig(
    label="language", layer=2, tuned_layers=2, mining="hard", dropout=0.1, end_to_end_dropout=0.5,
    steps=100, adapter_steps=50, learning_rates=(1e-3,), adapter_learning_rate=3e-3,
)  # fmt: skip


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/combined"))
    parser.add_argument("--labelled", type=int, nargs="+", default=[8], help="of each")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--choose", action="store_true", help="judge on voices to choose by")
    parser.add_argument("--settings", type=json.loads, default={}, help="others, as JSON")
    arguments = parser.parse_args()
    speech = prepare(arguments.work / "speech")
    part = "choose" if arguments.choose else "test"
    data = EvaluationData(
        f"numbers ({part})",
        {"train": speech["train"], "validation": speech["validation"], "test": speech[part]},
    )
    changed: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in arguments.settings.items()
    }
    reports = {}
    for labelled in arguments.labelled:
        config = replace(CONFIG, labelled=labelled, seeds=arguments.seeds, **changed)
        name = "-".join(
            [part, str(labelled), *(f"{key}={value}" for key, value in changed.items())]
        )
        reports[labelled] = two_step(
            model="speechft/hubert-mini",
            data=data,
            output=arguments.work / name.replace("/", ""),
            config=config,
        )
        print(reports[labelled], flush=True)
    (arguments.work / f"report-{part}.md").write_text(table(reports) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
