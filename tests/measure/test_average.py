"""Running averages against their formula."""

import copy

import pytest
import torch
from conftest import make_encoder
from helpers.averages import are_equal, averaged, tied_decoder, train_a_bit, trained
from torch import nn

from sepstop.measure.average import AVERAGES, RunningAverages
from sepstop.types import Average


def expected(values, decay):
    """The average by its definition, in float64: weights n (n + 1) ... (n + decay - 1)."""
    shares = torch.ones(len(values), dtype=torch.float64)
    for n in range(1, len(values) + 1):
        for factor in range(decay):
            shares[n - 1] *= n + factor
    shares /= shares.sum()
    stacked = torch.stack([value.double() for value in values])
    return (shares.view(-1, *[1] * (stacked.dim() - 1)) * stacked).sum(0)


def one_weight(dtype=torch.float32, size=1000):
    return nn.Linear(size, 1, bias=False, dtype=dtype)


def values_along(model, averages, steps, seed=0):
    """Train for some steps; the weights at each."""
    found = []
    for step in range(1, steps + 1):
        train_a_bit(model, 1, first=seed + step)
        averages.update(model, step)
        found.append(model.weight.detach().clone())
    return found


def average_of(averages, model, name):
    with averages.applied(model, name):
        return model.weight.detach().clone()


@pytest.mark.parametrize("decay", [0, 2, 6])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_steps_are_weighted_by_the_formula(decay, dtype, error):
    model = one_weight(dtype)
    averages = RunningAverages(model, {"one": decay})
    values = values_along(model, averages, steps=60)
    found = average_of(averages, model, "one")
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected(values, decay), rtol=0, atol=error)


def test_weights_in_bf16_are_averaged_in_float32():
    """Accumulated in bf16, late steps are lost: they move the average by less than its digits."""
    model = one_weight(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    averages = RunningAverages(model, {"one": 0})
    in_bf16, values = model.weight.detach().clone(), []
    for step in range(1, 401):
        nn.init.constant_(model.weight, 1.0 if step <= 200 else 2.0)
        averages.update(model, step)
        values.append(model.weight.detach().clone())
        in_bf16.lerp_(values[-1], 1 / step)
    exact = expected(values, 0)
    assert torch.equal(average_of(averages, model, "one"), exact.bfloat16())
    assert (in_bf16.double() - exact).abs().min() > 0.05
    assert averages.state_dict()["averages"]["one"]["weight"].dtype == torch.float32


def test_the_averages_of_a_run():
    model = make_encoder()
    averages = averaged(model, steps=5)
    assert list(averages.decays) == list(AVERAGES)
    for name in AVERAGES:
        assert name in averages
        assert averages.described(name) == Average(name, 1, 5, 5)
    assert "checkpoint" not in averages
    before = trained(model)
    with averages.applied(model, "recent"):
        recent = trained(model)
    with averages.applied(model, "cumulative"):
        assert not are_equal(trained(model), recent)
    assert are_equal(trained(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_restored_to_the_bit_whatever_happens(dtype):
    model = make_encoder().to(dtype)
    averages = averaged(model)
    before, pointers = trained(model), [weight.data_ptr() for weight in model.parameters()]

    def fail():
        with averages.applied(model, "recent"):
            assert not are_equal(trained(model), before)
            train_a_bit(model, 1, first=9)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert are_equal(trained(model), before)
    assert [weight.data_ptr() for weight in model.parameters()] == pointers
    with pytest.raises(KeyError), averages.applied(model, "other"):
        pass
    assert are_equal(trained(model), before)


def test_layers_that_are_frozen_or_trained_later():
    model = nn.Sequential(one_weight(size=8), one_weight(size=8), one_weight(size=8))
    early, late, never = (part.weight for part in model)
    late.requires_grad_(False)
    never.requires_grad_(False)
    averages = RunningAverages(model)
    train_a_bit(model, 3, averages)
    early.requires_grad_(False)  # its average stays in use, and sees a constant from now on
    late.requires_grad_(True)
    kept = early.detach().clone()
    with averages.applied(model, "cumulative"):  # trained since the last update
        assert not torch.equal(early, kept)
        early_average = early.detach().clone()
    found = late.detach().clone()
    train_a_bit(model, 1, averages, first=4)
    with averages.applied(model, "cumulative"):
        assert torch.equal(late, averages.state_dict()["averages"]["cumulative"]["1.weight"])
        assert torch.allclose(early, (3 * early_average + kept) / 4, atol=1e-6)
    assert not torch.equal(late, found)
    assert "2.weight" not in averages.state_dict()["averages"]["cumulative"]


def test_tied_weights_are_averaged_once():
    model = tied_decoder()
    averages = averaged(model)
    assert "lm_head.weight" not in averages.state_dict()["averages"]["recent"]
    with averages.applied(model, "recent"):
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_state_makes_a_resumed_run_go_on_to_the_bit():
    model = make_encoder()
    averages = averaged(model)
    state, resumed_model = copy.deepcopy(averages.state_dict()), copy.deepcopy(model)
    resumed = RunningAverages(resumed_model)
    resumed.load_state_dict(state, resumed_model)
    for one, its in ((averages, model), (resumed, resumed_model)):
        train_a_bit(its, 3, one, first=5)
        assert one.described("recent") == Average("recent", 1, 7, 7)
    for name, tensors in averages.state_dict()["averages"].items():
        assert are_equal(resumed.state_dict()["averages"][name], tensors)
    assert not are_equal(  # the state is not shared
        state["averages"]["recent"], resumed.state_dict()["averages"]["recent"]
    )


@pytest.mark.parametrize(
    ("wrap"),
    [lambda model: torch.compile(model, backend="eager"), nn.DataParallel],
    ids=["compiled", "DataParallel"],
)
def test_names_are_those_of_the_model_inside(wrap):
    model = make_encoder()
    averages = averaged(model)
    assert (
        averages.state_dict()["averages"]["recent"].keys() == dict(model.named_parameters()).keys()
    )
    resumed = RunningAverages(wrap(model))
    resumed.load_state_dict(averages.state_dict(), wrap(model))
    with averages.applied(model, "recent"):
        found = trained(model)
    with resumed.applied(wrap(model), "recent"):
        assert are_equal(trained(model), found)


def test_a_compiled_module_inside():
    model = make_encoder()
    state = averaged(model).state_dict()
    model.bert.encoder.layer[0] = torch.compile(model.bert.encoder.layer[0], backend="eager")
    resumed = RunningAverages(model)
    resumed.load_state_dict(state, model)
    assert resumed.count == 4


def test_averages_on_another_device():
    """On "meta" they have no values, so that it shows where they are."""
    model = make_encoder()
    averages = averaged(model, device="meta")
    assert {t.device.type for t in averages.state_dict()["averages"]["recent"].values()} == {"meta"}
    here, there = averaged(make_encoder()), averaged(make_encoder(), device="cpu")
    for name, tensors in here.state_dict()["averages"].items():
        assert are_equal(there.state_dict()["averages"][name], tensors)
    averages.load_state_dict(here.state_dict(), model)
    assert {t.device.type for t in averages.state_dict()["averages"]["recent"].values()} == {"meta"}


# Refusals


def frozen():
    return make_encoder().requires_grad_(False)


def batch_norm():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def zero_3():
    model = make_encoder()
    model.classifier.weight.ds_id = 0
    return model


class FullyShardedDataParallel(nn.Sequential):
    """Of the name of the first FSDP, which needs a group of processes."""


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (frozen, "expected a model with trainable weights, got none to average"),
        (batch_norm, "1 is a BatchNorm layer, whose statistics belong to one checkpoint"),
        (zero_3, "weights that DeepSpeed ZeRO 3 divides can't be averaged"),
        (
            lambda: nn.Sequential(FullyShardedDataParallel(one_weight())),
            "the first version of FSDP divides can't be averaged; use FSDP2",
        ),
    ],
)
def test_models_that_can_not_be_averaged(make, said):
    with pytest.raises(ValueError, match=f"{said}.* set average=False$"):
        RunningAverages(make())


def test_batch_norm_without_statistics_can_be_averaged():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    averaged(model)


def test_states_that_do_not_fit():
    model = make_encoder()
    state = averaged(model).state_dict()
    with pytest.raises(ValueError, match=r"expected averages {'one': 1}, got {'cumulative': 0"):
        RunningAverages(model, {"one": 1}).load_state_dict(state, model)
    other = make_encoder()
    other.classifier = nn.Linear(16, 3)
    message = r"the average of classifier\.weight, \(2, 16\), does not fit the model, \(3, 16\)"
    with pytest.raises(ValueError, match=message):
        RunningAverages(other).load_state_dict(state, other)
    other.classifier = nn.Identity()
    with pytest.raises(ValueError, match=r"classifier\.weight, .* which lacks it"):
        RunningAverages(other).load_state_dict(state, other)


def test_a_loop_may_count_from_0():
    averages = RunningAverages(model := one_weight())
    for step in range(3):
        averages.update(model, step)
    assert averages.described("cumulative") == Average("cumulative", 0, 2, 3)
