"""The largest channel: that of `max`, also with equal values."""

import pytest
import torch

from ciss.labels.channels import largest_channel


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 7, 300])
def test_largest_channel_is_that_of_max(channels, overwrite, dtype):
    maps = torch.randint(5, (2, channels, 6, 4), generator=torch.Generator().manual_seed(0)).to(dtype) - 2
    copy = maps.clone()
    values, classes = largest_channel(maps, overwrite=overwrite)
    expected = copy.max(dim=1)
    assert values.equal(expected.values) and classes.equal(expected.indices) and classes.dtype == torch.int64
    assert overwrite or maps.equal(copy)


def test_the_first_of_equal_values():
    """By hand: the largest of (1, 3, 3) is in channel 1, of (-inf, -inf, -inf) in channel 0."""
    maps = torch.tensor([[1.0, 3.0, 3.0], [-torch.inf] * 3]).T[None, :, None]
    assert [part.tolist() for part in largest_channel(maps)] == [[[[3, -torch.inf]]], [[[1, 0]]]]


def test_not_a_number_has_a_class_that_exists():
    values, classes = largest_channel(torch.full((1, 3, 1, 1), torch.nan))
    assert values.isnan().all() and 0 <= classes.item() < 3
