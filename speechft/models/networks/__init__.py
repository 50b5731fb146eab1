"""Networks from log-mel frames to the frames that a pooling takes, all exact about padding.

    frames, lengths = LogMel(80)(waveforms, lengths)
    frames, lengths = ECAPA(80, channels=512)(frames, lengths)
    vectors = AttentiveStatisticsPooling(1536)(frames, lengths)

Each is a module of ``(frames (B, T, input_size), lengths (B,) or None)`` that gives ``(frames
(B, T', output_size), lengths or None)``, zeros in the padding. It tells ``input_size``,
``output_size``, ``minimum_frames`` and, of any lengths, ``frame_lengths``. An utterance's frames do
not depend on its padding; nor do the statistics of the batch norms in training.
"""

from speechft.models.networks.ecapa import ECAPA
from speechft.models.networks.resnet import ResNet34
from speechft.models.networks.xvector import XVector

__all__ = ["ECAPA", "ResNet34", "XVector"]
