"""Everything that scores keeps to the device of its points, tried without a GPU."""

import pytest
import torch
from conftest import make_decoder_classifier, make_monitor
from gpu_check import score_inputs, trap_clouds
from helpers.other_device import DEVICE, Elsewhere, other_device

from sepstop import h0_deaths, h0_tree
from sepstop.bench.criteria import COMPARED
from sepstop.criteria import CRITERIA
from sepstop.homology import h0_dendrogram
from sepstop.measure.resampling import draw_resamples, score_resamples

KNOWN = CRITERIA | COMPARED


@pytest.fixture
def there(monkeypatch):
    with other_device(monkeypatch):
        yield lambda values: values.to(DEVICE)


def test_the_stand_in_refuses_to_mix_devices(there):
    points = torch.arange(3.0)
    far = there(points)
    assert isinstance(far, Elsewhere)
    assert float((far + far).sum()) == 6
    assert far[torch.tensor([2])].cpu().tolist() == [2]
    with pytest.raises(RuntimeError, match="expected all tensors on the same device in aten::add"):
        far + points
    with pytest.raises(TypeError, match="elsewhere"):
        far.numpy()


@pytest.mark.parametrize("engine", ["dense", "filtered"])
@pytest.mark.parametrize("name", ["mixture", "clump", "copies", "scales"])
def test_the_engines_keep_to_the_device(name, engine, there):
    cloud = trap_clouds(270)[name]
    deaths = h0_deaths(there(cloud), engine=engine)
    assert deaths.device == DEVICE
    expected = h0_deaths(cloud, engine=engine)
    torch.testing.assert_close(deaths.cpu(), expected, rtol=1e-6, atol=0)
    edges, lengths = h0_tree(there(cloud), engine=engine)
    assert edges.device == lengths.device == DEVICE


def test_resamples_and_dendrograms_keep_to_the_device(there):
    cloud = trap_clouds(100)["mixture"]
    resamples = draw_resamples(200, 8, 100, seed=0)
    expected = h0_deaths(cloud, resamples)
    for engine in ("dense", "filtered"):
        found = h0_deaths(there(cloud), resamples, engine=engine)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=0)
    order, gaps = h0_dendrogram(there(cloud))
    assert order.device == gaps.device == DEVICE


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_criteria_keep_to_the_device(name, there):
    criterion = KNOWN[name]()
    inputs = score_inputs(120, 24, classes=4)
    resamples = draw_resamples(120, 3, 60, seed=0)
    expected = score_resamples(criterion, inputs, resamples)
    inputs = {name: there(values) for name, values in inputs.items()}
    assert score_resamples(criterion, inputs, resamples) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("criterion", "outputs"),
    [
        ("auto", "classes"),
        ("auto", "labels"),
        ("auto", "none"),
        ("infomax", "classes"),
        ("consistency", "classes"),
    ],
)
def test_a_measurement_keeps_to_the_device(criterion, outputs, there):
    pool = [list(range(4, 4 + length)) for length in range(3, 13)]
    model = make_decoder_classifier()

    def record():
        monitor = make_monitor(pool, criterion=criterion, outputs=outputs, progress=False)
        monitor.prepare(model)
        monitor.set_reference(model)
        return monitor.measure(model, 1)

    expected = record()
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            held |= {name: there(each.detach()) for name, each in held.items() if each is not None}
    found = record()
    assert found.scores.keys() == expected.scores.keys()
    for name, score in expected.scores.items():
        assert found.scores[name].value == pytest.approx(score.value, rel=1e-5)
