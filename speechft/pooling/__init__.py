"""From frames to one vector an utterance: modules of ``(x, lengths)``, x (B, T, C)."""

from speechft.pooling.attentive import AttentiveStatisticsPooling
from speechft.pooling.heads import (
    MultiHeadAttentiveStatisticsPooling,
    MultiQueryAttentiveStatisticsPooling,
    SelfAttentivePooling,
)
from speechft.pooling.simple import MaxPooling, MeanPooling, StatisticsPooling

__all__ = [
    "AttentiveStatisticsPooling",
    "MaxPooling",
    "MeanPooling",
    "MultiHeadAttentiveStatisticsPooling",
    "MultiQueryAttentiveStatisticsPooling",
    "SelfAttentivePooling",
    "StatisticsPooling",
]
