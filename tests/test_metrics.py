"""Confusion matrices and scores: tiny hand-computed ones, the published MBS values, and what must not change them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ciss.metrics import (
    CONVENTIONS,
    backward_transfer,
    class_iou,
    confusion_matrix,
    forgetting,
    mean_backward_transfer,
    mean_forgetting,
    mean_iou,
    scores,
    seen,
)

NAN = math.nan
LABELS = torch.tensor([[0, 0, 1, 1, 2], [2, 3, 4, 255, 255]])
GUESSES = torch.tensor([[0, 1, 1, 1, 0], [2, 0, 2, 1, 0]])
# Class 2 is never predicted, 3 is predicted and not there, 4 is neither; IoU: 6/13, 1/3, 0, 0, undefined.
MATRIX = torch.tensor([[6, 2, 0, 0, 0], [2, 2, 0, 0, 0], [3, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
# After two of three steps, groups of 2, 1, 1: class 4 is still to come and 6 of its pixels were given to others.
FULL = torch.tensor([[4, 1, 0, 1, 0], [0, 3, 1, 0, 0], [0, 0, 2, 0, 0], [2, 0, 0, 6, 0], [5, 0, 0, 1, 0]])


def close(value, expected):
    return np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=1e-12)


@pytest.mark.parametrize(
    ("future", "expected"),
    [("ignore", [[1, 1, 0], [0, 2, 0], [1, 0, 1]]), ("background", [[2, 1, 1], [0, 2, 0], [1, 0, 1]])],
)
@pytest.mark.parametrize("form", [lambda t: t, lambda t: t.numpy(), lambda t: t.byte(), lambda t: t.flip(0).flip(0).T])
def test_confusion_by_hand(future, expected, form):
    matrix = confusion_matrix(form(LABELS), form(GUESSES), 3, future=future)
    assert matrix.dtype == torch.int64 and matrix.tolist() == expected
    # any value may be the ignored one, also that of a class; 255 is then a future class
    labels = torch.where(LABELS == 255, 1, torch.where(LABELS == 1, 255, LABELS))
    swapped = confusion_matrix(form(labels), form(GUESSES), 3, ignore_index=1, future="ignore")
    assert swapped.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_confusion_of_bytes_and_many_classes():
    values = np.arange(255, dtype=np.uint8)
    assert confusion_matrix(values, values, 255).equal(torch.eye(255, dtype=torch.int64))
    assert confusion_matrix(values[:0], values[:0], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("bad", [3, -1, 255])
def test_impossible_predictions_are_refused(bad):
    guesses = GUESSES.clone()
    guesses[1, 3] = bad  # the label is ignored there, and so is the prediction
    assert confusion_matrix(LABELS, guesses, 3).equal(confusion_matrix(LABELS, GUESSES, 3))
    guesses[0, 0] = bad
    with pytest.raises(ValueError, match="0..2"):
        confusion_matrix(LABELS, guesses, 3)


def test_impossible_inputs_are_refused():
    for future in ("ignore", "background"):
        with pytest.raises(ValueError, match="negative"):
            confusion_matrix(LABELS - 1, GUESSES, 3, future=future)
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(LABELS, GUESSES.T, 3)
    with pytest.raises(ValueError, match="integers"):
        confusion_matrix(LABELS, GUESSES.float(), 3)
    with pytest.raises(ValueError, match="'drop'; there are ignore, background"):
        confusion_matrix(LABELS, GUESSES, 3, future="drop")
    with pytest.raises(ValueError, match="'drop'; there are ignore, background"):
        seen(MATRIX, 5, future="drop")
    with pytest.raises(ValueError, match="'some'; there are present, truth, nonzero, all"):
        mean_iou(MATRIX, over="some")
    with pytest.raises(ValueError, match="square"):
        class_iou(MATRIX[:4])


def test_the_host_never_waits():
    """Meta tensors hold no data: every read of a value on the way would raise."""
    matrix = confusion_matrix(LABELS.to("meta"), GUESSES.to("meta"), 3, future="background")
    assert matrix.shape == (3, 3) and matrix.is_meta
    assert class_iou(matrix).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_confusion_stays_on_its_device():
    for future in ("ignore", "background"):
        matrix = confusion_matrix(LABELS.cuda(), GUESSES.cuda(), 3, future=future)
        assert matrix.is_cuda and matrix.cpu().equal(confusion_matrix(LABELS, GUESSES, 3, future=future))


def test_iou_by_hand():
    iou = class_iou(MATRIX.numpy())
    assert iou.dtype == torch.float64
    close(iou, [6 / 13, 1 / 3, 0, 0, NAN])


@pytest.mark.parametrize(
    ("over", "mean", "without_background", "later"),
    [
        ("present", (6 / 13 + 1 / 3) / 4, 1 / 9, 0),
        ("truth", (6 / 13 + 1 / 3) / 3, 1 / 6, 0),
        ("nonzero", (6 / 13 + 1 / 3) / 2, 1 / 3, NAN),
        ("all", (6 / 13 + 1 / 3) / 5, 1 / 12, 0),
    ],
)
def test_mean_by_hand(over, mean, without_background, later):
    close(mean_iou(MATRIX, over=over), mean)
    close(mean_iou(MATRIX, over=over, background=False), without_background)
    close(mean_iou(MATRIX, over=over, classes=(c for c in (0, 1)), background=False), 1 / 3)
    close(mean_iou(MATRIX.numpy(), over=over, classes=[4, 2, 3, 2]), later)
    assert math.isnan(mean_iou(MATRIX, over=over, classes=[]))
    assert isinstance(mean_iou(MATRIX, over=over), float)


def test_mean_of_absent_and_impossible_classes():
    assert math.isnan(mean_iou(MATRIX, classes=[4])) and mean_iou(MATRIX, classes=[4], over="all") == 0
    close([mean_iou(MATRIX, classes=[1, 3]), mean_iou(MATRIX, classes=[1, 3], over="truth")], [1 / 6, 1 / 3])
    for foreign in (5, -1):
        with pytest.raises(ValueError, match=rf"\[{foreign}\] are outside 0..4"):
            mean_iou(MATRIX, classes=[1, foreign])


def test_seen_by_hand():
    assert seen(FULL, 4).tolist() == FULL[:4, :4].tolist()
    merged = [[9, 1, 0, 2], [0, 3, 1, 0], [0, 0, 2, 0], [2, 0, 0, 6]]
    before = FULL.clone()
    assert seen(FULL.numpy(), 4, future="background").tolist() == merged and FULL.equal(before)
    assert seen(FULL, 5, future="background").equal(FULL)
    with pytest.raises(ValueError, match=r"2 channels cannot predict positions \[2, 3\]"):
        seen(FULL, 2)
    with pytest.raises(ValueError, match=r"1 channels cannot predict positions \[1\]"):
        seen(torch.tensor([[2, 0], [0, 1]]), 1)  # impossible at a future class's pixels too, which nobody counts
    for classes in (0, 6):
        with pytest.raises(ValueError, match="cannot be taken"):
            seen(FULL, classes)


def test_scores_by_hand():
    # IoU 1/2, 3/5, 2/3, 2/3 of the classes so far
    close(scores(FULL, [2, 1, 1], 1)["all"], (1 / 2 + 3 / 5 + 2 / 3 + 2 / 3) / 4)
    close([scores(FULL, [2, 1, 1], 1)[key] for key in ("old", "new", "harmonic")], [19 / 30, 2 / 3, 76 / 117])
    # in the last step class 4 counts and has failed: IoU 4/13, 3/5, 2/3, 3/5, 0
    last = scores(FULL.numpy(), [2, 1, 1], 2)
    close([last["all"], last["old"], last["new"]], [(4 / 13 + 3 / 5 + 2 / 3 + 3 / 5) / 5, 19 / 30, 3 / 10])
    assert list(last) == ["all", "old", "new", "harmonic"]


def test_scores_at_the_edges():
    base = scores(FULL, [3, 1], 0)
    close([base["all"], base["old"]], [(1 / 2 + 3 / 5 + 2 / 3 + 2 / 3) / 4, (3 / 5 + 2 / 3 + 2 / 3) / 3])
    assert math.isnan(base["new"]) and math.isnan(base["harmonic"])
    assert repr(scores(FULL, [4], 3)) == repr(scores(FULL, [4], 0)), "domain steps add no class"
    lost = torch.zeros(3, 3, dtype=torch.int64)
    lost[:, 0] = 5
    assert scores(lost, [1, 1], 1) == {"all": 1 / 9, "old": 0, "new": 0, "harmonic": 0}
    # a base class that is only predicted is present, with IoU 0
    invented = scores(torch.tensor([[3, 1], [0, 0]]), [1], 0)
    assert (invented["all"], invented["old"]) == (3 / 8, 0)
    for sizes in ([2, 1], [2, 1, 2], []):
        with pytest.raises(ValueError, match="does not fit"):
            scores(FULL, sizes, 0)
    with pytest.raises(ValueError, match="negative"):
        scores(FULL, [4], -1)
    with pytest.raises(ValueError, match="cannot predict"):
        scores(FULL, [2, 1, 1], 0)
    # one stray pixel of a class that the truth lacks, all else right: it is a class of the mean, with IoU 0, but not
    # where the mean is over the classes in truth, or over those above 0
    stray = torch.tensor([[99, 0, 0, 1], [0, 50, 0, 0], [0, 0, 50, 0], [0, 0, 0, 0]])
    means = {name: scores(stray, [1, 2], 1, convention)["all"] for name, convention in CONVENTIONS.items()}
    close([means["ciss"], means["ssul"]], [(0.99 + 1 + 1 + 0) / 4] * 2)
    close([means["plop"], means["mib"], means["mbs"]], [(0.99 + 1 + 1) / 3, 1, 1])
    named = {name for name, convention in CONVENTIONS.items() if "only the prediction has" in convention.sentence()}
    assert named == {"ciss", "ssul"}
    for word in ("background", "future", "ignored", "present in truth or prediction", "full validation set"):
        assert word in CONVENTIONS["ciss"].sentence()


def test_forgetting_by_hand():
    steps = [0, 0, 1, 2]
    ious = np.array([[0.9, 0.8, NAN, NAN], [0.7, 0.9, 0.6, NAN], [0.8, 0.5, 0.7, 0.4]])
    close(forgetting(ious, steps), [0.1, 0.4, -0.1, NAN])
    close(mean_forgetting(torch.tensor(ious), torch.tensor(steps)), 0.15)
    # what a class had before it was learnt is none of its own, whatever it is
    ious[0, 2], ious[1, 3] = 0.99, 0.99
    close(forgetting(ious, steps), [0.1, 0.4, -0.1, NAN])
    ious[0, 0], ious[2, 1] = NAN, NAN
    close(forgetting(ious, np.array(steps)), [-0.1, NAN, -0.1, NAN])
    close(mean_forgetting(ious, steps), -0.1)
    # after the base step alone nothing can be forgotten
    close(forgetting(ious[:1], steps), [NAN] * 4)
    assert math.isnan(mean_forgetting(ious[:1], steps))
    for wrong in (steps[:3], [steps]):
        with pytest.raises(ValueError, match="shape"):
            forgetting(ious, wrong)


@st.composite
def pixels(draw, classes=6):
    """Labels with future classes and void, and predictions of `classes` channels, as (2,N)."""
    pixel = st.tuples(st.sampled_from([*range(classes + 2), 255]), st.integers(0, classes - 1))
    return torch.tensor(draw(st.lists(pixel, max_size=60)), dtype=torch.int64).reshape(-1, 2).T


@settings(max_examples=50, deadline=None)
@given(pixels(), st.randoms(use_true_random=False), st.sampled_from(["ignore", "background"]))
def test_what_must_not_change_the_matrix(pair, random, future):
    (labels, guesses), number = pair, pair.shape[1]
    whole = confusion_matrix(labels, guesses, 6, future=future)

    counted = torch.zeros_like(whole)
    for truth, guess in pair.T.tolist():
        if truth != 255 and (truth < 6 or future == "background"):
            counted[truth if truth < 6 else 0, guess] += 1
    assert whole.equal(counted)

    order = torch.tensor(random.sample(range(number), number), dtype=torch.int64)
    assert whole.equal(confusion_matrix(labels[order], guesses[order], 6, future=future)), "order of pixels"
    cut = random.randint(0, number)
    parts = [confusion_matrix(labels[part], guesses[part], 6, future=future) for part in (slice(cut), slice(cut, None))]
    assert whole.equal(parts[0] + parts[1]), "order of batches"
    assert whole.equal(seen(confusion_matrix(labels, guesses, 8), 6, future=future)), "reduced afterwards"


@settings(max_examples=50, deadline=None)
@given(pixels(), st.permutations(range(6)))
def test_names_of_classes_do_not_matter(pair, order):
    rename = torch.arange(256)
    rename[:6] = torch.tensor(order)
    here, there = (confusion_matrix(*which, 6) for which in (pair, rename[pair]))
    close(class_iou(there)[rename[:6]], class_iou(here))
    for over in ("present", "truth", "nonzero", "all"):
        close(mean_iou(there, over=over), mean_iou(here, over=over))
        close(mean_iou(there, over=over, classes=order[:3]), mean_iou(here, over=over, classes=range(3)))


# Computed by the published MBS implementation: three images of 16 x 16, "." is void, 6 to 8 are future classes, 3 is
# never predicted. Its mean is over classes with IoU above 0.
MBS_LABELS = """
5.8633156354585036.736.30.58.5340051308226575.0.0376703852520773848644.42460172240728210..850883
6848510578103375243103338081.64153126285.5685326556366776.2525556127363510.63.3.738725806702268.
7.8032.2541225.8263002335278.6261827830173803742785.8.037.10063.4351.02414.3136322.22133.4788.05
015331.53732005.426644181412144206882067123.4637304361.81.5...3713784..743780178845.317.48857204
52264655370335025381435008.404668882047868048387522120844246632.34262608.42251018520356608607571
1227144554607416622736.04168654052103457805616444544350.22314482.02363708518257325.5.55..30171.4
466..408608.00476576832.881717673.802426.13.2623..2851235247850310.246616287115166320532.2510362
07236251266454.576577..826748612822841273577232352386532318360842.5.000.35358230162704582.712652
"""
MBS_GUESSES = """
201115404101220211201544241412252024451441205140001510414504205410000114015115455252202400000504
002400451005510200214221010224040510412500245500012005144040102541104405001500454010444014440252
055014404004224101550020055411424052110550522102004000520502042502105005222211040200005100150402
000200400501252012204540515010050015141122445240054120002055141044414004551511121405110550004115
545000005414000055101122450150450240150014424204000210140551044202052454504240014510101005250211
120200040422454015121500204204041542522025100552240025411022052421100141552401025001010414512041
020115241545142000111251241002000112042454441141441102210020240205245040000424042000151420500111
245401000012500500110501124504502001002041514021404544012200551244220210501405042402251000142250
"""
MBS_MATRIX = [
    [23, 11, 16, 0, 12, 14],
    [22, 13, 12, 0, 12, 4],
    [35, 17, 14, 0, 19, 13],
    [20, 23, 18, 0, 18, 11],
    [23, 8, 12, 0, 8, 17],
    [30, 11, 14, 0, 12, 17],
]
MBS_IOU = [0.11165048, 0.09774436, 0.08235294, 0, 0.05673759, 0.11888112]


def test_published_values():
    digits = [[255 if c == "." else int(c) for c in "".join(text.split())] for text in (MBS_LABELS, MBS_GUESSES)]
    matrix = confusion_matrix(*torch.tensor(digits).view(2, 3, 16, 16), 6)
    assert matrix.tolist() == MBS_MATRIX
    np.testing.assert_allclose(class_iou(matrix), MBS_IOU, atol=1e-7)
    assert mean_iou(matrix, over="nonzero") == pytest.approx(0.09347329841082963, abs=1e-7)
    assert mean_iou(matrix) == pytest.approx(0.09347329841082963 * 5 / 6, abs=1e-7), "a failed class counts"


def test_conventions_say_what_they_count():
    sentences = {name: convention.sentence("full resolution") for name, convention in CONVENTIONS.items()}
    assert len(set(sentences.values())) == len(sentences)
    assert "The background counts in `all` alone." in sentences["ciss"] and "at full resolution" in sentences["ciss"]
    assert "counts in `all` and `old` alone." in sentences["plop"] and "scored as" in sentences["plop"]
    assert "counts nowhere." in sentences["mib"] and "in truth." in sentences["mib"]
    assert "with an IoU above 0" in sentences["mbs"]


def test_backward_transfer_by_hand():
    steps = [0, 0, 1, 2]
    ious = np.array([[0.9, 0.8, NAN, NAN], [0.7, 0.9, 0.6, NAN], [0.8, 0.5, 0.7, 0.4]])
    close(backward_transfer(ious, steps), [-0.1, -0.3, 0.1, NAN])
    close(mean_backward_transfer(torch.tensor(ious), torch.tensor(steps)), -0.1)
    ious[0, 1] = NAN  # not to be seen when it was learnt
    close(backward_transfer(ious, steps), [-0.1, NAN, 0.1, NAN])
