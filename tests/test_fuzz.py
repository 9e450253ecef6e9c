"""Files that a user hands in, broken in every way: a sentence, never a traceback, and no code run.

What may leave is a ValueError or an OSError that names the file, or a warning and a fallback.
"""

import contextlib
import copy
import io
import json
import math
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_encoder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sepstop import Record, Scorer, SepStopConfig, Series, select_checkpoint
from sepstop.bench.recorded_run import load_run
from sepstop.cli.main import app
from sepstop.criteria import CRITERIA
from sepstop.decide.policies import POLICIES, decide, replay
from sepstop.finetune.run import set_up
from sepstop.measure.embedding import Observation
from sepstop.measure.neighbors import Neighborhoods
from sepstop.measure.pool import read_pool
from sepstop.measure.pooling import POOLINGS
from sepstop.measure.resampling import draw_resamples
from sepstop.runs.cache import ObservationCache
from sepstop.runs.history import (
    HISTORY_FILE,
    KEY,
    SELECTION_FILE,
    from_log,
    read_history,
    read_log_history,
    read_run,
)
from sepstop.runs.records import RunHistory, from_state, record_to_dict
from sepstop.types import Average, Decision, Score
from sepstop.utils.labels import read_labeled
from sepstop.utils.registry import build

ROOT = Path(__file__).parents[1]
EXAMPLES = int(os.environ.get("SEPSTOP_FUZZ", "20"))  # the same ones every time, unless more
FUZZ = settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES == 20,
)
FEW = settings(FUZZ, max_examples=max(6, EXAMPLES // 5))

numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -1, 0, 2**63, 1e308, float("nan")])
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20), st.just("os:system")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def leaves(value, path=()):
    """The places in a JSON value, itself first."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))


@st.composite
def mutated(draw, value):
    """The JSON ``value`` with something else in one or two places, or without them."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(leaves(value))))
        if not path:
            return draw(anything)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[path[-1]] = draw(anything)
        else:
            del holder[path[-1]]
    return value


@st.composite
def damaged(draw, content):
    """Bytes with some cut off, changed or put in."""
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    other = draw(st.binary(max_size=12))
    how = draw(st.sampled_from(["cut", "change", "insert", "all"]))
    if how == "cut":
        return content[:at]
    if how == "change":
        return content[:at] + other + content[at + len(other) :]
    return content[:at] + other + content[at:] if how == "insert" else other


def said(call, *arguments, **options):
    """The result, or the sentence of what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(*arguments, **options)
        except (ValueError, OSError) as error:
            return str(error) or pytest.fail(f"no sentence in {error!r}")


def command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code in (0, 2), result.exception
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        assert result.stderr.startswith("sepstop: ")
    return result


SCORES = {"neighbor_mi": Score(0.4, 0.3, 0.5, (0.3, 0.5)), "separability": Score(0.2)}
OTHERS = {"checkpoint": SCORES, "recent": {"neighbor_mi": Score(0.3)}}
RECORD = record_to_dict(Record(5, 0.5, SCORES, 1.0, 10, 20, Average("cumulative", 2, 5, 4), OTHERS))
HEADER = {
    "settings": {
        "criterion": {"name": "neighbor_mi"},
        "extra_criteria": [{"name": "separability"}],
        "pooling": {"name": "mean", "layer": -1},
        "num_resamples": 3,
        "resample_size": 10,
        "seed": 0,
        "max_length": 16,
        "pool_size": 40,
        "pool": "abc",
    },
    "settings_since": 3,
    "policy": {"name": "past_peak", "max_drop": 0.3},
    "decides": "neighbor_mi",
    "higher_is_better": {"neighbor_mi": True, "separability": True},
    "ended": 9,
}
DECISION = {"stop": False, "best_step": 5, "reason": "improving", "step": 5}
ROW = {"step": 5, "epoch": 0.5, KEY: {"record": RECORD, "decision": DECISION, **HEADER}}
LINES = [{KEY: {"schema": 3, "count": 1, **HEADER}}, {**RECORD, "decision": DECISION}]
CONTENT = "\n".join(map(json.dumps, LINES)).encode()
TRAINED = {"loss": 1.0, "learning_rate": 1e-5, "step": 5, "epoch": 0.5}
STATE = {"max_steps": 9, "save_steps": 5, "log_history": [TRAINED, ROW]}


@FUZZ
@given(content=st.one_of(st.binary(max_size=200), damaged(CONTENT)))
def test_history_files_of_any_bytes(tmp_path, content):
    path = tmp_path / "sepstop_history.jsonl"
    path.write_bytes(content)
    found = said(read_history, path)
    assert isinstance(found, RunHistory) or "sepstop_history.jsonl" in found
    command("plot", tmp_path, "-o", tmp_path / "x.svg")
    command("watch", tmp_path, "--once")
    command("report", tmp_path, "-o", tmp_path / "x.html")


@FUZZ
@given(record=mutated(LINES[1]))
def test_history_files_of_any_values(tmp_path, record):
    path = tmp_path / "sepstop_history.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (LINES[0], record)))
    found = said(read_history, path)
    assert isinstance(found, RunHistory) or "sepstop_history.jsonl" in found
    command("plot", tmp_path, "-o", tmp_path / "x.svg")
    command("watch", tmp_path, "--once")
    command("report", tmp_path, "-o", tmp_path / "x.html")


@FUZZ
@given(lines=mutated(LINES), name=st.sampled_from([HISTORY_FILE, SELECTION_FILE]))
def test_headers_and_decisions_of_any_values(tmp_path, lines, name):
    for other in (HISTORY_FILE, SELECTION_FILE):
        (tmp_path / other).unlink(missing_ok=True)
    lines = lines if isinstance(lines, list) else [lines]
    (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = said(read_run, tmp_path)
    assert (
        isinstance(found, RunHistory)
        or f"{name}, line " in found
        or f"{name} is cut short" in found
        or "no scores" in found
        or (name == SELECTION_FILE and "does not say which" in found)
    )
    command("card", tmp_path)
    command("watch", tmp_path, "--once")
    command("plot", tmp_path, "-o", tmp_path / "x.svg")
    command("report", tmp_path, "-o", tmp_path / "x.html")


@FUZZ
@given(state=mutated(STATE))
@example(state={**STATE, "log_history": [{**TRAINED, "learning_rate": 10**400}, ROW]})
def test_trainer_states_of_any_values(tmp_path, state):
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    log = said(read_log_history, checkpoint)
    if isinstance(log, list):
        said(from_log, log)
    command("card", tmp_path)
    command("plot", tmp_path, "-o", tmp_path / "x.svg")
    command("watch", tmp_path, "--once")
    command("report", tmp_path, "-o", tmp_path / "x.html")


@FUZZ
@given(state=mutated({"history": LINES[1:], **HEADER}))
def test_states_of_other_trainers_of_any_values(state):
    found = said(from_state, state)
    assert isinstance(found, RunHistory) or "expected a" in found


@FUZZ
@given(content=st.binary(max_size=200))
def test_trainer_states_of_any_bytes(tmp_path, content):
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "trainer_state.json").write_bytes(content)
    assert isinstance(said(read_log_history, checkpoint), (list, str))
    command("card", tmp_path)


POOLS = {
    ".txt": b"one\ntwo\nthree\nfour\nfive\n",
    ".jsonl": b'{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n{"text": "four"}\n',
    ".json": b'[{"text": "one"}, {"text": "two"}, {"text": "three"}, {"text": "four"}]',
    ".csv": b'text,label\none,1\n"two, too",2\nthree,3\nfour,4\n',
}


@pytest.mark.parametrize("suffix", [*POOLS, ".parquet"])
@FUZZ
@given(data=st.data())
def test_pools_of_any_bytes(tmp_path, suffix, data):
    path = tmp_path / f"pool{suffix}"
    if suffix == ".parquet":
        import datasets

        whole = tmp_path / "whole.parquet"
        if not whole.exists():
            datasets.Dataset.from_dict({"text": ["one", "two", "three", "four"]}).to_parquet(whole)
        content = whole.read_bytes()
    else:
        content = POOLS[suffix]
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=200), damaged(content))))
    found = said(read_pool, path, limit=4)
    assert not isinstance(found, str) or "pool" in found
    found = said(read_labeled, path)
    assert not isinstance(found, str) or "data" in found


@FUZZ
@given(rows=st.lists(anything, min_size=1, max_size=6), suffix=st.sampled_from([".jsonl", ".json"]))
def test_pools_of_any_values(tmp_path, rows, suffix):
    path = tmp_path / f"pool{suffix}"
    path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    said(read_pool, path)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    said(read_pool, path)
    path.write_text(
        "\n".join(json.dumps({"input_ids": row, "attention_mask": [1]}) for row in rows)
    )
    said(read_pool, path)
    path.write_text(
        "\n".join(json.dumps({"input_ids": [1], "token_type_ids": row}) for row in rows)
    )
    said(read_pool, path)
    path.write_text("\n".join(json.dumps({"text": "a", "label": row}) for row in rows))
    said(read_labeled, path)


@FUZZ
@given(data=st.data())
def test_neighbors_and_caches_of_any_bytes(tmp_path, data):
    near = Neighborhoods()
    near.add(1, torch.eye(6, 3))
    path = tmp_path / "near.npz"
    near.save(path, "so")
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    said(Neighborhoods.load, path, "so", 5)
    key = "a" * 64
    store = ObservationCache(tmp_path / "cache")
    path = tmp_path / "cache" / f"{key[:32]}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, points=np.ones((4, 2), np.float32))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    said(store.get, key, torch.device("cpu"))
    (tmp_path / "cache" / "contents.json").write_bytes(data.draw(st.binary(max_size=40)))
    said(ObservationCache, tmp_path / "cache")


@FUZZ
@given(data=st.data())
def test_recorded_runs_of_any_bytes(tmp_path, data):
    arrays = {
        "steps": np.array([1, 2]),
        "pool_e": np.ones((2, 4, 3)),
        "y": np.arange(4),
        "te_acc": np.ones(2),
        "settings": np.array(json.dumps(data.draw(anything))),
    }
    name = data.draw(st.sampled_from([*arrays]))
    if data.draw(st.booleans()):
        arrays[name] = np.array(data.draw(st.sampled_from(["x", 3, [[1.0]], [1, 1], []])))
    path = tmp_path / "run.npz"
    np.savez(path, **arrays)
    found = said(load_run, path)
    assert not isinstance(found, str) or "run.npz" in found
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = said(load_run, path)
    assert not isinstance(found, str) or "run.npz" in found


# Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        make_encoder(seed=step).save_pretrained(folder / f"checkpoint-{step}")
        tokenizer.save_pretrained(folder / f"checkpoint-{step}")
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


PARTS = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", PARTS)
@FEW
@given(data=st.data())
def test_a_damaged_checkpoint_is_skipped_with_a_sentence(run, saved, pool, name, data):
    content = (saved / "checkpoint-2" / name).read_bytes()
    header = content[:600] if name.endswith("safetensors") else content
    broken = data.draw(damaged(header)) + content[len(header) :]
    (run / "checkpoint-2" / name).write_bytes(broken)
    found = said(
        select_checkpoint,
        run,
        pool,
        progress=False,
        cache=False,
        tokenizer=str(saved / "checkpoint-1"),
    )
    assert 1 in found.paths
    assert {record.step for record in found.records} >= {1}
    assert all(found.skipped.values())


@FEW
@given(config=mutated({"hidden_size": 16, "num_hidden_layers": 2, "model_type": "bert"}))
def test_a_config_of_any_values(run, saved, pool, config):
    known = json.loads((saved / "checkpoint-2" / "config.json").read_text())
    changed = known | config if isinstance(config, dict) else config
    (run / "checkpoint-2" / "config.json").write_text(json.dumps(changed))
    found = said(select_checkpoint, run, pool, progress=False, cache=False)
    assert {record.step for record in found.records} >= {1}


@FEW
@given(state=mutated(STATE))
def test_a_log_of_any_values(run, pool, state):
    (run / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    found = said(select_checkpoint, run, pool, progress=False, cache=False)
    assert isinstance(found, str) or len(found.records) == 2


@FUZZ
@given(config=mutated({"id2label": {"0": "glad", "1": "sad"}, "hidden_size": 16}))
def test_a_report_of_a_config_of_any_values(tmp_path, config):
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps(STATE))
    (checkpoint / "config.json").write_text(json.dumps(config))
    (tmp_path / "pool.jsonl").write_bytes(POOLS[".jsonl"])
    command("report", tmp_path, "-o", tmp_path / "x.html")


@pytest.mark.parametrize("name", ["adapter_config.json", "modules.json"])
@FEW
@given(value=anything)
def test_other_kinds_of_checkpoints(run, pool, name, value):
    (run / "checkpoint-2" / name).write_text(json.dumps(value))
    found = said(select_checkpoint, run, pool, progress=False)
    assert {record.step for record in found.records} >= {1}
    assert all(found.skipped.values())


# Nothing in a file is run, and no path in it leads out of its folder


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A module whose import leaves a file."""
    path = tmp_path / "was_run"
    (tmp_path / "trap.py").write_text(
        f"from pathlib import Path\nPath({str(path)!r}).touch()\n"
        "criterion = pooling = policy = print\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


@pytest.mark.parametrize("kind", ["criterion", "pooling"])
@pytest.mark.parametrize("file", ["trainer_state.json", HISTORY_FILE])
def test_recorded_settings_import_nothing(run, pool, marker, kind, file):
    state, lines = copy.deepcopy(STATE), copy.deepcopy(LINES)
    for recorded in (state["log_history"][1][KEY], lines[0][KEY]):
        recorded["settings"][kind] = {"name": f"trap:{kind}"}
        recorded["policy"] = {"name": "trap:policy"}
    if file == HISTORY_FILE:
        (run / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        (run / "checkpoint-2" / file).write_text(json.dumps(state))
    with pytest.raises(ValueError, match=f"the run.s {kind} is its own, trap:{kind}; pass"):
        select_checkpoint(run, pool, progress=False, average=False)
    command("card", run)
    assert not marker.exists()


def test_sharded_weights_outside_the_folder_are_not_read(run, saved, pool):
    checkpoint = run / "checkpoint-2"
    (checkpoint / "model.safetensors").rename(run / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"bert.pooler.dense.bias": "../elsewhere.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    found = select_checkpoint(run, pool, progress=False, average=False)
    assert "outside" in found.skipped[checkpoint]


def test_modules_outside_the_folder_are_not_loaded(run, saved, pool):
    modules = [
        {
            "idx": 0,
            "name": "0",
            "path": "../checkpoint-1",
            "type": "sentence_transformers.models.Transformer",
        }
    ]
    (run / "checkpoint-2" / "modules.json").write_text(json.dumps(modules))
    found = select_checkpoint(run, pool, progress=False, average=False)
    assert "Invalid model path" in found.skipped[run / "checkpoint-2"]


def test_arrays_that_claim_to_be_huge_take_no_memory(tmp_path):
    """A header may say anything: what is not there is not made room for."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    )
    store = ObservationCache(tmp_path)
    for name in ("a" * 32 + ".npz", "near.npz", "run.npz"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for array in ("points", "embedding_key", "steps"):
                file.writestr(f"{array}.npy", header.getvalue())
    assert store.get("a" * 64, torch.device("cpu")) is None
    assert Neighborhoods.load(tmp_path / "near.npz", "so", 5).steps == []
    with pytest.raises(ValueError, match=r"run\.npz"):
        load_run(tmp_path / "run.npz")


@FUZZ
@given(
    content=st.one_of(st.binary(max_size=200), damaged((ROOT / "configs/demo.yaml").read_bytes()))
)
def test_yaml_of_any_bytes(tmp_path, content):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.suppress(SystemExit, ValueError, OSError):
        set_up([f"--config={path}", "--model.name=nowhere"])
    assert "Traceback" not in errors.getvalue()


def test_yaml_makes_no_objects(tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(f"data: !!python/object/apply:pathlib.Path.touch [{tmp_path}/was_run]")
    with pytest.raises(SystemExit):
        set_up([f"--config={path}"])
    assert "python/object" in capsys.readouterr().err
    assert not (tmp_path / "was_run").exists()


# Values from YAML, a command line or a recorded run


@FUZZ
@given(values=st.dictionaries(st.sampled_from(SepStopConfig.names()), anything, max_size=4))
@example(values={"seed": 10**400})
@example(values={"num_resamples": float("nan")})
def test_configurations_of_any_values(values):
    found = said(SepStopConfig.of, values)
    assert isinstance(found, SepStopConfig) or found.startswith("expected")


SETTINGS = (
    {"name": "patience", "patience": 3, "significance": 0.05, "nonfinite": "skip"},
    {"name": "past_peak", "max_drop": 0.3, "max_age": 3, "min_evaluations": 5},
    {"name": "mean", "layer": -1},
    {"name": "component_mi", "min_size": 2},
)


@FUZZ
@given(spec=st.one_of(anything, *map(mutated, SETTINGS)))
def test_settings_of_any_values(spec):
    for kind, known in (("policy", POLICIES), ("criterion", CRITERIA), ("pooling", POOLINGS)):
        said(build, kind, spec, known)


# Scores and points of any values


@FUZZ
@given(values=st.lists(st.floats(), max_size=14), higher_is_better=st.booleans())
@example(values=[0.0, 0.5, float("nan"), 0.4, float("-inf"), 0.1], higher_is_better=True)
def test_policies_decide_on_any_scores(values, higher_is_better):
    scores = {step: Score(value) for step, value in enumerate(values)}
    records = [Record(step, None, {"mi": score}) for step, score in scores.items()]
    series = Series.of(records, "mi", higher_is_better)
    for policy in POLICIES.values():
        found = said(decide, policy(), series)
        if isinstance(found, str):
            assert "higher" in found
            continue
        assert isinstance(found, Decision)
        assert found.best_step == series.best_step
        assert found == decide(policy(), series)
        ended = replay(policy(), series)
        assert ended.stop or ended == found


TEXTS, LOGITS = 8, 3
some_floats = st.floats(width=32)


@FUZZ
@given(
    points=st.lists(some_floats, min_size=TEXTS * 2, max_size=TEXTS * 2),
    logits=st.lists(some_floats, min_size=TEXTS * LOGITS, max_size=TEXTS * LOGITS),
)
@example(points=[0.0] * TEXTS * 2, logits=[0.0] * TEXTS * LOGITS)
@example(points=[3e38, -3e38] * TEXTS, logits=[3e38, -3e38, 1e-45] * TEXTS)
def test_records_of_any_points_and_logits(points, logits):
    scorer = Scorer([one() for one in CRITERIA.values()], draw_resamples(TEXTS, 3, 4, seed=0))
    seen = Observation(
        torch.tensor(points).reshape(TEXTS, 2),
        torch.tensor(logits).reshape(TEXTS, LOGITS),
        token_losses=torch.tensor(points).reshape(TEXTS, 2),
    )
    for step in (0, 1):
        record = said(scorer, seen, step)
        assert list(record.scores) == list(CRITERIA)
        assert not any(math.isinf(score.value) for score in record.scores.values())
