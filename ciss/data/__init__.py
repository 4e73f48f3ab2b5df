"""Data sets, their validated index, and the loaders of a step."""

from ciss.data.index import Index, prepare
from ciss.data.loaders import Loader, evaluation_loader, picture, statistics_loader, training_loader
from ciss.data.normalisation import IMAGENET, input_statistics, normalise
from ciss.data.pictures import DataError
from ciss.data.sets import DATASETS, DataSet, data_set
from ciss.data.steps import ChoiceError, classes_of, domain_groups, step_count

__all__ = [
    "DATASETS",
    "IMAGENET",
    "ChoiceError",
    "DataError",
    "DataSet",
    "Index",
    "Loader",
    "classes_of",
    "data_set",
    "domain_groups",
    "evaluation_loader",
    "input_statistics",
    "normalise",
    "picture",
    "prepare",
    "statistics_loader",
    "step_count",
    "training_loader",
]
