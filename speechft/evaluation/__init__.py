"""What says whether a refined model is better: metrics."""

from speechft.evaluation import metrics

__all__ = ["metrics"]
