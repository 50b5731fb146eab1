"""The tasks by which a model is judged."""

from speechft.evaluation.tasks.base import Context, Task
from speechft.evaluation.tasks.content import ABX, Retrieval
from speechft.evaluation.tasks.label import Keyword, Label
from speechft.evaluation.tasks.leakage import Leakage
from speechft.evaluation.tasks.phones import Phones
from speechft.evaluation.tasks.query import Query
from speechft.evaluation.tasks.speaker import Speaker
from speechft.evaluation.tasks.spread import Spread
from speechft.evaluation.tasks.transcription import Transcription
from speechft.evaluation.tasks.units import Units

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Phones, Transcription, Query, Retrieval, ABX, Speaker, Keyword, Label, Leakage, Spread,
        Units,
    )
}  # fmt: skip
"""Every task by its name."""

__all__ = [
    "ABX",
    "TASKS",
    "Context",
    "Keyword",
    "Label",
    "Leakage",
    "Phones",
    "Query",
    "Retrieval",
    "Speaker",
    "Spread",
    "Task",
    "Transcription",
    "Units",
]
