"""Language models that learn to answer with the name of the class."""

import json
from pathlib import Path

import pytest
from conftest import WORDS, make_decoder, make_texts, make_tokenizer

from sepstop import select_checkpoint
from sepstop.finetune.run import main, set_up

CHAT = (
    "{% for m in messages %}{{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}[SEP]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}film {% endif %}"
)


@pytest.mark.parametrize("chat", [False, True])
def test_a_language_model_learns_to_answer(tmp_path, settings, monkeypatch, chat):
    """It is scored by its answers, in training and afterwards."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    if chat:
        tokenizer.chat_template = CHAT
    make_decoder().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts, labels = make_texts(140)
    words = [("awful", "great")[label] for label in labels]
    rows = [{"body": text, "topic": word} for text, word in zip(texts, words, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer, callback = main(
        [
            f"--config={settings}",
            f"--data.train={tmp_path / 'rows.jsonl'}",
            "--data.prompt=the {text} was",
            f"--data.answer={'{label}' if chat else ' {label}'}",
            f"--data.chat={str(chat).lower()}",
            "--sepstop.pooling=auto",
            "--sepstop.criterion=infomax",
            "--sepstop.policy=auto",
            "--sepstop.average=false",
        ]
    )
    run = Path(trainer.args.output_dir)
    assert callback.session.decides == "infomax"
    assert json.loads((run / "classes.json").read_text()) == ["awful", "great"]
    shown = callback.monitor.observer.tokens(trainer.model).ids[0]
    assert [WORDS[i] for i in shown][-1] == ("film" if chat else "was")
    chosen = select_checkpoint(run, run / "pool.jsonl", average=False, progress=False)
    recorded = {record.step: record.scores["infomax"].value for record in callback.history}
    for record in chosen.records:
        assert record.scores["infomax"].value == pytest.approx(recorded[record.step], rel=1e-3)


def test_answers_can_be_treated_as_unknown(tmp_path, settings):
    make_decoder().save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "model")
    _, callback, *_ = set_up(
        [f"--config={settings}", "--data.prompt=the {text} was", "--sepstop.answers=3"]
    )
    assert callback.monitor.settings["answers"] == 3
