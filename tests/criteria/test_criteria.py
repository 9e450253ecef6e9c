"""What all criteria have in common, and the names they go by."""

import pytest
import torch
from clouds import normal

from sepstop.bench.criteria import COMPARED
from sepstop.criteria import CRITERIA, HINTS, INPUTS
from sepstop.utils.registry import build, describe

ALL = CRITERIA | COMPARED


def inputs_of(criterion, **given):
    needs = getattr(criterion, "needs", ("points",))
    return [given[need] for need in needs]


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_batch_is_its_clouds_and_the_order_of_the_texts_does_not_matter(name):
    criterion = ALL[name]()
    assert set(getattr(criterion, "needs", ("points",))) <= set(INPUTS)
    assert criterion.name == name
    given = {
        "points": normal(3, 24, 6),
        "logits": normal(3, 24, 3, seed=1),
        "previous_logits": normal(3, 24, 3, seed=2),
        "corrupted_logits": normal(3, 24, 3, seed=4),
        "token_losses": normal(3, 24, 2, seed=7).exp(),
        "neighbors": normal(3, 24, 2, 3, 24, seed=6).argmax(dim=-1),
        "neighbor_classes": normal(3, 24, 2, 3, 3, seed=5).argmax(dim=-1),
    }
    scores = criterion(*inputs_of(criterion, **given))
    assert scores.shape == (3,)
    alone = {key: value[1:2] for key, value in given.items()}
    assert criterion(*inputs_of(criterion, **alone)).item() == pytest.approx(scores[1].item())
    if name not in ("silhouette", "calinski_harabasz"):  # k-means starts at some of the points
        order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
        moved = {key: value[:, order] for key, value in given.items()}
        moved["neighbors"] = order.argsort()[moved["neighbors"]]
        torch.testing.assert_close(criterion(*inputs_of(criterion, **moved)), scores)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_collapsed_model_gives_a_number_or_nan_and_no_crash(name):
    criterion = ALL[name]()
    for value in (0.0, 1.0):
        given = {key: torch.full((2, 10, 3), value) for key in INPUTS}
        given["token_losses"] = torch.zeros(2, 10, 2)
        given["neighbors"] = given["neighbor_classes"] = torch.zeros(2, 10, 1, 3, dtype=torch.int64)
        assert criterion(*inputs_of(criterion, **given)).shape == (2,)


def test_the_names_of_criteria_for_comparison_are_those_of_the_bench():
    assert not CRITERIA.keys() & COMPARED.keys()
    assert HINTS.keys() == COMPARED.keys()
    for name, criterion in COMPARED.items():
        path = HINTS[name].split("'")[-2]
        assert type(build("criterion", path, {})) is criterion


def test_a_name_of_the_bench_is_an_error_that_says_where_it_is():
    known = ", ".join(sorted(CRITERIA))
    with pytest.raises(
        ValueError,
        match=f"unknown criterion 'rankme'; known: {known}, .*; 'rankme' is for comparison only, "
        "as 'sepstop.bench.criteria:RankMe'",
    ):
        build("criterion", {"name": "rankme"}, CRITERIA, HINTS)


@pytest.mark.parametrize("name", sorted(ALL))
def test_settings_give_the_criterion_back(name):
    criterion = ALL[name]()
    assert build("criterion", describe(criterion, CRITERIA), CRITERIA) == criterion
