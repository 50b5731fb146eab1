"""What says whether a refined model is better: tasks, metrics and pictures."""

from speechft.evaluation import metrics
from speechft.evaluation.layouts import EvaluationData
from speechft.evaluation.result import EvaluationReport, Figure, TaskResult
from speechft.evaluation.run import evaluate
from speechft.evaluation.tasks import TASKS, Task

__all__ = [
    "TASKS",
    "EvaluationData",
    "EvaluationReport",
    "Figure",
    "Task",
    "TaskResult",
    "evaluate",
    "metrics",
]
