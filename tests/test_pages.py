"""The Python and the `sepstop` commands on the pages run as they stand, on tiny models.

Each page runs from top to bottom in a copy of one folder, which has tiny models under the names of
those on the hub, data and finished runs. A block that needs something else says so in a comment
before it: `<!-- not run: REASON -->`, or `<!-- run by TEST_FILE -->`.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from conftest import BAD, GOOD, OTHER, make_decoder, make_encoder, make_texts, make_tokenizer
from helpers.answering import ANSWERS, TRL
from helpers.pages import PAGES, ROOT, pieces_of
from helpers.recorded import toy_run
from helpers.training import train
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import sepstop
from sepstop import SepStopCallback
from sepstop.bench.recorded_run import save_run
from sepstop.cli.main import app
from sepstop.runs.history import HISTORY_FILE, read_history

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DECODER = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONFIGS = ("encoder", "llm_lora", "llm_sft")
CODE = {page: [p for p in pieces_of(page) if not p.mark] for page in PAGES}
SLOW = ("docs/usage.md",)  # `sepstop bench record` takes a minute
IN_OTHER_COMMANDS = {
    piece.code
    for pieces in CODE.values()
    for piece in pieces
    if piece.code.startswith("sepstop run ")
}


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(count, seed=0):
    texts, labels = make_texts(count, seed)
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer, train_rows, pool):
    """A folder with all that the pages name."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    folder = tmp_path_factory.mktemp("world")
    runs = folder / "runs"

    # Models
    make_encoder().base_model.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    words = modules.Transformer(str(folder / "bert"))
    pooling = modules.Pooling(words.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[words, pooling], device="cpu").save(str(folder / ENCODER))
    answering = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer().backend_tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[SEP]",
    )
    answering.backend_tokenizer.post_processor = None
    for name in (DECODER, DECODER.removesuffix("-Instruct")):
        answering.save_pretrained(folder / name)
        make_decoder().save_pretrained(folder / name)

    # Data
    write_rows(folder / "SetFit/bbc-news/train.jsonl", rows_of(160))
    write_rows(folder / "SetFit/bbc-news/test.jsonl", rows_of(30, seed=1))
    named = ({**row, "label": ANSWERS[row["label"]].strip()} for row in rows_of(80))
    write_rows(folder / "PolyAI/banking77/train.jsonl", named)
    write_rows(folder / "pool.jsonl", ({"text": text} for text in pool))
    (folder / "texts.txt").write_text("\n".join(pool))
    write_rows(
        folder / "pairs.jsonl",
        ({"anchor": a, "positive": b} for a, b in pairwise(pool)),
    )
    answered = [{"prompt": row["text"], "completion": ANSWERS[row["label"]]} for row in rows_of(60)]
    write_rows(folder / "train.jsonl", answered)
    write_rows(folder / "prompts.jsonl", ({"prompt": row["text"]} for row in rows_of(100)[60:]))
    (folder / "answers.txt").write_text("\n".join(ANSWERS))
    with (folder / "mine.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["body", "topic"])
        table.writerows([row["text"], ("bad", "good")[row["label"]]] for row in rows_of(1800))

    # Settings of `sepstop finetune`, with fewer rows and steps
    (folder / "configs").mkdir()
    for name in CONFIGS:
        settings = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
        settings["data"]["labeled_rows"] = 40
        settings["sepstop"]["every_n_steps"] = 2
        own = {"output_dir": f"runs/short_{name}", "max_steps": 4, "warmup_steps": 1}
        settings["training"] |= own | {"use_cpu": True}
        (folder / f"configs/{name}.yaml").write_text(yaml.safe_dump(settings))

    page = PAGES["docs/how-to/checkpoints.md"]
    (folder / "my.md.j2").write_text(re.search(r"```jinja\n(.*?)```", page, re.DOTALL)[1])

    # Runs
    for name, seed in (("encoder", 0), ("rate-1e-4", 1), ("rate-3e-5", 2)):
        callback = SepStopCallback(pool, every_n_steps=4, num_resamples=4)
        train(runs / name, tokenizer, train_rows, callback, make_encoder(seed), max_steps=16)
        shutil.copy(folder / "pool.jsonl", runs / name)
    for step in (2, 4):
        checkpoint = runs / f"llm_sft/checkpoint-{step}"
        make_decoder(seed=step).save_pretrained(checkpoint)
        answering.save_pretrained(checkpoint)
    save_run(folder / "RUNS_DIR", toy_run())
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A fresh copy of the world, as the working directory."""
    folder = shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def names(pool, train_rows, tokenizer, make_trainer):
    """What the pages take for granted in Python."""
    return {
        "trainer": make_trainer(None, eval_strategy="no"),
        "model": make_encoder(),
        "tokenizer": tokenizer,
        "pool": pool,
        "train_rows": train_rows,
        "eval_rows": train_rows.select(range(8)),
    }


@pytest.mark.filterwarnings(
    "ignore:.* has no trace of the model before training",
    "ignore:sepstop. the untrained head already predicts the same",
)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in SLOW else ())
        for page, pieces in CODE.items()
        if pieces
    ],
)
def test_a_page_runs(page, here, names):
    for piece in CODE[page]:
        if piece.is_python:
            exec(compile(piece.code, page, "exec"), names)
        elif piece.code not in IN_OTHER_COMMANDS:
            command, _, output = piece.code.partition(" > ")
            done = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
            assert done.exit_code == 0, (piece.code, done.output, done.exception)
            if output:
                Path(output).write_text(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(IN_OTHER_COMMANDS))
def test_another_command_runs(command, here):
    """`sepstop run`, with TRL and with a script."""
    data = [{"path": "json", "data_files": "train.jsonl"}]
    sft = TRL | {"model_name_or_path": DECODER, "datasets": data}
    (here / "sft.yaml").write_text(yaml.safe_dump(sft))
    settings = yaml.safe_dump({"sepstop": {"pool": "texts.txt", "every_n_steps": 2}})
    (here / "settings.yaml").write_text(settings)
    (here / "train.py").write_text(
        f"import runpy, sys\nsys.argv.append('out')\n"
        f"runpy.run_path({str(ROOT / 'tests/helpers/command_run.py')!r}, run_name='__main__')\n"
    )
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | own,
    )
    assert done.returncode == 0, done.stderr
    assert read_history(here / "out" / HISTORY_FILE).records


def test_what_is_not_run_here_says_why():
    for page in PAGES:
        for piece in pieces_of(page):
            if piece.mark.startswith("run by"):
                (file,) = re.findall(r"^run by (\S+\.py)\b", piece.mark)
                assert page in (ROOT / file).read_text(), (page, piece.mark)
            else:
                assert not piece.mark or len(piece.mark) > len("not run: "), page


def test_versions_and_the_head_of_the_skill_file():
    """CITATION.cff has the package's version; the skill has the fields that agents look for."""
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == sepstop.__version__
    name = "sepstop/skills/sepstop/SKILL.md"
    _, head, body = PAGES[name].split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["name"] == Path(name).parent.name
    assert 0 < len(fields["description"]) <= 1024
    assert set(fields) <= {"name", "description", "license"}
    assert CliRunner().invoke(app, ["skill"]).stdout == PAGES[name]
    assert len(body.splitlines()) < 150  # assistants read it whole


def test_the_tiny_words_are_known():
    """Answers that the tiny tokenizer does not know would all be one."""
    assert {answer.strip() for answer in ANSWERS} <= {*GOOD, *BAD, *OTHER}
