"""Scores of recorded runs, and their cache."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import make_encoder, make_texts
from helpers.recorded import (
    save_model,
    short_settings,
    toy_run,
    with_average,
    without_copies,
    without_logits,
)

import sepstop
from sepstop.bench import scores as scores_module
from sepstop.bench.judge import JUDGED, KNOWN
from sepstop.bench.record import record_run
from sepstop.bench.recorded_run import RecordedRun
from sepstop.bench.rows import split_rows
from sepstop.bench.scores import ScoreCache, can_score, score_run, source_version
from sepstop.config import SepStopConfig
from sepstop.criteria import ComponentMI, InfoMax, NeighborMI, Separability
from sepstop.criteria.neighbor_mi import neighbor_mi
from sepstop.measure.average import RunningAverages
from sepstop.measure.monitor import Monitor
from sepstop.measure.neighbors import nearest_neighbors
from sepstop.measure.resampling import draw_resamples
from sepstop.types import CHECKPOINT


def as_list(scored):
    return [
        (step, name, score.value, score.resample_values)
        for step, scores in zip(scored.steps, scored.scores, strict=True)
        for name, score in sorted(scores.items())
    ]


def same(one, other):
    assert one.name == other.name
    assert one.higher_is_better == other.higher_is_better
    assert one.best == other.best
    np.testing.assert_equal(as_list(one), as_list(other))  # NaN equals NaN
    assert (one.resample_size, one.pool_size) == (other.resample_size, other.pool_size)


@pytest.mark.training
def test_a_recorded_run_is_scored_as_a_monitor_scores_its_model(tmp_path, tokenizer):
    settings = short_settings(save_model(tmp_path, tokenizer), steps=1)
    texts, labels = make_texts(160)
    run = record_run(texts, labels, settings, progress=False)
    pool = split_rows(texts, labels, settings, np.random.default_rng(0))["pool"][0]
    monitor = Monitor(pool, SepStopConfig(tokenizer=tokenizer, max_length=16))
    record = monitor.measure(make_encoder().bert, 0)
    scores = score_run(run, [Separability(), ComponentMI()])
    for name, scored in scores.items():
        series = scored.series
        expected = record.scores[name].resample_values
        found = series.score_at(0).resample_values
        assert found == pytest.approx(expected, abs=2e-3)  # recorded as float16
        assert (series.resample_size, series.pool_size) == (30, 60)
    assert (record.resample_size, record.pool_size) == (30, 60)


def test_the_mutual_information_by_hand():
    """At step 10, of the predictions there with the neighbors of steps 0 and 10."""
    run = toy_run()
    series = score_run(run, [NeighborMI()])["neighbor_mi"].series
    points = torch.from_numpy(run.arrays["pool_e"]).float()
    logits = torch.from_numpy(run.arrays["pool_l"][1])
    near = torch.stack([nearest_neighbors(points[t]) for t in (0, 1)], dim=1)  # (N, 2, m)
    chosen = draw_resamples(40, 20, 20, seed=0)
    expected = neighbor_mi(logits[chosen], logits.argmax(dim=-1)[near][chosen])
    score = series.score_at(10)
    assert score.resample_values == pytest.approx(expected.tolist())
    assert score.value == pytest.approx(expected.mean().item())
    assert score.low < score.value < score.high


def test_one_pass_scores_as_one_criterion_at_a_time():
    run = toy_run()
    criteria = [KNOWN[name]() for name in JUDGED]
    together = score_run(run, criteria, num_resamples=3)
    assert list(together) == list(JUDGED)
    for criterion in criteria:
        same(together[criterion.name], score_run(run, [criterion], num_resamples=3)[criterion.name])
        assert len(together[criterion.name].series.score_at(10).resample_values) == 3


def test_component_mi_refers_to_all_steps_whatever_an_untrained_head_predicts():
    """Classes by neighborhood at step 0 make the start no reference, but only for predictions."""
    rng = np.random.default_rng(1)
    run = toy_run(pool=40)
    y = np.arange(40) % 2
    run.arrays["pool_e"][0] = (np.eye(3)[y] + 0.01 * rng.normal(size=(40, 3))).astype(np.float16)
    run.arrays["pool_l"][0] = 3 * np.eye(2)[y]
    first = score_run(run, [ComponentMI(), NeighborMI()])
    bare = score_run(without_logits(run), [ComponentMI()])
    same(first["component_mi"], bare["component_mi"])
    # Without its first evaluation a run has another first reference.
    later = toy_run()
    later.arrays.update({key: values[1:] for key, values in run.arrays.items() if key != "y"})
    second = score_run(later, [ComponentMI(), NeighborMI()])
    assert first["component_mi"].series.score_at(30) != second["component_mi"].series.score_at(30)
    points, logits = (torch.from_numpy(run.arrays[key][3]).float() for key in ("pool_e", "pool_l"))
    near = nearest_neighbors(points)[:, None]  # its own neighbors only
    chosen = draw_resamples(40, 20, 20, seed=0)
    expected = neighbor_mi(logits[chosen], logits.argmax(dim=-1)[near][chosen])
    found = first["neighbor_mi"].series.score_at(30).resample_values
    assert found == pytest.approx(expected.tolist())


def test_a_step_that_cannot_be_scored():
    run = toy_run()
    run.arrays["pool_e"][2] = np.nan
    series = score_run(run, [Separability()])["separability"].series
    assert [math.isfinite(score.value) for _, score in series] == [True, True, False, True]


# Averages


@pytest.mark.parametrize("score_checkpoints", [False, True])
@pytest.mark.parametrize("criterion", ["neighbor_mi", "component_mi", "infomax"])
def test_averages_are_scored_as_by_the_monitor_that_measured_them(
    tokenizer, pool, criterion, score_checkpoints
):
    """The averages begin at step 2; the pool's size and resamples are the same."""
    monitor = Monitor(
        pool,
        SepStopConfig(
            tokenizer=tokenizer,
            criterion=criterion,
            extra_criteria=(),
            score_checkpoints=score_checkpoints,
        ),
    )
    model = make_encoder(dropout=0)
    averages = RunningAverages(model)
    generator = torch.Generator().manual_seed(0)
    recorded, records = {}, []
    for step in range(6):
        if step > 0:
            for weight in model.parameters():
                weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
        if step > 1:
            averages.update(model, step)
        records.append(monitor.measure(model, step, averages=averages))
        for name in (CHECKPOINT, *averages.decays):
            if name == CHECKPOINT or not averages.count:
                seen = monitor.observe(model)
            else:
                with averages.applied(model, name):
                    seen = monitor.observe(model)
            prefix = "" if name == CHECKPOINT else f"{name}_"
            recorded.setdefault(f"{prefix}pool_e", []).append(seen.points.numpy())
            recorded.setdefault(f"{prefix}pool_l", []).append(seen.logits.numpy())
            recorded.setdefault(f"{prefix}te_acc", []).append(0.0)
    arrays = {key: np.array(values) for key, values in recorded.items()}
    run = RecordedRun("toy", arrays | {"steps": np.arange(6), "y": np.zeros(len(pool), int)})
    names = (*averages.decays, CHECKPOINT) if score_checkpoints else tuple(averages.decays)
    found = score_run(run, monitor.scorer.criteria, names)[criterion]
    # At step 2 each average is the model itself: a file cannot tell them apart.
    for record, scores, best in zip(records, found.scores, found.best, strict=True):
        if record.step != 2:
            assert best == next(iter(record.candidates))
            for name, score in scores.items():
                assert score == record.candidates[name][criterion]
        assert scores[best] == record.scores[criterion]
    assert found.series == monitor.series(records)


def test_fewer_candidates_are_scored_as_by_themselves():
    run = toy_run(scores=(0, 3, 1, 2))
    run = with_average(run, "cumulative", (0.1, 0.6, 0.7, 0.8), scores=(0, 1, 2, 3))
    run = with_average(run, "recent", (0.1, 0.7, 0.8, 0.6), scores=(0, 2, 3, 1))
    criteria = [InfoMax(), NeighborMI()]
    every = ("cumulative", "recent", "checkpoint")
    whole = score_run(run, criteria, every, num_resamples=3)
    for names in (("cumulative",), ("cumulative", "recent"), ("cumulative", "checkpoint")):
        for name, scored in score_run(run, criteria, names, num_resamples=3).items():
            same(whole[name].among(names), scored)
    for names in (("recent",), ("checkpoint",)):  # other neighbors
        found = score_run(run, criteria, names, num_resamples=3)
        same(whole["infomax"].among(names), found["infomax"])
        assert as_list(whole["neighbor_mi"].among(names)) != as_list(found["neighbor_mi"])
    assert whole["infomax"].best == ("checkpoint", "checkpoint", "recent", "cumulative")


def test_unknown_candidates():
    with pytest.raises(ValueError, match="toy has no candidate 'recent', only checkpoint"):
        score_run(toy_run(), [InfoMax()], ("recent",))
    assert not can_score(toy_run(), InfoMax(), ("recent",))


def test_inputs_that_a_run_lacks():
    run = toy_run()
    for name in ("consistency", "robust_mi"):
        assert can_score(run, KNOWN[name]())
        assert not can_score(without_copies(run), KNOWN[name]())
        averaged = with_average(run, "cumulative", (0.1, 0.6, 0.7, 0.8))
        assert can_score(averaged, KNOWN[name](), ("cumulative",))
        del averaged.arrays["cumulative_pool_d"]
        assert can_score(averaged, KNOWN[name]())
        assert not can_score(averaged, KNOWN[name](), ("cumulative",))
    assert can_score(without_copies(run), KNOWN["churn"]())
    bare = without_logits(run)
    for name, expected in (("component_mi", True), ("rankme", True), ("neighbor_mi", False)):
        assert can_score(bare, KNOWN[name]()) is expected


# The cache


def files_in(folder):
    return {path.name.rsplit("-", 1)[0]: path for path in folder.iterdir()}


def mark(path):
    """Change a file so that reading it can be told from scoring."""
    path.write_text(path.read_text().replace('"pool_size": 40', '"pool_size": 41'))


def test_scores_are_read_from_files(tmp_path):
    cache, run = ScoreCache(tmp_path, num_resamples=3), toy_run()
    first = cache(run, [InfoMax(), Separability()])
    assert files_in(tmp_path).keys() == {"toy-infomax", "toy-separability"}
    again = cache(run, [Separability(), InfoMax()])
    assert list(again) == ["separability", "infomax"]
    for name, scored in again.items():
        same(scored, first[name])
        same(scored, score_run(run, [KNOWN[name]()], num_resamples=3)[name])


def test_only_new_criteria_are_scored(tmp_path):
    cache, run = ScoreCache(tmp_path, num_resamples=3), toy_run()
    cache(run, [InfoMax()])
    mark(files_in(tmp_path)["toy-infomax"])
    found = cache(run, [InfoMax(), Separability()])
    assert {name: scored.pool_size for name, scored in found.items()} == {
        "infomax": 41,
        "separability": 40,
    }


@pytest.mark.parametrize(
    ("run", "criterion", "num_resamples"),
    [
        (toy_run(accuracy=(0.1, 0.5, 0.8, 0.7)), Separability(), 3),
        (toy_run(), Separability(normalize=False), 3),
        (toy_run(), Separability(), 4),
    ],
)
def test_scores_belong_to_run_and_settings(tmp_path, run, criterion, num_resamples):
    ScoreCache(tmp_path, num_resamples=3)(toy_run(), [Separability()])
    mark(files_in(tmp_path)["toy-separability"])
    found = ScoreCache(tmp_path, num_resamples)(run, [criterion])["separability"]
    assert found.pool_size == 40
    assert len(list(tmp_path.iterdir())) == 2


def test_files_of_averages(tmp_path):
    """A file holds one set of candidates."""
    cache = ScoreCache(tmp_path, num_resamples=3)
    run = with_average(toy_run(), "cumulative", (0.1, 0.6, 0.7, 0.8), scores=(0, 2, 1, 4))
    for count, names in enumerate((("cumulative", "checkpoint"), ("cumulative",)), start=1):
        first = cache(run, [InfoMax()], names)["infomax"]
        assert len(list(tmp_path.iterdir())) == count
        same(cache(run, [InfoMax()], names)["infomax"], first)
        same(first, score_run(run, [InfoMax()], names, num_resamples=3)["infomax"])


def test_a_changed_source_is_scored_again(tmp_path, monkeypatch):
    cache = ScoreCache(tmp_path, num_resamples=3)
    cache(toy_run(), [InfoMax()])
    monkeypatch.setattr(scores_module, "source_version", lambda criterion: "another")
    cache(toy_run(), [InfoMax()])
    assert len(list(tmp_path.iterdir())) == 2


def test_the_version_is_of_the_criterions_source():
    assert source_version(InfoMax) == source_version(Separability)  # of sepstop/criteria
    assert source_version(InfoMax) != source_version(KNOWN["rankme"])
    assert source_version(KNOWN["nesum"]) == source_version(KNOWN["rankme"])  # one file


@pytest.mark.parametrize("file", ["measure/embedding.py", "bench/recorded_run.py"])
def test_the_version_is_of_what_the_inputs_are_read_by(file, monkeypatch):
    read_bytes, before = Path.read_bytes, source_version(InfoMax)
    changed = Path(sepstop.__file__).parent / file

    def with_a_change(path):
        return read_bytes(path) + b"#" * (path == changed)

    monkeypatch.setattr(Path, "read_bytes", with_a_change)
    source_version.cache_clear()
    assert source_version(InfoMax) != before
    monkeypatch.undo()
    source_version.cache_clear()
    assert source_version(InfoMax) == before


@dataclass(frozen=True)
class Own:
    name: ClassVar[str] = "own"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, points):
        return points.mean(dim=(-2, -1))


def test_a_criterion_of_ones_own_is_scored_each_time(tmp_path):
    """Its code may change between two calls."""
    found = ScoreCache(tmp_path)(toy_run(), [Own()])["own"]
    assert not found.higher_is_better
    assert len(found.steps) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path):
    cache = ScoreCache(tmp_path)
    cache(toy_run(), [InfoMax()])
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match=r"toy-infomax-\w+\.jsonl, line 5"):
        cache(toy_run(), [InfoMax()])
