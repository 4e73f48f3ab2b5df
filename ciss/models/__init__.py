"""Networks: a timm encoder and a decoder whose classifier grows with the classes."""

from ciss.models.classifier import Classifier
from ciss.models.encoders import WeightsError, create_encoder
from ciss.models.extras import Extra
from ciss.models.network import Network, Output, create_network, needs_two_images, set_norm_mode
from ciss.models.reference import load_reference_checkpoint

__all__ = [
    "Classifier",
    "Extra",
    "Network",
    "Output",
    "WeightsError",
    "create_encoder",
    "create_network",
    "load_reference_checkpoint",
    "needs_two_images",
    "set_norm_mode",
]
