"""Tables of scalars hold the same on the host and on a device."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.outputs import scalars
from runtime.outputs.scalars import DeviceTable, HostTable, scalar_table
from runtime.outputs.values import Scalar

CPU = torch.device("cpu")
FLOATS = st.floats(width=32, allow_nan=False)


def as_drawn(value: float, kind: int) -> Scalar:
    """The value as a number, or as a tensor of one element."""
    kinds: Sequence[Scalar] = (value, torch.tensor(value), torch.tensor([value]))
    return kinds[kind]


@given(
    st.integers(1, 3).flatmap(
        lambda width: st.lists(
            st.lists(st.tuples(FLOATS, st.integers(0, 2)), min_size=width, max_size=width),
            min_size=1,
            max_size=9,
        )
    )
)
def test_both_kinds_of_table_hold_what_was_appended(drawn):
    tables = HostTable(), DeviceTable(CPU)
    for row in drawn:
        for table in tables:
            table.append([as_drawn(*cell) for cell in row])
    expected = torch.tensor([[value for value, _ in row] for row in drawn], dtype=torch.float64)
    for table in tables:
        assert torch.equal(table.rows(len(drawn[0])), expected)


def test_a_device_table_goes_on_in_a_further_block(monkeypatch):
    monkeypatch.setattr(scalars, "ROWS", 2)
    table = DeviceTable(CPU)
    for row in range(5):
        table.append([float(row), torch.tensor(row + 0.5)])
    assert table.rows(2).tolist() == [[row, row + 0.5] for row in range(5)]


@pytest.mark.parametrize("table", [HostTable(), DeviceTable(CPU)])
def test_a_table_without_rows_has_its_width(table):
    assert table.rows(3).shape == (0, 3)


def test_scalars_stay_where_they_are():
    assert isinstance(scalar_table(CPU), HostTable)
    assert isinstance(scalar_table(torch.device("meta")), DeviceTable)
