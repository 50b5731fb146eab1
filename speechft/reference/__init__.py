"""Every op of speechft by its definition, in pure PyTorch: any device, any dtype, float64-exact.

The functions have the names, arguments and meaning of those in :mod:`speechft.functional`, which
are held to them by the tests. They take what the doors of ``functional`` have checked.
"""

from speechft.reference.barlow_twins import barlow_twins
from speechft.reference.convolve import convolve
from speechft.reference.dino import DINOTerms, dino, dino_terms
from speechft.reference.info_nce import info_nce
from speechft.reference.koleo import koleo
from speechft.reference.nt_xent import nt_xent
from speechft.reference.orthogonality import orthogonality
from speechft.reference.pairwise_lse import PairwiseLSE, pairwise_lse
from speechft.reference.pointwise import pointwise
from speechft.reference.sinkhorn import sinkhorn, sinkhorn_center, swapped_prediction
from speechft.reference.soft_dtw import soft_dtw, soft_dtw_from_cost
from speechft.reference.statistics_pooling import attentive_statistics_pooling, statistics_pooling
from speechft.reference.sup_con import sup_con
from speechft.reference.temporal_idm import temporal_idm
from speechft.reference.triplet import triplet
from speechft.reference.vicreg import vicreg

__all__ = [
    "DINOTerms",
    "PairwiseLSE",
    "attentive_statistics_pooling",
    "barlow_twins",
    "convolve",
    "dino",
    "dino_terms",
    "info_nce",
    "koleo",
    "nt_xent",
    "orthogonality",
    "pairwise_lse",
    "pointwise",
    "sinkhorn",
    "sinkhorn_center",
    "soft_dtw",
    "soft_dtw_from_cost",
    "statistics_pooling",
    "sup_con",
    "swapped_prediction",
    "temporal_idm",
    "triplet",
    "vicreg",
]
