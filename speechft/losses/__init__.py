"""The losses as modules, with the names people know."""

from speechft.losses.barlow_twins import BarlowTwinsLoss
from speechft.losses.cached import Cached
from speechft.losses.dino import DINOLoss, linear_warmup
from speechft.losses.info_nce import InfoNCELoss
from speechft.losses.koleo import KoLeoLoss
from speechft.losses.loss_gate import LossGate
from speechft.losses.margin import AAMSoftmaxLoss
from speechft.losses.moco import MoCoLoss
from speechft.losses.nt_xent import NTXentLoss
from speechft.losses.orthogonality import OrthogonalityLoss
from speechft.losses.soft_dtw import SoftDTWLoss
from speechft.losses.sub_center import SubCenterArcFaceLoss
from speechft.losses.sup_con import FactorSupConLoss, SupConLoss
from speechft.losses.swapped_prediction import SwappedPredictionLoss
from speechft.losses.temporal_idm import TemporalIDMLoss
from speechft.losses.triplet import TripletLoss
from speechft.losses.vicreg import VICRegLoss

__all__ = [
    "AAMSoftmaxLoss",
    "BarlowTwinsLoss",
    "Cached",
    "DINOLoss",
    "FactorSupConLoss",
    "InfoNCELoss",
    "KoLeoLoss",
    "LossGate",
    "MoCoLoss",
    "NTXentLoss",
    "OrthogonalityLoss",
    "SoftDTWLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "SwappedPredictionLoss",
    "TemporalIDMLoss",
    "TripletLoss",
    "VICRegLoss",
    "linear_warmup",
]
