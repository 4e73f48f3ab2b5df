"""Published results: the file's arithmetic, values read off the papers, bad files, and the table beside our own."""

import textwrap
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest

from ciss.analysis.compare import tables as compare_tables
from ciss.analysis.compare.published import (
    COLUMNS,
    OURS,
    ComparedBenchmark,
    find,
    load,
    problem,
    published_table,
    recompute,
)
from ciss.documents import ConfigError
from ciss.methods import METHODS

RESULTS = load()
VOC = ComparedBenchmark("voc", "15-1", "overlapped", "resnet101.a1_in1k", "deeplabv3", "512-pixel centre crops")
TABLE = """
    tables:
      - dataset: voc
        setting: overlapped
        convention: plop
        source: a paper
        results:
          - { method: plop, protocol: 15-1, old: 65.12, new: 21.11, all: 54.64 }
"""


def one(dataset, protocol, setting, method, convention, **rest):
    """The single result that fits; further fields tell apart what several papers print."""
    results = [
        result
        for result in find(RESULTS, dataset, protocol, setting)
        if (result.method, result.convention) == (method, convention)
        and all(getattr(result, name) == value for name, value in rest.items())
    ]
    assert len(results) == 1
    return results[0]


def read(tmp_path, text):
    path = tmp_path / "printed.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return load(path)


def numbers(*values):
    return [None if value is None else Decimal(value) for value in values]


def test_every_result_is_a_number_with_a_source():
    assert len(RESULTS) == 354
    assert Counter(result.dataset for result in RESULTS) == {"voc": 228, "ade20k": 102, "cityscapes": 24}
    for result in RESULTS:
        assert result.all is not None or None not in (result.old, result.new), result
        assert (result.old is None) == (result.new is None), result


def test_no_result_is_there_twice():
    fields = ("dataset", "protocol", "setting", "method", "convention", "backbone", "source", "reported_by", "note")
    count = Counter(tuple(getattr(result, name) for name in fields) for result in RESULTS)
    assert [entry for entry, times in count.items() if times > 1] == []


def test_only_flagged_results_do_not_add_up():
    wrong = [result for result in RESULTS if problem(result)]
    assert wrong == [result for result in RESULTS if result.flag]
    assert [(r.dataset, r.protocol, r.setting, r.method) for r in wrong] == [
        ("voc", "15-5", "overlapped", "plop"),
        ("voc", "10-1", "overlapped", "rcil"),
        ("voc", "2-2", "overlapped", "mbs"),
        *(("voc", protocol, "overlapped", "select") for protocol in ("19-1", "15-5", "5-3")),
        *(("voc", protocol, "disjoint", "select") for protocol in ("19-1", "15-1")),
        ("voc", "15-1", "disjoint", "plop"),
        ("ade20k", "50-50", "overlapped", "ssul"),
        *(("ade20k", protocol, "overlapped", "select") for protocol in ("100-50", "100-10", "100-5")),
    ]
    assert sum(recompute(result) is not None for result in RESULTS) == 128


def test_a_flag_says_what_the_numbers_make():
    for result in RESULTS:
        if result.flag:
            counted, without = (recompute(replace(result, convention=name)) for name in ("plop", "mib"))
            assert f"{counted:.2f} with the background" in result.flag, result.flag
            assert f"{without:.2f} without" in result.flag, result.flag


@pytest.mark.parametrize(
    ("key", "old", "new", "every", "digits"),
    [
        # (16 * 65.12 + 5 * 21.11) / 21 = 1147.47 / 21
        (("voc", "15-1", "overlapped", "plop", "plop"), "65.12", "21.11", "54.64", 54.641),
        # (15 * 75.5 + 5 * 49.4) / 20 = 1379.5 / 20
        (("voc", "15-5", "overlapped", "mib", "mib"), "75.5", "49.4", "69.0", 68.975),
        # (15 * 82.7 + 5 * 74.0) / 20 = 1610.5 / 20
        (("voc", "15-5", "overlapped", "mbs", "mbs"), "82.7", "74.0", "80.5", 80.525),
        # (16 * 83.9 + 5 * 72.6) / 21 = 1705.4 / 21
        (("voc", "15-5", "overlapped", "mbs", "plop"), "83.9", "72.6", "81.2", 81.210),
        # (16 * 77.31 + 5 * 36.59) / 21 = 1419.91 / 21
        (("voc", "15-1", "overlapped", "ssul", "ssul"), "77.31", "36.59", "67.61", 67.615),
        # (11 * 50.6 + 10 * 17.3) / 21 = 729.6 / 21
        (("voc", "10-1", "overlapped", "gsc", "plop"), "50.6", "17.3", "34.7", 34.743),
        # (15 * 46.2 + 5 * 12.9) / 20 = 757.5 / 20
        (("voc", "15-1", "disjoint", "mib", "mib"), "46.2", "12.9", "37.9", 37.875),
        # (101 * 41.87 + 50 * 14.89) / 151 = 4973.37 / 151
        (("ade20k", "100-50", "overlapped", "plop", "plop"), "41.87", "14.89", "32.94", 32.936),
        # (100 * 37.9 + 50 * 27.9) / 150 = 5185 / 150
        (("ade20k", "100-50", "partitioned", "mib", "mib"), "37.9", "27.9", "34.6", 34.567),
        # (100 * 47.7 + 50 * 31.5) / 150 = 6345 / 150
        (("ade20k", "100-10", "overlapped", "mbs", "mbs"), "47.7", "31.5", "42.3", 42.300),
    ],
)
def test_values_of_the_papers(key, old, new, every, digits):
    result = one(*key)
    assert [result.old, result.new, result.all] == numbers(old, new, every)
    assert str(result.all) == every  # its digits, not its value alone
    assert recompute(result) == pytest.approx(digits, abs=5e-4)


def test_values_without_old_and_new():
    assert one("voc", "5-3", "overlapped", "star-m", "plop").all == Decimal("65.65")
    assert one("cityscapes", "1-1", "domain", "rcil", "unknown").all == Decimal("48.9")
    assert one("cityscapes", "1-1", "domain", "plop", "unknown", reported_by="a user").all == Decimal("34.66")
    dkd = one("voc", "15-1", "disjoint", "dkd", "plop")
    assert (dkd.all, dkd.spread, dkd.resolution) == (Decimal("67.54"), Decimal(".82"), "512-pixel centre crops")
    assert one("voc", "15-5", "sequential", "cfsseg", "plop").all == Decimal("70.0")


def test_a_wrong_convention_shows():
    """Where the two means are further apart than rounding: the rows that tell a convention."""
    other = {"mib": "plop", "mbs": "plop", "plop": "mib", "ssul": "mib"}
    told = [r for r in RESULTS if recompute(r) is not None and problem(replace(r, convention=other[r.convention]))]
    keys = {(r.protocol, r.setting, r.method, r.convention) for r in told if r.dataset == "voc"}
    assert {
        ("15-1", "overlapped", "plop", "plop"),
        ("15-5", "overlapped", "mib", "mib"),
        ("15-5", "overlapped", "mbs", "mbs"),
        ("15-1", "overlapped", "mbs", "mbs"),
        ("15-5", "overlapped", "mbs", "plop"),
        ("15-1", "overlapped", "gsc", "plop"),
    } <= keys
    wrong = replace(one("voc", "15-1", "overlapped", "plop", "plop"), convention="mib")
    message = problem(wrong)
    assert "voc 15-1 overlapped, plop" in message and "54.64" in message and "54.117" in message and "mib" in message
    assert "rounding explains only 0.010" in message


def test_a_slip_of_one_digit_shows():
    """Every row that can be checked notices `all` off by 3 units of its coarsest digit."""
    for result in RESULTS:
        if recompute(result) is not None and not result.flag:
            unit = max(Decimal(1).scaleb(value.as_tuple().exponent) for value in (result.old, result.new, result.all))
            for slip in (-3 * unit, 3 * unit):
                assert problem(replace(result, all=result.all + slip))


@pytest.mark.parametrize(
    ("old", "new", "every", "fits"),
    [
        # 15-5 under mib weighs 3 to 1. One digit each: half a unit of `all` and of the mean, 0.05 + 0.05
        ("50.0", "30.0", "45.0", True),
        ("50.0", "30.0", "45.1", True),  # 0.1: just within
        ("50.0", "30.0", "45.2", False),
        # `all` with two digits: 0.005 + 0.05
        ("50.0", "30.0", "45.05", True),
        ("50.0", "30.0", "45.06", False),
        # two digits in all: 0.005 + 0.005
        ("50.00", "30.00", "45.01", True),
        ("50.00", "30.00", "45.02", False),
        # old coarser than new: 0.005 + (15 * 0.05 + 5 * 0.005) / 20 = 0.04375
        ("50.0", "30.00", "45.04", True),
        ("50.0", "30.00", "45.05", False),
        # new coarser than old: 0.005 + (15 * 0.005 + 5 * 0.05) / 20 = 0.02125
        ("50.00", "30.0", "45.02", True),
        ("50.00", "30.0", "45.03", False),
        # whole numbers: 0.5 + 0.5
        ("50", "30", "46", True),
        ("50", "30", "47", False),
    ],
)
def test_rounding_by_hand(old, new, every, fits):
    row = one("voc", "15-5", "overlapped", "mib", "mib")
    old, new, every = numbers(old, new, every)
    assert (problem(replace(row, old=old, new=new, all=every)) is None) == fits


def test_what_cannot_be_recomputed():
    row = one("voc", "15-1", "overlapped", "plop", "plop")
    changes = [{"old": None}, {"new": None}, {"all": None}, {"convention": "unknown"}, {"convention": "ciss"}]
    changes += [{"protocol": "joint"}, {"protocol": "custom"}, {"protocol": "unknown"}, {"setting": "domain"}]
    for change in changes:
        changed = replace(row, **change)
        assert recompute(changed) is None and problem(changed) is None, change


def test_digits_are_kept(tmp_path):
    (row,) = read(tmp_path, TABLE.replace("54.64", "54.60").replace("65.12", ".2").replace("21.11", "20"))
    assert [str(value) for value in (row.old, row.new, row.all)] == ["0.2", "20", "54.60"]


def test_a_result_may_say_otherwise_than_its_table(tmp_path):
    more = (
        "          - { method: mib, protocol: 15-1, setting: disjoint, convention: unknown, all: 30, source: a talk }\n"
    )
    first, second = read(tmp_path, TABLE + more)
    assert (first.setting, first.convention, first.source) == ("overlapped", "plop", "a paper")
    assert (second.setting, second.convention, second.source) == ("disjoint", "unknown", "a talk")
    assert second.old is second.new is second.backbone is second.resolution is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("all: 54.64", "al: 54.64"), ["tables.0.results.0.al: unknown key", "Did you mean 'all'?"]),
        (("source: a paper", "sourc: a paper"), ["tables.0.results.0.sourc: unknown key", "'source'"]),
        (("all: 54.64", "all: high"), ["tables.0.results.0.all: found 'high'", "decimal"]),
        (("all: 54.64", "all: true"), ["tables.0.results.0.all: found True", "should"]),
        (("all: 54.64", "all: [1]"), ["tables.0.results.0.all: found ['1']", "should"]),
        (("all: 54.64", "all: .nan"), ["tables.0.results.0.all: found '.nan'", "decimal"]),
        (("all: 54.64", "all: 5e1"), ["tables.0.results.0.all: found", "as printed"]),
        (("all: 54.64", "all: 154.64"), ["tables.0.results.0.all: found '154.64'", "less than or equal to 100"]),
        (("convention: plop", "convention: plob"), ["tables.0.results.0.convention: found 'plob'", "'plop'", "'mbs'"]),
        (("        convention: plop\n", ""), ["tables.0.results.0.convention: this key is missing"]),
        (("dataset: voc", "dataset: voc8"), ["tables.0.results.0.dataset: found 'voc8'", "'ade20k'"]),
        (("setting: overlapped", "setting: overlap"), ["tables.0.results.0.setting: found 'overlap'", "'overlapped'"]),
        (("        setting: overlapped\n", ""), ["tables.0.results.0.setting: 15-1 belongs to a setting"]),
        (("protocol: 15-1", "protocol: 15-3"), ["tables.0.results.0.protocol: voc 15-3", "steps of 3"]),
        (("protocol: 15-1", "protocol: all-1"), ["tables.0.results.0.protocol: unknown protocol 'all-1'"]),
        (("overlapped", "domain\n        protocol: x"), ["tables.0.results.0.protocol", "cities"]),
        (("method: plop", "method: PLOP"), ["tables.0.results.0.method: found 'PLOP'", "pattern"]),
        (("all: 54.64", "all: 54.64, upto: 54"), ["tables.0.results.0.upto: 54 is not above `all`"]),
        (("all: 54.64", "all: 54.64, resolution: big"), ["tables.0.results.0.resolution: found 'big'"]),
        (("        results:", "        rows:"), ["tables.0.results: this key is missing"]),
        (("    tables:", "    table:"), ["table: unknown key", "'tables'"]),
        ((TABLE, "[]"), ["list of `tables`"]),
        ((TABLE, ""), ["list of `tables`"]),
        (("results:", "results: {"), ["line", "not valid YAML"]),
    ],
)
def test_bad_files_are_named(tmp_path, change, words):
    assert change[0] in TABLE
    text = TABLE.replace(*change)
    if change[1].startswith("domain"):
        text = text.replace("protocol: 15-1, ", "")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith("printed.yaml: ") or "printed.yaml: line" in message
    for word in words:
        assert word in message, message
    assert len(message.splitlines()) <= 2  # a misspelt key that is needed is also missing


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing.yaml: there is no such file.*git checkout"):
        load(tmp_path / "nothing.yaml")


def row_of(table, method, convention, **rest):
    chosen = table[(table["method"] == method) & (table["convention"] == convention)]
    for name, value in rest.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_find():
    everything = find(RESULTS, "voc", "15-1", "overlapped")
    assert {(r.dataset, r.protocol) for r in everything} == {("voc", "15-1"), ("voc", "joint")}
    assert find(RESULTS, "voc", "15-5s", "overlapped") == everything
    assert {r.protocol for r in find(RESULTS, "cityscapes", "11-5", "domain")} == {"11-5"}
    assert {r.setting for r in find(RESULTS, "voc", "15-1", "disjoint")} == {"disjoint", None}
    assert find(RESULTS, "voc8", "4-1", "overlapped") == find(RESULTS, "shapes", "4-2", "overlapped") == []


def test_beside_by_hand():
    scores = {
        "mib": {
            "mib": {"all": 0.3, "old": 0.4, "new": 0.1},
            "plop": {"all": 0.31, "old": 0.41, "new": 0.1},
            "ciss": {"all": 0.9, "old": 0.9, "new": 0.9},
        },
        "plop": {"plop": {"all": 0.5464, "old": 0.6512, "new": None}},
        "plop-released": {"plop": {"all": 0.1, "old": 0.1, "new": 0.1}},
    }
    table = published_table(RESULTS, VOC, scores)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == len(find(RESULTS, "voc", "15-1", "overlapped"))

    paper = row_of(table, "mib", "mib")
    assert list(paper[["published_old", "published_new", "published_all"]]) == [35.1, 13.5, 29.7]
    np.testing.assert_allclose(list(paper[["ours_old", "ours_new", "ours_all"]]), [40, 10, 30])
    assert paper["differs"] == "" and "voc-tab.png" in paper["source"]

    again = row_of(table, "mib", "plop")
    np.testing.assert_allclose(list(again[["ours_old", "ours_new", "ours_all"]]), [41, 10, 31])
    assert again["differs"] == "run again by PLOP"

    plop = row_of(table, "plop", "plop")
    np.testing.assert_allclose(plop["ours_all"], 54.64)
    assert np.isnan(plop["ours_new"]) and plop["differs"] == ""

    # not run; unknown convention; another resolution; another network
    dkd = row_of(table, "dkd", "plop")
    assert np.isnan(dkd["ours_all"]) and dkd["spread"] == 0.49
    assert dkd["differs"] == "not run here"
    vit = row_of(table, "mib", "unknown", backbone="ViT")
    assert np.isnan(vit["ours_all"]) and vit["published_all"] == 60.9
    assert vit["differs"] == (
        "convention unknown; resolution unknown; ViT, ours resnet101.a1_in1k; sources print up to 61.7"
    )
    gsc = row_of(table, "gsc", "plop")
    assert "reported by CFSSeg" in gsc["source"]
    assert not table["published_all"].isna().any() and table["method"].eq("plop-released").sum() == 0


def test_a_known_convention_at_another_resolution_gives_no_number():
    scores = {
        name: {c: {"all": 0.5, "old": 0.5, "new": 0.5} for c in ("mib", "plop", "ssul", "mbs")}
        for name in ("mib", "dkd", "ssul", "gsc", "sats")
    }
    whole = replace(VOC, resolution="full resolution")
    results = [replace(r, resolution="full resolution") if r.method == "dkd" else r for r in RESULTS]
    crops, full = published_table(results, VOC, scores), published_table(results, whole, scores)
    assert row_of(crops, "mib", "mib")["ours_all"] == row_of(full, "dkd", "plop")["ours_all"] == 50
    assert np.isnan(row_of(full, "mib", "mib")["ours_all"]) and np.isnan(row_of(crops, "dkd", "plop")["ours_all"])
    assert row_of(full, "mib", "mib")["differs"] == "512-pixel centre crops, ours full resolution"
    # crops of nearly one size are one kind, and `differs` has the size
    ssul = row_of(crops, "ssul", "ssul")
    assert ssul["ours_all"] == 50 and ssul["differs"] == "513-pixel centre crops, ours 512-pixel centre crops"
    windows = published_table(results, replace(VOC, resolution="full resolution in windows of 512 pixels"), scores)
    assert row_of(windows, "dkd", "plop")["ours_all"] == 50
    # where either is not known there is no number
    for table in (crops, full):
        assert np.isnan(row_of(table, "gsc", "plop")["ours_all"])
        assert np.isnan(row_of(table, "sats", "unknown")["ours_all"])
        assert row_of(table, "gsc", "plop")["differs"] == "resolution unknown"


def test_adapted_methods_and_other_differences():
    scores = {"mbs (adapted)": {"mbs": {"all": 0.6, "old": 0.7, "new": 0.2}}}
    ours = replace(VOC, images=1464, notes=("another class order",))
    table = published_table(RESULTS, ours, scores)
    mbs = row_of(table, "mbs", "mbs")
    np.testing.assert_allclose(list(mbs[["ours_old", "ours_new", "ours_all"]]), [70, 20, 60])
    assert mbs["differs"] == (
        "ours is adapted to deeplabv3; ViT-B/16, ours resnet101.a1_in1k; mask_transformer, ours deeplabv3; "
        "ours was trained on 1464 images only; another class order"
    )
    again = row_of(table, "mbs", "plop")
    assert np.isnan(again["ours_all"]) and "ours was not scored in the convention plop" in again["differs"]

    ours = replace(VOC, encoder="vit_base_patch16_384", decoder="mask_transformer")
    both = {"mbs": {"mbs": {"all": 0.8, "old": 0.8, "new": 0.8}}, **scores}
    mbs = row_of(published_table(RESULTS, ours, both), "mbs", "mbs")
    assert mbs["ours_all"] == 80 and mbs["differs"] == ""


def test_methods_that_papers_call_by_another_name():
    assert set(OURS.values()) <= {*METHODS, "mib-ewf"} and not set(OURS) & set(METHODS)
    assert set(OURS) <= {result.method for result in RESULTS}
    scores = {"ridge": {"plop": {"all": 0.5, "old": 0.6, "new": 0.2}}}
    (row,) = [replace(result, method="cfsseg", convention="plop") for result in RESULTS if result.method == "mbs"][:1]
    (differs,) = published_table([row], replace(VOC, protocol=row.protocol), scores)["differs"]
    assert "not run here" not in differs


@pytest.mark.parametrize(
    ("backbone", "encoder", "same"),
    [
        ("ResNet-101", "resnet101", True),
        ("ResNet-101", "resnet101.tv2_in1k", True),
        ("ResNet-101", "resnet101d", False),
        ("ResNet-101", "resnet50", False),
        ("ViT-B/16", "vit_base_patch16_384.augreg_in21k_ft_in1k", True),
        ("ViT-B/16", "vit_base_patch16_clip_224", False),
        ("Swin-B", "swin_base_patch4_window12_384", True),
        ("ViT or Swin", "vit_base_patch16_384", False),
    ],
)
def test_networks_by_name(backbone, encoder, same):
    row = replace(one("voc", "15-1", "overlapped", "plop", "plop"), backbone=backbone, decoder=None)
    (differs,) = published_table([row], replace(VOC, encoder=encoder), {"plop": {"plop": {}}})["differs"]
    assert differs == ("" if same else f"{backbone}, ours {encoder}")


def test_flags_are_said_beside():
    table = published_table(RESULTS, replace(VOC, protocol="15-5"), {})
    assert "does not add up: old and new make 70.01" in row_of(table, "plop", "plop")["differs"]


def test_the_domain_setting_says_that_its_test_images_leak():
    ours = replace(VOC, dataset="cityscapes", protocol="11-5", setting="domain")
    table = published_table(RESULTS, ours, {"mib": {"plop": {"all": 0.6, "old": 0.6, "new": None}}})
    assert len(table) == 6 and table["ours_all"].isna().all()
    assert table["differs"].str.contains("test images were trained on").all()


def test_what_no_paper_trained_stands_beside_no_result():
    """Joint training belongs to every protocol, but not to other classes or a part of the images."""
    settings = {
        **{"dataset": "voc", "protocol": "15-1", "setting": "overlapped", "order": None, "holdout": 0},
        "model": {"encoder": "resnet101", "decoder": "deeplabv3"},
        "train": {"crop": 512, "batch": 24, "base": {"epochs": 30}, "increment": {"epochs": 10}},
        "evaluation": {"size": "crop", "scales": [1.0], "flip": False},
    }
    sizes = {}
    for name, changes in {"plain": {}, "groups": {"groups": [[1, 2], [5]]}, "limit": {"limit": 50}}.items():
        made = {"parameters": {"benchmark": {**settings, "groups": None, "limit": 0, **changes}}}
        sizes[name] = len(published_table(RESULTS, compare_tables.compared_benchmark({"e": [{"identity": made}]}), {}))
    assert sizes.pop("plain") > 10 and sizes == {"groups": 0, "limit": 0}
    settings |= {"groups": None, "limit": 0, "order": [2, 1]}
    ours = compare_tables.compared_benchmark({"e": [{"identity": {"parameters": {"benchmark": settings}}}]})
    assert published_table(RESULTS, ours, {})["differs"].str.contains("our order of classes is another").all()


@pytest.mark.parametrize(("dataset", "protocol"), [("voc8", "4-1"), ("shapes", "4-2"), ("camvid", "8-1")])
def test_nothing_is_published_of_our_own_benchmarks(dataset, protocol):
    table = published_table(RESULTS, replace(VOC, dataset=dataset, protocol=protocol), {"mib": {"mib": {"all": 0.5}}})
    assert table.empty and tuple(table.columns) == COLUMNS
    assert {str(table[name].dtype) for name in table if name.startswith(("published", "ours"))} == {"float64"}
