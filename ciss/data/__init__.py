"""Data sets, their validated index, and the loaders of a step."""

from ciss.data.index import Index, prepare
from ciss.data.loaders import Loader, evaluation_loader, normalise, picture, training_loader
from ciss.data.pictures import DataError
from ciss.data.sets import DATASETS, DataSet

__all__ = [
    "DATASETS",
    "DataError",
    "DataSet",
    "Index",
    "Loader",
    "evaluation_loader",
    "normalise",
    "picture",
    "prepare",
    "training_loader",
]
