"""Quantities: exact SI values, rejected spellings, and formatting that parses back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.errors import UnitError, UnknownNameError
from hrm.spec.dtypes import DTYPE_BYTES, bytes_per_element
from hrm.spec.units import format_bytes, format_flops_rate, format_rate, format_seconds, parse_quantity

WHERE = "t4.yaml: gpu.memory_bandwidth"


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("16 GB", "bytes", 16_000_000_000),
        ("16 GiB", "bytes", 17_179_869_184),
        ("512 kB", "bytes", 512_000),
        ("512KiB", "bytes", 524_288),
        ("1.5 TiB", "bytes", 1_649_267_441_664),
        ("7 B", "bytes", 7),
        ("320 GB/s", "bytes_per_s", 320e9),
        ("12.89 GiB/s", "bytes_per_s", 12.89 * 2**30),
        ("65 TFLOP/s", "flops_per_s", 65e12),
        ("65 TFLOPS", "flops_per_s", 65e12),
        ("1.3 PFLOP/s", "flops_per_s", 1.3e15),
        ("130 TOPS", "flops_per_s", 130e12),
        ("10 us", "seconds", 1e-5),
        ("10 µs", "seconds", 1e-5),
        ("3 ns", "seconds", 3e-9),
        ("2.5e-3 s", "seconds", 2.5e-3),
        ("81.25 FLOP/B", "flops_per_byte", 81.25),
        ("62 %", "ratio", 0.62),
    ],
)
def test_value_in_si_units(text: str, dimension: str, expected: float) -> None:
    assert parse_quantity(text, dimension, WHERE) == expected


def test_decimal_and_binary_bandwidth_differ_by_seven_percent() -> None:
    ratio = parse_quantity("1 GiB/s", "bytes_per_s", WHERE) / parse_quantity("1 GB/s", "bytes_per_s", WHERE)
    assert ratio == 1.073741824


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (320, "bare number"),
        (320.5, "bare number"),
        ("320", "bare number"),
        ("3.2e11", "bare number"),
        (True, "not a quantity"),
        (None, "not a quantity"),
        ([320], "not a quantity"),
        ({"value": 1}, "not a quantity"),
        ("", "not a quantity"),
        ("GB/s", "not a quantity"),
        ("1 2 GB/s", "not a quantity"),
        ("320 GB", "has unit 'GB'"),
        ("320 gb/s", "has unit 'gb/s'"),
        ("320 GBps", "has unit 'GBps'"),
        ("320 TFLOP/s", "has unit 'TFLOP/s'"),
        ("nan GB/s", "not a finite number"),
        ("inf GB/s", "not a finite number"),
        ("1e400 GB/s", "not a finite number"),
        ("-320 GB/s", "above zero"),
        ("0 GB/s", "above zero"),
        ("1e-400 GB/s", "above zero"),
        ("1e25 GB/s", "absurdly large"),
        ("٣ GB/s", "not a quantity"),
    ],
)
def test_refused_with_place_and_example(text: object, fragment: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_quantity(text, "bytes_per_s", WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert fragment in message
    assert 'write "320 GB/s"' in message


def test_long_text_is_shortened_in_the_message() -> None:
    with pytest.raises(UnitError) as caught:
        parse_quantity("x" * 1_000_000, "bytes", WHERE)
    assert len(str(caught.value)) < 200


def test_unknown_dimension_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="bytes_per_s"):
        parse_quantity("1 GB/s", "bytes_per_sec", WHERE)


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.binary(), st.lists(st.integers())))
def test_anything_else_than_a_quantity_is_a_unit_error(value: object) -> None:
    try:
        parsed = parse_quantity(value, "bytes", WHERE)
    except UnitError:
        return
    assert 0 < parsed <= 1e30


@pytest.mark.parametrize(
    ("formatted", "expected"),
    [
        (format_bytes(15 * 2**30), "15 GiB"),
        (format_bytes(1023 * 2**30), "1023 GiB"),
        (format_bytes(2**40), "1 TiB"),
        (format_bytes(0), "0 B"),
        (format_rate(320e9), "320 GB/s"),
        (format_rate(12.89 * 2**30), "13.8 GB/s"),
        (format_rate(999.7e9), "1 TB/s"),
        (format_flops_rate(989e12), "989 TFLOP/s"),
        (format_seconds(0.01234), "12.3 ms"),
        (format_seconds(8.9e-6), "8.9 us"),
        (format_seconds(-0.5), "-500 ms"),
    ],
)
def test_three_significant_digits(formatted: str, expected: str) -> None:
    assert formatted == expected


@given(st.floats(min_value=1.0, max_value=1e27))
def test_formatted_quantities_parse_back_to_three_digits(value: float) -> None:
    for show, dimension in (
        (format_bytes, "bytes"),
        (format_rate, "bytes_per_s"),
        (format_flops_rate, "flops_per_s"),
        (format_seconds, "seconds"),
    ):
        assert math.isclose(parse_quantity(show(value), dimension, WHERE), value, rel_tol=5.1e-3)


@given(st.floats(min_value=1e-12, max_value=1e27), st.sampled_from(["B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB"]))
def test_every_digit_of_the_number_is_kept(number: float, unit: str) -> None:
    scale = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    expected = number * scale[unit]
    if 0 < expected <= 1e30:
        assert parse_quantity(f"{number!r} {unit}", "bytes", WHERE) == expected


def test_bytes_per_element_include_block_scales() -> None:
    assert bytes_per_element("fp32") == 4
    assert bytes_per_element("bf16") == bytes_per_element("fp16") == 2
    assert bytes_per_element("fp8") * 128 * 128 == 128 * 128 + 4  # a block and its fp32 scale
    assert bytes_per_element("int8") * 128 == 130
    assert bytes_per_element("int4") * 128 == 66
    assert bytes_per_element("mxfp4") * 32 == 17  # OCP MX: 32 four-bit elements and one byte


def test_unknown_dtype_suggests_a_close_one() -> None:
    assert set(DTYPE_BYTES) == {"fp32", "bf16", "fp16", "fp8", "int8", "int4", "mxfp4"}
    with pytest.raises(UnknownNameError, match=r"did you mean .*bf16"):
        bytes_per_element("bfp16")
