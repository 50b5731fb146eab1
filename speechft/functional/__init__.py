"""The ops of speechft: one public function each, on the fastest backend that runs."""

from speechft.functional.barlow_twins import barlow_twins
from speechft.functional.info_nce import info_nce
from speechft.functional.nt_xent import nt_xent
from speechft.functional.orthogonality import orthogonality
from speechft.functional.pairwise_lse import pairwise_lse
from speechft.functional.soft_dtw import soft_dtw, soft_dtw_from_cost
from speechft.functional.sup_con import sup_con
from speechft.functional.triplet import triplet
from speechft.functional.vicreg import vicreg

__all__ = [
    "barlow_twins",
    "info_nce",
    "nt_xent",
    "orthogonality",
    "pairwise_lse",
    "soft_dtw",
    "soft_dtw_from_cost",
    "sup_con",
    "triplet",
    "vicreg",
]
