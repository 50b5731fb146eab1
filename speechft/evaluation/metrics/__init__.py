"""Figures of merit, exact and fast.

>>> from speechft.evaluation.metrics import eer
>>> eer([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])
0.5
"""

from speechft.evaluation.metrics.abx import ABX, abx, sample_items
from speechft.evaluation.metrics.classification import accuracy, macro_f1, micro_f1, uar
from speechft.evaluation.metrics.clustering import (
    coverage,
    normalized_mutual_information,
    perplexity,
    pnmi,
    purity,
)
from speechft.evaluation.metrics.cross_entropy import CrossEntropy, cnxe, min_cnxe
from speechft.evaluation.metrics.detection import (
    Trials,
    act_dcf,
    cllr,
    det_curve,
    eer,
    min_dcf,
)
from speechft.evaluation.metrics.error_rate import ErrorRate, error_rate
from speechft.evaluation.metrics.geometry import (
    centroid_distance,
    centroid_separation,
    davies_bouldin,
    k_shot_accuracy,
)
from speechft.evaluation.metrics.retrieval import Retrieval, retrieval
from speechft.evaluation.metrics.spread import rank_me, unit_std
from speechft.evaluation.metrics.term_detection import (
    TermWeightedValue,
    atwv,
    mtwv,
    standardize,
)

__all__ = [
    "ABX",
    "CrossEntropy",
    "ErrorRate",
    "Retrieval",
    "TermWeightedValue",
    "Trials",
    "abx",
    "accuracy",
    "act_dcf",
    "atwv",
    "centroid_distance",
    "centroid_separation",
    "cllr",
    "cnxe",
    "coverage",
    "davies_bouldin",
    "det_curve",
    "eer",
    "error_rate",
    "k_shot_accuracy",
    "macro_f1",
    "micro_f1",
    "min_cnxe",
    "min_dcf",
    "mtwv",
    "normalized_mutual_information",
    "perplexity",
    "pnmi",
    "purity",
    "rank_me",
    "retrieval",
    "sample_items",
    "standardize",
    "uar",
    "unit_std",
]
