"""MiB and PLOP as released, against a second computation in numpy that is written from their formulas."""

import numpy as np
import pytest
import torch

from ciss.methods import METHODS, Batch
from ciss.models import Output

OLD, CHANNELS, SIDE = 4, 6, 8
VOID = 255


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def given_labels() -> np.ndarray:
    """Background, new classes and void; the second image has no background."""
    labels = np.random.default_rng(5).choice([0, 0, 0, OLD, OLD + 1, VOID], size=(3, SIDE, SIDE))
    labels[1][labels[1] == 0] = OLD
    return labels


def output(logits: np.ndarray, seed: int) -> Output:
    """Square maps at the size of the labels, so that nothing is upsampled."""
    stages = [torch.from_numpy(numbers(3, width, SIDE, SIDE, seed=seed + n)) for n, width in enumerate((2, 3))]
    features = torch.from_numpy(numbers(3, 5, SIDE, SIDE, seed=seed + 5))
    tokens = torch.zeros(logits.shape[1], 5)
    activated = [stage.relu() for stage in stages]
    return Output(torch.from_numpy(logits), features, activated, tokens.expand(3, -1, -1), tokens, None, stages)


def batch() -> Batch:
    labels = torch.from_numpy(given_labels())
    return Batch(
        images=torch.zeros(3, 3, SIDE, SIDE),
        given=labels,
        labels=labels.clone(),
        ids=["a", "b", "c"],
        step=1,
        old_channels=OLD,
        class_steps=torch.tensor([0] * OLD + [1] * (CHANNELS - OLD)),
        new_classes=torch.arange(OLD, CHANNELS),
    )


STUDENT, TEACHER = numbers(3, CHANNELS, SIDE, SIDE, seed=1), 2 * numbers(3, OLD, SIDE, SIDE, seed=2)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_mib_released():
    method = METHODS["mib"](**METHODS["mib"].presets["released"])
    losses = method.losses(output(STUDENT, 10), output(TEACHER, 20), batch())
    p, target, labels = softmax(STUDENT), softmax(TEACHER), given_labels()
    # q_0 = sum_{c < K} p_c, and q_c = p_c for a new class c; the mean is over all pixels
    entropies = np.zeros(labels.shape)
    for c in range(CHANNELS):
        q = p[:, :OLD].sum(axis=1) if c < OLD else p[:, c]
        entropies[labels == c] = -np.log(q[labels == c])
    assert losses["cross_entropy"].item() == pytest.approx(entropies.sum() / labels.size, rel=1e-12)
    valid = METHODS["mib"]().losses(output(STUDENT, 10), output(TEACHER, 20), batch())
    assert valid["cross_entropy"].item() == pytest.approx(entropies.sum() / (labels != VOID).sum(), rel=1e-12)
    assert valid["distillation"].equal(losses["distillation"])
    # r_0 = p_0 + sum_{c >= K} p_c; the mean is over all pixels and the K channels
    r = np.concatenate([p[:, :1] + p[:, OLD:].sum(axis=1, keepdims=True), p[:, 1:OLD]], axis=1)
    assert losses["distillation"].item() == pytest.approx(-10 * (target * np.log(r)).mean(), rel=1e-12)


def released_thresholds(uncertainty: np.ndarray, called: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The released walk: it adds indices of bins, not their counts."""
    thresholds = []
    for c in range(OLD):
        values = uncertainty[background & (called == c)]
        histogram = np.bincount(np.minimum((values * 100).astype(int), 99), minlength=100)
        half, running, median = len(values) / 2, 0, 0.0
        for index in range(100):
            if running <= half <= running + histogram[index] or index == 99:
                median = (index + (half - running) / histogram[index]) / 100 if histogram[index] else 0.0
                break
            running += index
        thresholds.append(max(median, 0.001))
    return np.array(thresholds)


def pod(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Squares; in every cell of every scale the means of rows and of columns; norm for each image, mean over images."""

    def pooled(maps: np.ndarray) -> np.ndarray:
        pieces = []
        for scale in (1, 2, 4):
            side = SIDE // scale
            for i in range(scale):
                for j in range(scale):
                    cell = maps[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side] ** 2
                    pieces += [cell.mean(axis=3).reshape(len(maps), -1), cell.mean(axis=2).reshape(len(maps), -1)]
        return np.concatenate(pieces, axis=1)

    return np.linalg.norm(pooled(ours) - pooled(theirs), axis=1).mean()


@pytest.mark.parametrize("preset", ["", "released"])
def test_plop(preset):
    method = METHODS["plop"](**(METHODS["plop"].presets[preset] if preset else {}))
    student, teacher, drawn = output(STUDENT, 10), output(TEACHER, 20), batch()
    method.before_step([drawn], lambda _images: teacher, [])
    drawn.labels = method.labels(drawn, teacher)
    losses = method.losses(student, teacher, drawn)

    p, labels = softmax(TEACHER), given_labels()
    background, called = labels == 0, p.argmax(axis=1)
    if preset:
        # the mean over channels over log K, and over log C once more
        uncertainty = -(p * np.log(p + 1e-8)).mean(axis=1) / np.log(OLD) / np.log(CHANNELS)
        thresholds = released_thresholds(uncertainty, called, background)
        np.testing.assert_allclose(method.thresholds.numpy(), thresholds, rtol=1e-6)
    else:
        uncertainty = -(p * np.log(p)).sum(axis=1) / np.log(OLD)
        thresholds = method.thresholds.numpy().astype(float)
        for c in range(OLD):  # a median, to the width of a bin
            values = uncertainty[background & (called == c)]
            assert (values < thresholds[c] - 0.01).sum() <= len(values) / 2 <= (values < thresholds[c] + 0.01).sum()
    kept = background & (uncertainty < thresholds[called])
    expected = np.where(background, np.where(kept, called, VOID), labels)
    np.testing.assert_array_equal(drawn.labels.numpy(), expected)

    total = background.sum(axis=(1, 2))
    factor = kept.sum(axis=(1, 2)) / (total + 1e-6 if preset else np.maximum(total, 1))
    if not preset:
        factor[total == 0] = 1
    log_p, entropies = np.log(softmax(STUDENT)), np.zeros(labels.shape)
    for c in range(CHANNELS):
        entropies[expected == c] = -log_p[:, c][expected == c]
    mean = (factor[:, None, None] * entropies).mean()
    assert losses["cross_entropy"].item() == pytest.approx(mean, rel=1e-6)

    stages = "before_activation" if preset else "stages"
    maps = [(a.numpy(), b.numpy()) for a, b in zip(getattr(student, stages), getattr(teacher, stages), strict=True)]
    maps.append((student.features.numpy(), teacher.features.numpy()))
    terms = [0.01 * pod(ours, theirs) for ours, theirs in maps]
    folded = np.concatenate([STUDENT[:, :1] + STUDENT[:, OLD:].sum(axis=1, keepdims=True), STUDENT[:, 1:OLD]], axis=1)
    terms.append(0.0005 * pod(folded, TEACHER))
    root = (CHANNELS / (CHANNELS - OLD)) ** 0.5
    assert losses["pod"].item() == pytest.approx(root * np.mean(terms), rel=1e-10)
