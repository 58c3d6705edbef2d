"""The published results: data intact, policies as published, and predictions as good as they are claimed to be."""

import pytest

from hrm.report.published import diagnosis, predict_published, published_errors
from hrm.report.published_auto import auto_case, published_cases
from hrm.report.published_machine import published_machine
from hrm.report.published_policy import published_policy, published_workload
from hrm.report.published_rows import published_data, published_rows, system_facts
from hrm.spec.hardware import load_profile

SYSTEMS = {"FlexGen", "FlexGen(c)", "DeepSpeed", "MoEL(p)", "MoEL"}


@pytest.fixture(scope="module")
def predictions():
    return predict_published()


def test_all_48_rows_are_there():
    rows = published_rows()
    assert len(rows) == 48
    assert {row.system for row in rows} == SYSTEMS
    assert {row.setting for row in rows} == {"S1", "S2"}
    assert len({(row.case, row.system) for row in rows}) == 48


@pytest.mark.parametrize("row", [r for r in published_rows() if r.total_seconds], ids=lambda r: f"{r.case} {r.system}")
def test_throughputs_are_tokens_over_seconds(row):
    """The artifact states finished requests and seconds too; 0.3 % covers the rounding of both."""
    assert row.requests_finished * row.gen_len / row.total_seconds == pytest.approx(row.throughput, rel=3e-3)


def test_policies_are_those_published():
    for row in published_rows():
        policy = published_policy(row)
        if row.micro_batch_size is not None:
            assert (policy.micro_batch_size, policy.num_micro_batches) == (row.micro_batch_size, row.num_micro_batches)
        assert policy.schedule == row.schedule
        assert policy.prefill_chunk_tokens == round(policy.micro_batch_size * published_workload(row).prompt_len)


def test_unpublished_batches_follow_the_stated_rules():
    rows = {(row.case, row.system): row for row in published_rows()}
    flexgen_c = published_policy(rows[("S1", "mtbench", 64), "FlexGen(c)"])
    assert (flexgen_c.micro_batch_size, flexgen_c.num_micro_batches) == (16, 78)
    deepspeed = published_policy(rows[("S1", "mtbench", 64), "DeepSpeed"])
    assert deepspeed.batch_size == 102 * 256 // 418


def test_machines_differ_from_shipped_profiles_only_in_efficiency():
    for setting in published_data()["machines"]:
        shipped = load_profile(published_data()["machines"][setting]["profile"])
        machine = published_machine(setting, "MoEL")
        same = {"sources", "efficiency"}
        assert machine.model_dump(exclude=same) == shipped.model_dump(exclude=same)
        assert machine.efficiency.links == shipped.efficiency.links


def test_sustained_clock_and_padded_tiles():
    """T4: 585 of 1590 MHz; 16 rows in a tile of 64 do a quarter of the flops they could."""
    machine = published_machine("S1", "FlexGen")
    assert machine.compute_efficiency("gpu", "linear", 100) == pytest.approx(585 / 1590)
    assert machine.compute_efficiency("gpu", "expert_ffn", 16) == pytest.approx(585 / 1590 / 4)
    assert machine.compute_efficiency("gpu", "expert_ffn", 5000) == pytest.approx(585 / 1590)


def test_every_fact_used_is_stated_with_its_system():
    assert set(system_facts()["systems"]) == SYSTEMS


def test_errors_are_what_the_documents_say(predictions):
    """Goldens of the best honest result; nothing is fitted, so a change of the cost model may move them."""
    errors = published_errors(predictions)
    assert errors.rows == 48
    assert errors.median_absolute_error == pytest.approx(0.345, abs=0.02)
    assert errors.within_25_percent >= 22
    assert errors.pairs == 89
    assert errors.ordered_pairs >= 0.9 * errors.pairs


def test_one_unpublished_rate_explains_the_t4():
    """The diagnosis in docs/published.md: fp32 peak instead of the tensor peak for the fused kernel on the T4."""
    errors = published_errors(diagnosis())
    assert errors.median_absolute_error == pytest.approx(0.127, abs=0.02)
    assert errors.ordered_pairs >= 0.9 * errors.pairs


def test_the_l4_is_predicted_within_a_quarter(predictions):
    """On the machine whose components were published, the median error meets the aim of 25 %."""
    errors = published_errors(tuple(p for p in predictions if p.row.setting == "S2"))
    assert errors.median_absolute_error < 0.25


def test_auto_beats_every_published_system_in_prediction(predictions):
    case = ("S2", "mtbench", 128)
    assert case in published_cases(predictions)
    best = max(p.predicted for p in predictions if p.row.case == case)
    assert auto_case(case).best.simulated.generation_throughput > 1.5 * best
