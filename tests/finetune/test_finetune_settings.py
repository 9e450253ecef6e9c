"""Settings in a YAML file and as options, and errors in them."""

from pathlib import Path

import pytest
import yaml

from sepstop.finetune.run import main
from sepstop.finetune.settings import build_parser, read_settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.text_column=text", "has no column 'text'; its columns are body, topic"),
        ("--data.labeled_rows=140", "leaves no pool"),
        ("--data.labeled_rows=0", "expected data.labeled_rows >= 1, got 0"),
        (
            "--data.label_column=body",
            "expected different columns .*, got 'body' for both",
        ),
        ("--data.train=none.csv", "no data file at none.csv"),
        ("--data.validation=test", "data.train is a file, which has no splits: .* got test$"),
    ],
)
def test_bad_settings_are_a_sentence(settings, option, message):
    with pytest.raises((OSError, ValueError), match=message):
        main([f"--config={settings}", option])


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--training.learnin_rate=1", "learnin_rate"),
        ("--sepstop.num_resample=3", "num_resample"),
        ("--sepstop.load_best_at_end=true", "load_best_at_end"),
        ("--sepstop.num_resamples=many", "num_resamples"),
        ("--sepstop.verbose=maybe", "verbose"),
        ("--sepstop.precision=bf8", "precision"),
        ("--sepstop.padding=some", "padding"),
        ("--sepstop.every_n_steps=0", "every_n_steps"),
        ("--data.max_length=long", "max_length"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_unknown_and_ill_typed_settings_are_refused(
    settings, tmp_path, capsys, option, name, in_file
):
    if in_file:
        key, _, value = option.removeprefix("--").partition("=")
        part, _, field = key.partition(".")
        lines = yaml.safe_load(settings.read_text())
        lines[part][field] = yaml.safe_load(value)
        settings.write_text(yaml.safe_dump(lines))
    options = [] if in_file else [option]
    with pytest.raises(SystemExit) as ended:
        main([f"--config={settings}", *options])
    assert name in capsys.readouterr().err + str(ended.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), (16, "text")),
        (("--sepstop.max_length=9",), (9, "text")),
        (('--sepstop={"every_n_steps": 7}',), (16, "text")),
        (("--data.pool=pool.csv",), (16, "body")),
        (("--data.pool=pool.csv", "--sepstop.text_column=words"), (16, "words")),
    ],
)
def test_the_pool_is_read_like_the_data_unless_said_otherwise(settings, options, expected):
    found = read_settings([f"--config={settings}", *options]).sepstop
    assert (found.max_length, found.text_column) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configurations_are_valid(path):
    parser = build_parser()
    config = parser.instantiate(parser.parse_args([f"--config={path}"]))
    assert config.training.max_steps > 0
    assert config.sepstop.load_best_model_at_end is True


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.prompt=no text"], r"expected {text} in data\.prompt, got 'no text'"),
        (["--data.prompt={text}", "--data.answer=yes"], r"expected {label} in data\.answer"),
    ],
)
def test_templates_that_name_nothing(settings, options, said):
    with pytest.raises(ValueError, match=said):
        main([f"--config={settings}", *options])
