"""A tiny language model that is to answer in words, and its texts, in a folder."""

from pathlib import Path

from conftest import make_decoder, make_texts, make_tokenizer

ANSWERS = (" awful", " great")


def write_answering(folder: Path) -> list[tuple[str, str]]:
    """Write ``model/``, ``pool.txt`` and ``answers.txt``; returns 60 prompts and their answers."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder / "model")
    make_decoder().save_pretrained(folder / "model")
    (folder / "pool.txt").write_text("\n".join(make_texts(80)[0][40:]))
    (folder / "answers.txt").write_text("".join(f"{answer}\n" for answer in ANSWERS))
    return [(text, ANSWERS[label]) for text, label in zip(*make_texts(60), strict=True)]
