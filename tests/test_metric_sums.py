"""What rows of metrics are made from."""

import pytest
import torch

from dae3d.training.sums import MetricSums


def losses(*values):
    return dict(zip(("loss", "l1"), map(torch.tensor, values), strict=True))


def test_a_row_has_means_over_batches_and_over_the_samples_of_each_kind():
    sums = MetricSums(["loss", "l1"], ["ct", "t1", "t2"])
    sums.add(losses(3.0, 1.0), 2, torch.tensor([0.5, 1.5]), torch.tensor([0, 2]))
    sums.add(losses(5.0, 4.0), 3, torch.tensor([2.0, 4.0, 6.0]), torch.tensor([2, 2, 0]))
    means, by_kind, samples = sums.row(sums.values.tolist())
    assert means == {"loss": 4.0, "l1": 2.5}
    assert by_kind == {"ct": 3.25, "t2": 2.5}
    assert samples == 5


def test_values_of_processes_add_up():
    one, other = (MetricSums(["loss", "l1"], ["ct"]) for _ in range(2))
    one.add(losses(1.0, 2.0), 1, torch.tensor([2.0]), torch.tensor([0]))
    other.add(losses(3.0, 6.0), 1, torch.tensor([6.0]), torch.tensor([0]))
    assert one.row((one.values + other.values).tolist()) == ({"loss": 2.0, "l1": 4.0}, {"ct": 4.0}, 2)


def test_it_starts_over():
    sums = MetricSums(["loss", "l1"])
    sums.add(losses(1.0, 2.0), 4)
    sums.reset(torch.device("cpu"))
    sums.add(losses(7.0, 8.0), 2)
    assert sums.row(sums.values.tolist()) == ({"loss": 7.0, "l1": 8.0}, {}, 2)


def test_a_loss_that_is_missing_is_an_error():
    with pytest.raises(AssertionError):
        MetricSums(["loss", "l1"]).add({"loss": torch.tensor(1.0)}, 1)
