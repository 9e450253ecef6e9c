"""Check of an installed package: the README's example, and the commands on its run.

    python -m venv fresh && fresh/bin/pip install dist/*.whl
    fresh/bin/python scripts/check_package.py

The model and the texts are made up. Nothing of the source tree but the README is used.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
BIN = Path(sys.executable).parent
TOPICS = {
    "sea": ["ship", "wave", "harbor", "sail", "tide", "anchor"],
    "sky": ["cloud", "wing", "storm", "moon", "star", "rain"],
}
TEXTS_OF_EACH = 40


def main() -> None:
    import sepstop

    source = README.parent / "sepstop"
    if Path(sepstop.__file__).parent == source:
        raise SystemExit(f"expected an installed sepstop, got the source tree {source}")
    print(f"sepstop {version('sepstop')}, Python {sys.version.split()[0]}")
    print(f"import sepstop: {seconds_of(sys.executable, '-c', 'import sepstop'):.2f} s, of which")
    print(f"Python itself: {seconds_of(sys.executable, '-c', 'pass'):.2f} s")
    print(f"sepstop --help: {seconds_of(BIN / 'sepstop', '--help'):.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
        for command in (
            "select {0}/run --pool {0}/pool.txt",
            "card {0}/run",
            "watch {0}/run --once",
        ):
            subprocess.run([BIN / "sepstop", *command.format(folder).split()], check=True)


def seconds_of(*command: Any) -> float:
    """The shortest of three calls."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


def train(folder: Path) -> None:
    """Run the README's example in ``folder``; writes the pool beside the run."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", *(word for topic in TOPICS.values() for word in topic)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[PAD]"
    )
    draw = random.Random(0)
    labeled = [
        (" ".join(draw.choices(topic, k=8)), label)
        for label, topic in enumerate(TOPICS.values())
        for _ in range(TEXTS_OF_EACH)
    ]
    pool = [text for text, _ in labeled]
    (folder / "pool.txt").write_text("\n".join(pool))
    rows = Dataset.from_list([{**tokenizer(text), "label": label} for text, label in labeled[::4]])
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16, num_labels=len(TOPICS),
    )  # fmt: skip
    names = {
        "pool": pool,
        "model": BertForSequenceClassification(config),
        "tokenizer": tokenizer,
        "train_rows": rows,
    }
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    with contextlib.chdir(folder):
        exec(example, names)
    print(names["callback"].decision.reason)


if __name__ == "__main__":
    main()
