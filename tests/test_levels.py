"""Rooflines of any pair of memory levels, disk included; values by hand from the profiles' numbers."""

import pytest

from hrm.errors import RooflineError, UnknownNameError
from hrm.roofline.levels import level_pair
from hrm.roofline.roofs import HierarchicalRoofline, LevelRoof
from hrm.search.search import make_rates, search_policy
from hrm.search.sensitivity import resources_of, sensitivity
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.workload import make_workload


def test_gpu_and_cpu_memory_of_the_t4() -> None:
    """P1 = 1.766 TFLOP/s / 15.754 GB/s = 112.1; P2 at the ridge = 65 TFLOP/s / 15.754 GB/s = 4126."""
    pair = level_pair(load_profile("t4"), "gpu", "cpu", "fp16", "fp32")
    assert pair.turning_point_p1 == pytest.approx(112.1, rel=1e-3)
    assert pair.turning_point_p2(1e9) == pytest.approx(4126, rel=1e-3)


def test_measured_links_move_the_turning_points() -> None:
    """13.84 GB/s measured on the T4 instead of 15.754: P1 = 127.6."""
    pair = level_pair(load_profile("t4"), "gpu", "cpu", "fp16", "fp32", calibrated=True)
    assert pair.turning_point_p1 == pytest.approx(1.766e12 / 13.84e9, rel=1e-6)


def test_disk_feeds_the_gpu_at_the_slower_link() -> None:
    profile = load_profile("rtx4090")
    disk, htod = profile.link_bandwidth("disk_read"), profile.link_bandwidth("htod")
    pair = level_pair(profile, "gpu", "disk", "fp16")
    assert pair.link_bytes_per_s == min(disk, htod) == disk
    assert pair.turning_point_p1 == 0.0, "a disk computes nothing, so streaming is always better"
    assert float(pair.attainable(1e6, 2.0)) == 2.0 * disk
    assert level_pair(profile, "cpu", "disk", "fp32").near.name == "cpu"


def test_peer_gpus() -> None:
    profile = load_profile("h100-80gb-x8")
    pair = level_pair(profile, "gpu", "peer_gpu", "bf16")
    assert pair.link_bytes_per_s == profile.link_bandwidth("gpu_to_gpu")


def test_unknown_pairs() -> None:
    profile = load_profile("t4")
    with pytest.raises(UnknownNameError, match="tape"):
        level_pair(profile, "gpu", "tape", "fp16")
    with pytest.raises(UnknownNameError, match="tpu"):
        level_pair(profile, "tpu", "cpu", "fp16")
    with pytest.raises(RooflineError, match="no link joins"):
        level_pair(profile, "cpu", "peer_gpu", "fp32")


def test_far_memory_slower_than_the_link_has_no_p1() -> None:
    pair = HierarchicalRoofline(LevelRoof("gpu", 10.0, 5.0), LevelRoof("cpu", 5.0, 1.0), 2.0)
    assert pair.turning_point_p1 == 0.0


def test_more_of_a_resource_never_hurts_and_the_bottleneck_gains_most() -> None:
    rates = make_rates(load_profile("t4"), load_model("mixtral-8x7b"), make_workload(32, 77))
    result = search_policy(rates, "layer_streaming")
    rows = sensitivity(result)
    assert {row.resource for row in rows} == set(resources_of(rates.machine.profile))
    assert all(row.relative_gain >= -1e-9 for row in rows)
    assert result.prediction.bottleneck == "htod"
    assert rows[0].resource in ("gpu_memory", "htod")
    rates_rows = [r for r in rows if r.resource not in ("cpu_memory", "gpu_memory")]
    assert all(r.relative_gain <= 0.10 + 1e-9 for r in rates_rows), "10 % of a rate cannot gain more than 10 %"
    link = next(row for row in rows if row.resource == "htod")
    assert 0.05 < link.relative_gain < 0.10 + 1e-9, "10 % more link gains at most 10 %"
