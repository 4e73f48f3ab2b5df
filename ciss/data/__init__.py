"""Data sets, their validated index, and the loaders of a step."""

from ciss.data.index import Index, prepare
from ciss.data.loaders import Loader, evaluation_loader, picture, statistics_loader, training_loader
from ciss.data.normalisation import IMAGENET, input_statistics, normalise
from ciss.data.pictures import DataError
from ciss.data.sets import DATASETS, DataSet, data_set
from ciss.data.steps import ChoiceError, classes_of, domain_groups, step_count
