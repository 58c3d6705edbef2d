"""A roofline as plain data: roofs, turning points and operators."""

from dataclasses import asdict
from typing import Any

from hrm.predict.operator_points import policy_chart, policy_ffn_case
from hrm.predict.rates import Rates
from hrm.spec.policy import Policy


def roofline_report(rates: Rates, policy: Policy) -> dict[str, Any]:
    """Operators of the policy under the machine's roofs, and the turning points of its expert FFN.

    Raises:
        PolicyError: the policy does not fit. RooflineError: a point above its roof.
    """
    chart, ffn = policy_chart(rates, policy), policy_ffn_case(rates, policy)
    points = (ffn.p1, ffn.p2, ffn.balance)
    return {
        "title": chart.title,
        "policy": policy.model_dump(),
        "roofs": [{**asdict(roof), "unit": "flop/s" if roof.is_compute else "bytes/s"} for roof in chart.roofs],
        "turning_points": [
            {"name": p.label, "flops_per_byte": p.intensity, "flops_per_s": p.flops_per_s} for p in points if p
        ],
        "operators": [asdict(op) for op in chart.operators],
    }
