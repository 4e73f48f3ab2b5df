"""The maths of the papers: tensors in, scalar or map out; no state, no device, no configuration."""

from ciss.losses.cross_entropy import cross_entropy, unbiased_cross_entropy
from ciss.losses.distillation import output_distillation, unbiased_distillation

__all__ = ["cross_entropy", "output_distillation", "unbiased_cross_entropy", "unbiased_distillation"]
