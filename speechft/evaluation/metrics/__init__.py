"""Figures of merit, exact and fast.

>>> from speechft.evaluation.metrics import eer
>>> eer([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])
0.5
"""

from speechft.evaluation.metrics.detection import (
    Trials,
    act_dcf,
    cllr,
    det_curve,
    eer,
    min_dcf,
)
from speechft.evaluation.metrics.retrieval import Retrieval, retrieval
from speechft.evaluation.metrics.spread import rank_me, unit_std

__all__ = [
    "Retrieval",
    "Trials",
    "act_dcf",
    "cllr",
    "det_curve",
    "eer",
    "min_dcf",
    "rank_me",
    "retrieval",
    "unit_std",
]
