"""The tables of `hrm roofline`."""

from hrm.cli.output import print_table, print_text
from hrm.predict.operator_points import policy_chart, policy_ffn_case
from hrm.predict.rates import Rates
from hrm.spec.policy import Policy
from hrm.spec.units import format_flops_rate, format_rate


def print_roofline(rates: Rates, policy: Policy) -> None:
    """Roofs, turning points and operators, for people."""
    chart, ffn = policy_chart(rates, policy), policy_ffn_case(rates, policy)
    roofs = [
        (r.label, format_flops_rate(r.peak) if r.is_compute else format_rate(r.peak),
         "-" if r.achieved is None else format_flops_rate(r.achieved) if r.is_compute else format_rate(r.achieved))
        for r in chart.roofs
    ]  # fmt: skip
    print_table(chart.title, ("roof", "datasheet", "measured"), roofs)
    points = [p for p in (ffn.p1, ffn.p2, ffn.balance) if p]
    rows = [(p.label, f"{p.intensity:,.1f} flops/byte", format_flops_rate(p.flops_per_s)) for p in points]
    print_table(
        f"Turning points of the expert FFN at mu = {policy.micro_batch_size:,}", ("", "over the link", "at"), rows
    )
    operators = [
        (
            op.label,
            op.processor.upper(),
            format_flops_rate(op.flops_per_s),
            f"{op.share:.1%}",
            op.binding,
            f"{op.gap:.2f}x",
            ", ".join(f"{p.level} {p.intensity:,.1f}" for p in op.levels),
        )
        for op in chart.operators
    ]
    columns = ("operator", "on", "rate in the pass", "busy", "nearest roof", "gap", "flops/byte")
    print_table("Operators of the policy", columns, operators, numeric_from=9)
    print_text("Draw it: add --output roofline.png (or .svg, .pdf).")
