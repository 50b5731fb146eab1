"""Readers of evaluations as their publishers lay them out.

Each gives :class:`EvaluationData`: manifests by part, and what is asked about them. The name of
the result says which official split was read, because numbers of two splits cannot be compared.

>>> from speechft.evaluation.layouts import read_evaluation_data
>>> data = read_evaluation_data("embedded", label="language", groups="speaker")
>>> data.name, sorted(data.parts)
('embedded', ['all'])
"""

from speechft.evaluation.layouts.adresso import adresso
from speechft.evaluation.layouts.base import EvaluationData, TrialList
from speechft.evaluation.layouts.crema_d import crema_d
from speechft.evaluation.layouts.detect import LAYOUTS, read_evaluation_data
from speechft.evaluation.layouts.iemocap import iemocap
from speechft.evaluation.layouts.librispeech import librispeech
from speechft.evaluation.layouts.msp_podcast import msp_podcast
from speechft.evaluation.layouts.plain import manifest
from speechft.evaluation.layouts.quesst14 import quesst14
from speechft.evaluation.layouts.speech_commands import speech_commands
from speechft.evaluation.layouts.trials import read_trials
from speechft.evaluation.layouts.voxceleb1 import voxceleb1

__all__ = [
    "LAYOUTS",
    "EvaluationData",
    "TrialList",
    "adresso",
    "crema_d",
    "iemocap",
    "librispeech",
    "manifest",
    "msp_podcast",
    "quesst14",
    "read_evaluation_data",
    "read_trials",
    "speech_commands",
    "voxceleb1",
]
