"""Figures of merit, exact and fast, on numpy arrays, tensors or lists.

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

__all__ = ["Trials", "act_dcf", "cllr", "det_curve", "eer", "min_dcf"]
