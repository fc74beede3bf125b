"""Shards, pictures and bombs that were made to hurt: a few of each here, thousands by scripts/fault_table.py."""

from __future__ import annotations

import pytest

from scripts import fault_data, fault_table


@pytest.mark.parametrize(("make", "n"), [(fault_data.shards, 40), (fault_data.pictures, 150), (fault_data.bombs, 10)])
def test_data_cannot_hurt(make, n: int) -> None:
    row = make(n)
    assert row["n"] == n and row["wrong"] == []
    if "used" in row["counts"]:
        assert row["counts"]["used"] and row["counts"]["named"]  # both happened, or nothing was tried


def test_the_table_says_what_did_not_hold() -> None:
    rows = {name: {"n": 3, "counts": {"used": 1}, "wrong": [], "seconds": 1.0} for name in fault_table.FAULTS}
    rows["F7 damaged shards"]["wrong"] = ["mutation 2: 20 used, 3 named"]
    found = {"machine": {"processor": "p", "cores": 2, "torch": "2", "system": "s"}, "rows": rows}
    lines = fault_table.page(found).splitlines()
    assert sum(" | yes | " in line for line in lines) == len(rows) - 1
    assert "no: 1 times, as mutation 2: 20 used, 3 named" in next(line for line in lines if "F7" in line)
