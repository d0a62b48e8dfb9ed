import os

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from dae3d.objectives.contrastive import contrastive_loss
from dae3d.objectives.reconstruction import reconstruction_loss


def by_hand(features, labels, temperature):
    """Khosla et al., equation 2, sample by sample in float64."""
    z = [f / np.linalg.norm(f) for f in features.astype(np.float64)]
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        total = sum(np.exp(z[i] @ z[a] / temperature) for a in others)
        losses.append(-np.mean([np.log(np.exp(z[i] @ z[p] / temperature) / total) for p in positives]))
    return np.mean(losses) if losses else 0.0


def features_of(count, width=24, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.sampled_from([0.07, 0.5, 2.0]))
@settings(max_examples=50)
def test_agrees_with_the_definition_whatever_the_labels(labels, temperature):
    features = features_of(len(labels))
    loss = contrastive_loss(torch.from_numpy(features), torch.tensor(labels), temperature)
    assert loss.item() == pytest.approx(by_hand(features, labels, temperature), abs=1e-5)


@given(st.permutations(range(7)))
@settings(max_examples=20)
def test_order_of_the_batch_does_not_matter(order):
    features, labels = torch.from_numpy(features_of(7)), torch.tensor([0, 0, 1, 1, 1, 2, 0])
    expected = contrastive_loss(features, labels, 0.5)
    torch.testing.assert_close(contrastive_loss(features[list(order)], labels[list(order)], 0.5), expected)


@pytest.mark.parametrize("labels", [[0], [0, 1], [2, 1, 0]])
def test_without_positives_it_is_zero_and_so_is_its_gradient(labels):
    features = torch.from_numpy(features_of(len(labels))).requires_grad_()
    loss = contrastive_loss(features, torch.tensor(labels), 0.5)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_one_modality_attracts_nothing_in_particular():
    # All pairs are positives and all features alike: every softmax is uniform over the 3 others.
    loss = contrastive_loss(torch.ones(4, 8), torch.zeros(4, dtype=torch.int64), 0.5)
    assert loss.item() == pytest.approx(np.log(3), abs=1e-6)


def test_it_pulls_a_modality_together_and_pushes_modalities_apart():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    labels = torch.tensor([0, 0, 1, 1])
    apart = contrastive_loss(torch.stack([a, a, b, b]), labels, 0.5)
    mixed = contrastive_loss(torch.stack([a, b, a, b]), labels, 0.5)
    assert apart < mixed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_with_large_features(dtype):
    features = (torch.from_numpy(features_of(6)) * 1e4).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = contrastive_loss(features.to(dtype), torch.tensor([0, 0, 1, 1, 2, 2]), 0.07)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()


def test_what_all_samples_have_in_common_counts_for_nothing_where_features_are_standardised():
    features, labels = torch.from_numpy(features_of(6)), torch.tensor([0, 0, 1, 1, 2, 2])
    alone = contrastive_loss(features, labels, 0.5, standardise=True)
    shifted = contrastive_loss(3 * features + 100, labels, 0.5, standardise=True)
    torch.testing.assert_close(alone, shifted, rtol=1e-3, atol=1e-3)
    # By hand.
    values = features.double().numpy()
    values = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)
    expected = by_hand(values, labels.tolist(), 0.5)
    assert alone.item() == pytest.approx(expected, rel=1e-5)
    # All alike otherwise: five others, each as likely as the next.
    assert contrastive_loss(features + 1000, labels, 0.5).item() == pytest.approx(np.log(5), abs=1e-3)


def test_zero_features_are_finite():
    features = torch.zeros(4, 8, requires_grad=True)
    contrastive_loss(features, torch.tensor([0, 0, 1, 1]), 0.5).backward()
    assert torch.isfinite(features.grad).all()


LABELS = torch.tensor([0, 1, 1, 0, 2, 0])


def encode_and_lose(weight, inputs, labels):
    plain, standardised = (
        contrastive_loss(inputs @ weight, labels, 0.5, standardise=chosen) for chosen in (False, True)
    )
    return plain + 2 * standardised


def _one_rank(rank, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    weight = torch.nn.Parameter(torch.from_numpy(features_of(24, 16, seed=1)))
    part = slice(3 * rank, 3 * rank + 3)
    loss = encode_and_lose(weight, torch.from_numpy(features_of(6))[part], LABELS[part])
    loss.backward()
    torch.distributed.all_reduce(weight.grad)  # DDP averages over ranks
    torch.save((loss.detach(), weight.grad / 2), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_loss_and_gradient_of_one_process_with_both_batches(tmp_path):
    mp.spawn(_one_rank, args=(str(tmp_path),), nprocs=2)
    weight = torch.nn.Parameter(torch.from_numpy(features_of(24, 16, seed=1)))
    loss = encode_and_lose(weight, torch.from_numpy(features_of(6)), LABELS)
    loss.backward()
    for rank in range(2):
        rank_loss, rank_gradient = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(rank_loss, loss.detach())
        torch.testing.assert_close(rank_gradient, weight.grad, rtol=1e-5, atol=1e-7)


def test_reconstruction_loss_over_all_voxels_and_over_masked_ones():
    clean = torch.zeros(2, 1, 2, 2, 2)
    repaired = torch.arange(16.0).view_as(clean)
    assert reconstruction_loss(repaired, clean).tolist() == [3.5, 11.5]
    mask = torch.zeros_like(clean, dtype=torch.bool)
    mask[0, 0, 0, 0, 1] = mask[1, 0, 1, 1] = True
    assert reconstruction_loss(repaired, clean, mask).tolist() == [1.0, 14.5]
