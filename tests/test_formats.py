"""One way to write numbers, everywhere."""

import pytest
from locksmith.book import formats


@pytest.mark.parametrize("ends, told", [
    ((0.59612, 0.5461, 0.648), "0.60 [0.55, 0.65]"), ((1234.5, None, None), "1,234"),
    ((2.5e7, 1e7, 1e8), "2.5e+07 [1.0e+07, 1.0e+08]"), ((64, 32, None), "64 [32, –]"),
    ((-0.000427, -0.01, 0.02), "0.000 [-0.010, 0.020]"), ((1.02, 0.96, 1.1), "1.02 [0.96, 1.10]"),
    ((0.0042, 0.001, 0.006), "0.0042 [0.0010, 0.0060]"), ((0, 0, 0), "0.00 [0.00, 0.00]"),
    ((85.31, 80, 90.2), "85 [80, 90]"), (None, "–")])
def test_an_interval_has_as_many_places_as_its_largest_end_needs(ends, told):
    assert formats.interval(ends) == told


def test_shares_are_whole_per_cent_and_never_a_nought_with_a_minus():
    assert [formats.percent(x) for x in (0.477, -0.000427, 0, 0.0042, 1, -0.26)] == [
        "48 %", "0 %", "0 %", "under 1 %", "100 %", "-26 %"]
    assert formats.percents((0.596, 0.546, 0.648)) == "60 % [55, 65]"
    assert formats.percents((0.596, None, None)) == "60 %" and formats.percents(None) == "–"
    assert [formats.points(x) for x in (0.49, 0.011, 0)] == ["49 points", "one point", "0 points"]
    assert [formats.times(x) for x in (3.94, 41.2, 12345)] == ["3.9", "41", "12,345"]
