"""The ops of speechft: one public function each, on the fastest backend that runs."""

from speechft.functional.pairwise_lse import pairwise_lse
from speechft.functional.soft_dtw import soft_dtw, soft_dtw_from_cost

__all__ = ["pairwise_lse", "soft_dtw", "soft_dtw_from_cost"]
