"""Every op of speechft by its definition, in pure PyTorch: any device, any dtype, float64-exact.

The functions have the names, arguments and meaning of those in :mod:`speechft.functional`, which
are held to them by the tests. They take what the doors of ``functional`` have checked.
"""

from speechft.reference.info_nce import info_nce
from speechft.reference.nt_xent import nt_xent
from speechft.reference.pairwise_lse import PairwiseLSE, pairwise_lse
from speechft.reference.soft_dtw import soft_dtw, soft_dtw_from_cost
from speechft.reference.sup_con import sup_con

__all__ = [
    "PairwiseLSE",
    "info_nce",
    "nt_xent",
    "pairwise_lse",
    "soft_dtw",
    "soft_dtw_from_cost",
    "sup_con",
]
