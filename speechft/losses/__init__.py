"""The losses as modules, with the names people know."""

from speechft.losses.barlow_twins import BarlowTwinsLoss
from speechft.losses.cached import Cached
from speechft.losses.info_nce import InfoNCELoss
from speechft.losses.moco import MoCoLoss
from speechft.losses.nt_xent import NTXentLoss
from speechft.losses.orthogonality import OrthogonalityLoss
from speechft.losses.soft_dtw import SoftDTWLoss
from speechft.losses.sup_con import FactorSupConLoss, SupConLoss
from speechft.losses.triplet import TripletLoss
from speechft.losses.vicreg import VICRegLoss

__all__ = [
    "BarlowTwinsLoss",
    "Cached",
    "FactorSupConLoss",
    "InfoNCELoss",
    "MoCoLoss",
    "NTXentLoss",
    "OrthogonalityLoss",
    "SoftDTWLoss",
    "SupConLoss",
    "TripletLoss",
    "VICRegLoss",
]
