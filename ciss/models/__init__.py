"""Networks: a timm encoder, a decoder, a classifier that grows with the classes."""

from ciss.models.classifier import Classifier, balance
from ciss.models.encoders import WeightsError, create_encoder
from ciss.models.network import Network, Output, set_norm_mode

__all__ = ["Classifier", "Network", "Output", "WeightsError", "balance", "create_encoder", "set_norm_mode"]
