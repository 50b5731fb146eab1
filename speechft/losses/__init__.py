"""The losses as modules, with the names people know."""

from speechft.losses.cached import Cached
from speechft.losses.info_nce import InfoNCELoss
from speechft.losses.moco import MoCoLoss
from speechft.losses.nt_xent import NTXentLoss
from speechft.losses.soft_dtw import SoftDTWLoss
from speechft.losses.sup_con import FactorSupConLoss, SupConLoss

__all__ = [
    "Cached",
    "FactorSupConLoss",
    "InfoNCELoss",
    "MoCoLoss",
    "NTXentLoss",
    "SoftDTWLoss",
    "SupConLoss",
]
