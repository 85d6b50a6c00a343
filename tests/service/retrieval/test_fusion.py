import pytest

from service.retrieval.fusion import reciprocal_rank_fusion


def test_an_item_in_both_rankings_overtakes_the_best_of_one() -> None:
    """Third in both beats first in one: 2/63 against 1/61."""
    fused = dict(reciprocal_rank_fusion([[1, 2, 9], [3, 4, 9]]))

    assert fused[9] == pytest.approx(2 / 63)
    assert fused[1] == pytest.approx(1 / 61)
    assert next(iter(fused)) == 9


def test_weights_decide_between_first_places() -> None:
    """The ranking with more weight wins."""
    assert [item for item, _ in reciprocal_rank_fusion([[1], [2]], weights=(1, 3))] == [2, 1]


def test_ties_are_ordered_by_item() -> None:
    """Equal scores always come in the same order."""
    assert [item for item, _ in reciprocal_rank_fusion([[7], [3]])] == [3, 7]


def test_empty_rankings_give_nothing() -> None:
    """A search without hits takes nothing away from the other, and two give an empty list."""
    assert [item for item, _ in reciprocal_rank_fusion([[], [5]])] == [5]
    assert reciprocal_rank_fusion([[], []]) == []
