"""DeepSpeed on two CPU processes; it compiles its own communication, which takes a compiler.

DS_BUILD_OPS=0 pip install deepspeed
python -m pytest -m slow tests/callbacks/test_deepspeed.py
"""

import re
from importlib.util import find_spec

import pytest
from helpers.launch import torchrun
from helpers.scores import values

from sepstop.runs.history import read_history

pytestmark = pytest.mark.slow

RUN = """
import sys
from pathlib import Path

import datasets
from conftest import make_encoder, make_texts, make_tokenizer
from transformers import Trainer, TrainingArguments

from sepstop import Patience, SepStopCallback
from sepstop.runs.history import write_history

out, stage, average = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "average"
tokenizer, (texts, labels) = make_tokenizer(), make_texts(64, seed=2)
rows = datasets.Dataset.from_dict({"text": texts, "label": labels})
rows = rows.map(lambda batch: tokenizer(batch["text"]), batched=True)
deepspeed = {
    "zero_optimization": {"stage": stage},
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
}
callback = SepStopCallback(
    make_texts(41, seed=1)[0],
    policy=Patience(patience=None),
    num_resamples=3,
    average=average,
    verbose=False,
)
trainer = Trainer(
    model=make_encoder(dropout=0.0),
    args=TrainingArguments(
        str(out / "run"),
        max_steps=12,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
        max_grad_norm=0,  # Trainer scales the loss by the number of processes; Adam does not mind
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        deepspeed=deepspeed if stage else None,
    ),
    train_dataset=rows,
    eval_dataset=rows.select(range(8)),
    processing_class=tokenizer,
    callbacks=[callback],
)
trainer.train()
path = out / f"stage{stage}-rank{trainer.args.process_index}.jsonl"
write_history(path, callback.session.recorded())
"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Runs both ranks with a stage of ZeRO; 0 is without DeepSpeed."""
    if find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed")
    out = tmp_path_factory.mktemp("deepspeed")
    (out / "run.py").write_text(RUN)

    def run(stage, scored, succeeds=True):
        arguments = out / "run.py", out, stage, scored
        done = torchrun(*arguments, processes=2, succeeds=succeeds, DS_ACCELERATOR="cpu")
        return out, done

    return run


@pytest.fixture(scope="module")
def history(launch):
    """The records of both ranks."""

    def of(stage, scored):
        out, _ = launch(stage, scored)
        return [read_history(out / f"stage{stage}-rank{rank}.jsonl").records for rank in (0, 1)]

    return of


@pytest.mark.parametrize(("stage", "scored"), [(2, "average"), (3, "checkpoint")])
def test_a_divided_run_has_the_scores_of_an_undivided_one(history, stage, scored):
    first, second = history(stage, scored)
    assert first == second
    plain = history(0, scored)[0]
    assert [record.step for record in first] == [3, 6, 9, 12]
    assert all((record.average is not None) is (scored == "average") for record in first)
    for name in ("separability", "robust_mi"):
        assert values(first, name) == pytest.approx(values(plain, name), rel=1e-3)
    assert len({round(value, 4) for value in values(first, "separability")}) == 4


def test_weights_that_stage_3_divides_can_not_be_averaged(launch):
    _, done = launch(3, "average", succeeds=False)
    assert done.returncode != 0
    assert re.search(r"ValueError: .*ZeRO.*set average=False", done.stderr), done.stderr[-3000:]
