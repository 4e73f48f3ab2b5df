"""Losses and weights of the papers: functions of tensors, without state, device or configuration."""

from ciss.losses.compensation import compensation_weights, gradient_magnitude, sum_by_step, weigh_by_step
from ciss.losses.cross_entropy import cross_entropy, negative_log_likelihood
from ciss.losses.distillation import label_guided_distillation, output_distillation
from ciss.losses.pod import local_pod, pod_distillation
from ciss.losses.relations import sharp_loss, soft_relation_loss
from ciss.losses.sigmoid import (
    absence_loss,
    decomposed_distillation,
    sigmoid_cross_entropy,
    sigmoid_distillation,
)
from ciss.losses.tokens import adaptive_feature_distillation, context_hinge, orthogonality
from ciss.losses.unbiased import unbiased_cross_entropy, unbiased_distillation

__all__ = [
    "absence_loss",
    "adaptive_feature_distillation",
    "compensation_weights",
    "context_hinge",
    "cross_entropy",
    "decomposed_distillation",
    "gradient_magnitude",
    "label_guided_distillation",
    "local_pod",
    "negative_log_likelihood",
    "orthogonality",
    "output_distillation",
    "pod_distillation",
    "sharp_loss",
    "sigmoid_cross_entropy",
    "sigmoid_distillation",
    "soft_relation_loss",
    "sum_by_step",
    "unbiased_cross_entropy",
    "unbiased_distillation",
    "weigh_by_step",
]
