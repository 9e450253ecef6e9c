"""A tiny language model that is to answer in words, and its texts, in a folder."""

import contextlib
from pathlib import Path

from conftest import make_decoder, make_texts, make_tokenizer

from sepstop.runs.history import HISTORY_FILE, read_history
from sepstop.runs.records import RunHistory
from sepstop.runs.select import select_checkpoint

ANSWERS = (" awful", " great")

TRL = {
    "output_dir": "out",
    "max_steps": 8,
    "save_steps": 2,
    "eval_strategy": "no",
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
}
"""Settings of a short `trl sft`, without those of the model and the data."""


def write_answering(folder: Path) -> list[tuple[str, str]]:
    """Write ``model/``, ``pool.txt`` and ``answers.txt``; returns 60 prompts and their answers."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder / "model")
    make_decoder().save_pretrained(folder / "model")
    (folder / "pool.txt").write_text("\n".join(make_texts(80)[0][40:]))
    (folder / "answers.txt").write_text("".join(f"{answer}\n" for answer in ANSWERS))
    return [(text, ANSWERS[label]) for text, label in zip(*make_texts(60), strict=True)]


def assert_scored(folder: Path, steps: list[int]) -> RunHistory:
    """The run in ``out/`` was scored at these steps and kept an average; `select` reads it too."""
    history = read_history(folder / "out" / HISTORY_FILE)
    assert [record.step for record in history.records] == steps
    assert any((folder / "out").glob("average-*"))
    with contextlib.chdir(folder):  # an adapter names its base by a relative path
        selection = select_checkpoint("out", "pool.txt", answers="answers.txt")
    assert sorted(selection.paths) == steps
    return history
