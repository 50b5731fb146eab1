"""Training: a thin subclass of ``transformers.Trainer``, and what a run of it needs.

Nothing here imports transformers until a trainer is made.
"""

from speechft.training.settings import TrainingSettings

__all__ = ["TrainingSettings"]
