"""Every op of speechft by its definition, in pure PyTorch: any device, any dtype, float64-exact.

The functions have the names, arguments and meaning of those in :mod:`speechft.functional`, which
are held to them by the tests. They take what the doors of ``functional`` have checked.
"""

from speechft.reference.barlow_twins import barlow_twins
from speechft.reference.info_nce import info_nce
from speechft.reference.nt_xent import nt_xent
from speechft.reference.orthogonality import orthogonality
from speechft.reference.pairwise_lse import PairwiseLSE, pairwise_lse
from speechft.reference.soft_dtw import soft_dtw, soft_dtw_from_cost
from speechft.reference.sup_con import sup_con
from speechft.reference.triplet import triplet
from speechft.reference.vicreg import vicreg

__all__ = [
    "PairwiseLSE",
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
