"""Pascal VOC 2012 with eight of its classes; the others are background."""

from ciss.data.sets.voc import DATASET as DATASET
