"""Data sets and their validated index. Loaders and normalisation need torch: import them from their files."""

from ciss.data.index import Index, prepare
from ciss.data.pictures import DataError
from ciss.data.sets import DATASETS, DataSet, data_set
from ciss.data.steps import ChoiceError, classes_of, domain_groups, step_count
