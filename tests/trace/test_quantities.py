"""Numbers of a tiny run are read as what they stand for."""

from __future__ import annotations

import pytest

from actbench.trace.quantities import AmbiguousError, Reader, Values

TINY = {"nodes": 239, "edges": 622, "hidden": 149}
REAL = Values({"nodes": 10**9, "edges": 7 * 10**9, "hidden": 300})
OTHERS = [{"nodes": 271, "edges": 662, "hidden": 227}, {"nodes": 500, "edges": 9000, "hidden": 64}]


def reader() -> Reader:
    return Reader(TINY, OTHERS)


@pytest.mark.parametrize(
    ("number", "real"),
    [
        (239, 10**9),
        (239 * 149, 300 * 10**9),
        (3 * 622, 21 * 10**9),
        (149 * 149 * 4, 300 * 300 * 4),
        (8, 8),
        (64, 64),
        (241, 241),
    ],
)
def test_a_number_is_a_product_of_quantities_or_a_constant(number: int, real: int) -> None:
    assert REAL.at(reader().read(number)) == real


def test_what_is_defined_is_read_with_what_it_is_made_of() -> None:
    here = reader()
    loops = here.define(lambda edges, nodes: edges + nodes, 622, 239)
    narrow = here.define(lambda hidden: -(-hidden // 8), 149)
    assert (loops, narrow) == (861, 19)
    assert REAL.at(here.read(861)) == 8 * 10**9
    assert REAL.at(here.read(239 * 19)) == 38 * 10**9
    assert REAL.at(here.read(861 * 3)) == 24 * 10**9


def test_two_readings_of_one_number_are_told_apart_by_other_sizes() -> None:
    here = reader()
    assert here.define(lambda hidden: 3 * hidden // 3, 149) == 149
    with pytest.raises(AmbiguousError):
        here.define(lambda nodes: nodes - 90, 239)


def test_a_number_is_invented_for_what_small_sizes_do_not_tell() -> None:
    here = reader()
    narrow = here.invent(lambda hidden: -(-hidden // 100), 149)
    assert here.invent(lambda hidden: (hidden + 99) // 100, 149) == narrow
    assert here.invent(lambda edges: -(-edges // 400), 622) != narrow
    assert here.invent(lambda hidden: 3 * hidden // 3, 149) == 149
    assert REAL.at(here.read(239 * narrow)) == 3 * 10**9


def test_what_is_expected_holds_for_packed_tensors_alone() -> None:
    here = reader()
    here.expect(lambda rows, width: -(-rows * width // 4), 239, 149)
    assert REAL.at(here.expected(-(-239 * 149 // 4))) == 75 * 10**9
    assert REAL.at(here.read(-(-239 * 149 // 4))) == -(-239 * 149 // 4)
    here.expect(lambda rows: rows, 239)
    here.expect(lambda rows, width: rows * width // 149, 239, 149)
    assert REAL.at(here.expected(239)) == 300 * 10**9 // 149
