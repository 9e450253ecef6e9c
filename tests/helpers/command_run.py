"""A training script that knows nothing of sepstop: two Trainers, the first of which trains.

python tests/helpers/command_run.py OUT
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import torch.distributed as dist
from conftest import make_texts, make_tokenizer

from helpers.training import trainer_of


def main(out: Path) -> None:
    texts, labels = make_texts(40, seed=1)
    tokenizer = make_tokenizer()
    rows = datasets.Dataset.from_dict(dict(tokenizer(texts)) | {"labels": labels})
    trainer, other = (trainer_of(tokenizer, rows, out, None, max_steps=4) for _ in range(2))
    trainer.train()
    found = {
        "first": [type(one).__name__ for one in trainer.callback_handler.callbacks],
        "second": [type(one).__name__ for one in other.callback_handler.callbacks],
        "theirs": sys.modules["sitecustomize"].__file__,
    }
    (out / f"found_{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()  # without it, gloo's threads sometimes abort on exit


if __name__ == "__main__":
    main(Path(sys.argv[1]))
