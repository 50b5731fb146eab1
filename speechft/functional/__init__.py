"""The ops of speechft: one public function each, on the fastest backend that runs."""

from speechft.functional.attentive_statistics_pooling import attentive_statistics_pooling
from speechft.functional.barlow_twins import barlow_twins
from speechft.functional.codes import code_perplexity, me_max, mean_entropy
from speechft.functional.convolve import convolve
from speechft.functional.dino import dino, dino_terms
from speechft.functional.info_nce import info_nce
from speechft.functional.koleo import koleo
from speechft.functional.mean_pooling import max_pooling, mean_pooling
from speechft.functional.nt_xent import nt_xent
from speechft.functional.orthogonality import orthogonality
from speechft.functional.pairwise_lse import pairwise_lse
from speechft.functional.pointwise import pointwise
from speechft.functional.sinkhorn import sinkhorn, sinkhorn_center
from speechft.functional.soft_dtw import soft_dtw, soft_dtw_from_cost
from speechft.functional.statistics_pooling import statistics_pooling
from speechft.functional.sup_con import sup_con
from speechft.functional.swapped_prediction import swapped_prediction
from speechft.functional.temporal_idm import temporal_idm
from speechft.functional.triplet import triplet
from speechft.functional.vicreg import vicreg

__all__ = [
    "attentive_statistics_pooling",
    "barlow_twins",
    "code_perplexity",
    "convolve",
    "dino",
    "dino_terms",
    "info_nce",
    "koleo",
    "max_pooling",
    "me_max",
    "mean_entropy",
    "mean_pooling",
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
