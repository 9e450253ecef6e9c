"""Several processes measure as one and decide alike; they run helpers/distributed_run.py."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launch import TESTS, torchrun

from sepstop.runs.history import read_history
from sepstop.utils.distributed import Ranks

SCRIPT = TESTS / "helpers" / "distributed_run.py"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What each of so many processes found, run once."""
    known = {}

    def run(processes):
        if processes not in known:
            out = tmp_path_factory.mktemp(f"processes{processes}")
            torchrun(SCRIPT, out, processes=processes)
            files = [out / f"rank{rank}.json" for rank in range(processes)]
            known[processes] = [json.loads(file.read_text()) for file in files]
        return known[processes]

    return run


SEVERAL = pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_place_is_dealt_and_all_get_as_many(count, size):
    hands = [Ranks(rank, size).share(count) for rank in range(size)]
    assert {len(hand) for hand in hands} == {math.ceil(count / size)}
    in_turn = [hands[place % size][place // size] for place in range(count)]
    assert in_turn == list(range(count))


def test_alone_nothing_is_shared_out():
    assert not Ranks.of_run().size > 1
    with pytest.raises(ZeroDivisionError):
        Ranks().together(lambda: 1 / 0)


@SEVERAL
@pytest.mark.parametrize(
    ("model", "run"),
    [
        *((model, model) for model in ("encoder", "causal", "words")),
        *((model, f"sharded {model}") for model in ("encoder", "causal", "words")),
        ("encoder", "sharded encoder in small batches"),
    ],
)
def test_a_model_scores_as_in_one_process(ran, processes, model, run):
    alone = ran(1)[0][model]
    for one in ran(processes):
        found = one[run]
        assert (
            set(found["scores"])
            == {
                "encoder": {"robust_mi", "separability"},
                "causal": {"component_mi", "separability"},
                "words": {"entropy", "pool_loss"},
            }[model]
        )
        for name, score in found["scores"].items():
            for key in ("resample_values", "low"):
                assert score[key] == pytest.approx(alone["scores"][name][key], rel=1e-5)
        assert found["pool_size"] == alone["pool_size"]


@SEVERAL
def test_one_rank_measures_a_ddp_model_without_the_others(ran, processes):
    """DDP's own forward pass would wait for them, to have the same buffers."""
    first = ran(processes)[0]
    expected = ran(1)[0]["encoder"]["scores"]["separability"]["value"]
    assert first["ddp on one rank"] == pytest.approx(expected, rel=1e-5)


@SEVERAL
def test_a_run_has_the_records_and_decisions_of_one_process(ran, processes):
    (alone,) = ran(1)
    for name in ("run", "stop", "stop again"):
        first, *others = [found[name] for found in ran(processes)]
        assert others == [first] * (processes - 1)  # seconds included: one record for all
        assert first["steps"] == alone[name]["steps"]
        for key in ("stop", "best_step", "step"):
            assert first["decision"][key] == alone[name]["decision"][key]
        # The training itself differs by its sums; to be told from a wrong pool, not much.
        scores, expected = (found_scores(run) for run in (first, alone[name]))
        assert scores == pytest.approx(expected, rel=1e-3)
    for name, recorded in ran(processes)[0]["recorded"].items():
        run = ran(processes)[0][name]
        assert recorded["records"] == run["history"]
        assert recorded["decisions"][-1] == run["decision"]
        assert recorded["ended"] == (6 if name == "stop again" else 12)
    assert ran(processes)[0]["stop"]["decision"]["stop"]
    assert ran(processes)[0]["stop"]["steps"] == 6


@SEVERAL
def test_the_clock_of_the_first_process_says_what_is_left_out(ran, processes):
    for found in ran(processes):
        run = found["budget"]
        assert run["failed"] is None
        assert [record["step"] for record in run["history"]] == [2, 6, 10, 12]


@SEVERAL
def test_averages_are_kept_loaded_and_resumed_as_in_one_process(ran, processes):
    (alone,) = ran(1)
    for name in ("averages", "resumed averages"):
        first, *others = [found[name] for found in ran(processes)]
        assert others == [first] * (processes - 1)
        assert first["failed"] is None
        expected = alone["averages"]
        assert first["best"] == expected["best"] == f"average-{first['decision']['best_step']}"
        assert [one["average"] for one in first["history"]] == [
            one["average"] for one in expected["history"]
        ]
        assert all(one["average"] for one in first["history"])
        assert found_scores(first) == pytest.approx(found_scores(expected), rel=1e-3)
        assert first["differ"] == []  # the best average is loaded
    first = ran(processes)[0]
    for key in ("weights", "best", "decision"):  # bit for bit
        assert first["resumed averages"][key] == first["averages"][key]
    assert found_scores(first["resumed averages"]) == found_scores(first["averages"])


@SEVERAL
def test_averages_of_a_divided_model_in_a_trainer(ran, processes):
    """Under FSDP2 each rank averages its shard; the best average is a whole model again."""
    (alone,) = ran(1)
    expected = alone["averages"]
    for found in ran(processes):
        run, resumed = found["FSDP2"], found["resumed FSDP2"]
        assert run["failed"] is None
        assert run["shards"] == len(run["weights"])
        assert run["best"] == expected["best"]
        assert [one["average"] for one in run["history"]] == [
            one["average"] for one in expected["history"]
        ]
        assert found_scores(run) == pytest.approx(found_scores(expected), rel=1e-3)
        assert run["differ"] == []
        for key in ("weights", "best", "decision"):
            assert resumed[key] == run[key]
        assert found_scores(resumed) == found_scores(run)


def found_scores(run):
    """The separability at each record."""
    return [record["scores"]["separability"]["value"] for record in run["history"]]


@SEVERAL
def test_an_error_on_one_rank_is_skipped_on_all(ran, processes):
    for found in ran(processes):
        run = found["skip"]
        assert run["failed"] is None
        assert run["steps"] == 12
        assert list(map(math.isfinite, found_scores(run))) == [True, False, False, False]
        assert run["decision"]["best_step"] == 3


@SEVERAL
def test_an_error_on_one_rank_ends_all_if_told_so(ran, processes):
    *others, last = [found["raise"] for found in ran(processes)]
    assert last["failed"] == "ZeroDivisionError: broken on purpose"
    assert {run["failed"] for run in others} == {
        f"RankError: rank {processes - 1}: ZeroDivisionError: broken on purpose"
    }
    assert {run["steps"] for run in [*others, last]} == {6}


@SEVERAL
def test_an_average_that_one_rank_can_not_apply_is_skipped_on_all(ran, processes):
    for found in ran(processes):
        run = found["full"]
        assert (run["failed"], run["steps"]) == (None, 12)
        assert not any(map(math.isfinite, found_scores(run)))


@SEVERAL
def test_the_averages_state_is_moved_into_a_complete_checkpoint(ran, processes):
    for found in ran(processes):
        assert found["slow first"]["complete"] == [True, True]


@SEVERAL
def test_averages_that_one_rank_can_not_update_are_given_up_on_all(ran, processes):
    """Also if a checkpoint is saved before the next score."""
    for found in ran(processes):
        run = found["not updated"]
        assert (run["failed"], run["steps"]) == (None, 12)
        assert [record["average"] for record in run["history"]] == [None, None]
        assert all(map(math.isfinite, found_scores(run)))


@SEVERAL
def test_pools_that_differ_are_said_before_the_first_step(ran, processes):
    for found in ran(processes):
        assert "expected the same pool on all" in found["other pool"]["failed"]
        assert found["other pool"]["steps"] == 0


LOOP = """
import sys
from pathlib import Path

import torch
from conftest import make_encoder, make_texts, make_tokenizer

torch.manual_seed(0)
model, tokenizer = make_encoder(), make_tokenizer()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
pool, (texts, labels) = make_texts(41, seed=1)[0], make_texts(64)
rows = tokenizer(texts, padding=True, return_tensors="pt")
rows = [
    {{"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(label)}}
    for ids, mask, label in zip(rows["input_ids"], rows["attention_mask"], labels, strict=True)
]
loader = torch.utils.data.DataLoader(rows, batch_size=2, shuffle=True)

{loop}
from sepstop.runs.history import write_history

assert accelerator.num_processes == 2
from sepstop.runs.records import RunHistory

run = RunHistory(
    tuple(records),
    (None,) * len(records),
    decides=monitor.decides,
    higher_is_better=monitor.higher_is_better,
)
write_history(Path(sys.argv[1]) / f"rank{{accelerator.process_index}}.jsonl", run)
accelerator.end_training()
"""


def test_the_documented_loop_under_accelerate_launch(tmp_path):
    usage = Path(__file__).parents[2].joinpath("docs/usage.md").read_text()
    loop = next(part for part in usage.split("```") if "import Accelerator" in part)
    script = tmp_path / "loop.py"
    script.write_text(LOOP.format(loop=loop.removeprefix("python\n")))
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    options = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    # Its launcher of several processes is named after GPUs; this makes them use the CPU.
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    own = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *launch,
            *options,
            "--main_process_port=0",
            str(script),
            str(tmp_path),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | own,
        cwd=tmp_path,  # it saves the best weights there
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (read_history(tmp_path / f"rank{rank}.jsonl") for rank in (0, 1))
    assert first == second
    assert first.series.name == "robust_mi"
    assert first.series.steps == (5, 10, 15)
    assert all(score.is_finite for record in first.records for score in record.scores.values())
