import pytest

from deit_fast.budget import BUDGET_DEVICES, REQUIRED_IMAGES_PER_SECOND, projected_days


def test_the_budget_is_the_issue_s_figure():
    assert round(REQUIRED_IMAGES_PER_SECOND, 1) == 1482.8
    assert round(REQUIRED_IMAGES_PER_SECOND / BUDGET_DEVICES, 1) == 185.4


def test_at_the_required_speed_it_takes_three_days():
    assert projected_days(REQUIRED_IMAGES_PER_SECOND) == pytest.approx(3.0)
    assert projected_days(2 * REQUIRED_IMAGES_PER_SECOND) == pytest.approx(1.5)


def test_no_speed_has_no_projection():
    with pytest.raises(ValueError, match="images_per_second"):
        projected_days(0.0)
