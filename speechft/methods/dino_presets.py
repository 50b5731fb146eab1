"""Published settings of DINO for utterances, by name.

Each has ``config``, what differs from :class:`~speechft.methods.DinoConfig`, and ``training``, what
differs from :class:`~speechft.training.TrainingSettings`. Steps are the published epochs over the
1,092,009 utterances of VoxCeleb2's development part. Learning rates belong to the batch sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_UTTERANCES = 1_092_009


def _epochs(count: int, batch_size: int) -> int:
    return count * -(-_UTTERANCES // batch_size)


def _training(batch_size: int, **settings: Any) -> dict[str, Any]:
    return {
        "batch_size": batch_size, "evaluate_utterances": batch_size, "log_every": 100, **settings
    }  # fmt: skip


# hyperion's egs/voxceleb/ssl.v1, v1.2: what its ECAPA-TDNN and ResNet34 share.
_HYPERION: dict[str, Any] = {
    "size": 192, "regions": "disjoint", "segment_seconds": (6.0, 12.0), "student_views": "short",
    "augment_long": "teacher", "spec_augment": True, "hidden_size": 768, "hidden_layers": 3,
    "bottleneck": 192, "batch_norm": True, "freeze_last_steps": 1500,
}  # fmt: skip
_HYPERION_TRAINING = _training(
    256, steps=_epochs(120, 256), betas=(0.9, 0.99), weight_decay=0.1, learning_rate=0.005,
    warmup_steps=15_000, schedule="exponential", hold_steps=15_000, halve_every=60_000,
    final_learning_rate=1e-5, max_grad_norm=15.0,
)  # fmt: skip

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # Cho et al., Interspeech and JSTSP 2022: a light ResNet34, 4.38 % EER on VoxCeleb1-O by cosine.
    "cho": {
        "config": {},
        "training": _training(
            128,
            steps=_epochs(70, 128),
            optimizer="adam",
            amsgrad=True,
            betas=(0.9, 0.95),
            weight_decay=1e-4,
            learning_rate=0.0025,
            warmup_steps=_epochs(10, 128),
            schedule="cosine",
            final_learning_rate=1e-6,
            max_grad_norm=0.0,
        ),
    },
    "hyperion": {"config": _HYPERION, "training": _HYPERION_TRAINING},
    # v1.2.2 of the same.
    "hyperion-cosine": {
        "config": {**_HYPERION, "cosine_weight": 0.1, "ramp_steps": _epochs(20, 256)},
        "training": _HYPERION_TRAINING,
    },
    # Chen et al., "Pushing the limits of self-supervised speaker verification using regularized
    # distillation framework", ICASSP 2023: ECAPA-TDNN 1024, 3.16 %.
    "rdino": {
        "config": {
            "size": 512,
            "batch_norm": True,
            "freeze_last_steps": _epochs(1, 208),
            "teacher_temperature": 0.07,
            "temperature_warmup_steps": _epochs(30, 208),
            # The whole weighs 0.05 at first and 0.2 after ten epochs. A term of VICReg has half of
            # the sum of both views.
            "variance_weight": 0.2 * 10.0 * 2,
            "covariance_weight": 0.2 * 1.0,
            "regulariser_start": 0.25,
            "ramp_steps": _epochs(10, 208),
            "expanded_size": 8192,
        },
        "training": _training(
            208,
            steps=_epochs(100, 208),
            optimizer="sgd",
            weight_decay=5e-5,
            learning_rate=0.4,
            warmup_steps=_epochs(20, 208),
            schedule="cosine",
            final_learning_rate=1e-5,
            max_grad_norm=3.0,
        ),
    },
    # Chen et al., "Self-distillation prototypes network", ICASSP 2025: 1.80 %. Its soft assignment
    # to prototypes is a softmax of cosines, sharpened to a temperature of 0.1 x 0.25.
    "sdpn": {
        "config": {
            "size": 512,
            "long": 1,
            "codes": 1024,
            "hidden_size": 2048,
            "batch_norm": True,
            "freeze_last_steps": 0,
            "student_temperature": 0.1,
            "teacher_temperature": 0.025,
            "teacher_temperature_start": 0.025,
            "centering": "sinkhorn",
            "student_views": "short",
            "koleo_weight": 0.1,
            "mean_entropy_weight": 1.0,
        },
        "training": _training(
            384,
            steps=_epochs(150, 384),
            optimizer="sgd",
            weight_decay=5e-5,
            learning_rate=0.4,
            warmup_steps=_epochs(20, 384),
            schedule="cosine",
            final_learning_rate=1e-5,
            max_grad_norm=3.0,
        ),
    },
    # wespeaker's examples/voxceleb/v3/dino: ECAPA-TDNN 1024, 2.63 %.
    "wespeaker": {
        "config": {
            "size": 192,
            "long_seconds": 3.0,
            "batch_norm": True,
            "freeze_last_steps": _epochs(1, 128),
            "teacher_temperature": 0.07,
            "temperature_warmup_steps": _epochs(30, 128),
        },
        "training": _training(
            128,
            steps=_epochs(150, 128),
            optimizer="sgd",
            weight_decay=5e-5,
            learning_rate=0.2,
            warmup_steps=_epochs(20, 128),
            schedule="cosine",
            final_learning_rate=5e-5,
            max_grad_norm=3.0,
        ),
    },
}
