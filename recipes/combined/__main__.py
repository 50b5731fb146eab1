"""Two-step tuning of hubert-mini by few labels, beside end-to-end tuning.

    python -m recipes.combined speaker --work runs/combined
    python -m recipes.combined language --work runs/combined

Settings are those of each task's ``CONFIG``, chosen on voices of their own (``--choose`` runs on
these). Goes on where it stopped. Writes ``TASK/report-test.md`` and a picture into the work folder.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.combined import languages, speakers
from recipes.combined.report import draw, table
from speechft.methods.two_step import two_step

TASKS: dict[str, Any] = {"language": languages, "speaker": speakers}


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--work", type=Path, default=Path("runs/combined"))
    parser.add_argument("--labelled", type=int, nargs="+", help="of each")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--choose", action="store_true", help="judge on voices to choose by")
    parser.add_argument("--settings", type=json.loads, default={}, help="others, as JSON")
    arguments = parser.parse_args()
    task, folder = TASKS[arguments.task], arguments.work / arguments.task
    part = "choose" if arguments.choose else "test"
    data, space = task.prepare(folder / "speech", part)
    changed: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in arguments.settings.items()
    }
    reports = {}
    for labelled in arguments.labelled or task.LABELLED:
        config = replace(task.CONFIG, labelled=labelled, seeds=arguments.seeds, **changed)
        name = "-".join(
            [part, str(labelled), *(f"{key}={value}" for key, value in changed.items())]
        )
        reports[labelled] = two_step(
            model="speechft/hubert-mini",
            data=data,
            space_data=space,
            output=folder / name.replace("/", ""),
            config=config,
        )
        print(reports[labelled], flush=True)
    (folder / f"report-{part}.md").write_text(table(reports) + "\n", encoding="utf-8")
    draw(reports, folder / f"report-{part}.png")


if __name__ == "__main__":
    main()
