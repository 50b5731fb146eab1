"""The ops of speechft: one public function each, on the fastest backend that runs."""

from speechft.functional.info_nce import info_nce
from speechft.functional.nt_xent import nt_xent
from speechft.functional.pairwise_lse import pairwise_lse
from speechft.functional.soft_dtw import soft_dtw, soft_dtw_from_cost
from speechft.functional.sup_con import sup_con

__all__ = [
    "info_nce",
    "nt_xent",
    "pairwise_lse",
    "soft_dtw",
    "soft_dtw_from_cost",
    "sup_con",
]
