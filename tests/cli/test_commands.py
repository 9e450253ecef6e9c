"""`sepstop plot`, `card` and `--version`."""

import io
import shutil
import warnings
from pathlib import Path

import pytest
import typer
from conftest import make_encoder
from helpers.training import train
from rich.console import Console
from typer.testing import CliRunner

from sepstop import Plateau, SepStopCallback, select_checkpoint
from sepstop.cli.errors import user_errors
from sepstop.cli.main import app
from sepstop.report.scored_run import read_scored_run
from sepstop.runs.checkpoints import find_checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer, train_rows, pool):
    """A stopped run and its callback."""
    callback = SepStopCallback(
        pool,
        policy=Plateau(window=2, tolerance=0.3, warmup=3),
        criterion="separability",
        extra_criteria=["neighbor_mi"],
        pooling={"name": "cls", "layer": 1},
        every_n_steps=4,
        num_resamples=7,
    )
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, tokenizer, train_rows, callback, make_encoder())
    assert callback.decision.stop
    return folder, callback


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def sepstop(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_section_for_the_model_card(run, finished, tmp_path, encoder):
    result = sepstop("card", run)
    assert result.exit_code == 0, result.output
    callback = finished[1]
    best = next(r for r in callback.history if r.step == callback.decision.best_step)
    assert f"The weights are the {best.average}, chosen without labels by" in result.output
    assert f"in a run of {callback.history[-1].step} training steps" in result.output
    assert f"| separability (decides) | {best.scores['separability']} |" in result.output
    assert f"| neighbor_mi | {best.scores['neighbor_mi']} |" in result.output
    assert result.output.index("(decides)") < result.output.index("| neighbor_mi")
    assert callback.decision.reason in result.output
    assert "(pooling cls, layer 1)" in result.output
    assert "The policy (plateau, " in result.output
    figure = tmp_path / "card" / "scores.svg"
    figure.parent.mkdir()
    result = sepstop("card", run, "--figure", figure)
    assert "](scores.svg)" in result.output
    assert "<svg" in figure.read_text()
    encoder.save_pretrained(tmp_path / "plain" / "checkpoint-1")
    for folder in (tmp_path / "plain", tmp_path / "none"):
        result = sepstop("card", folder)
        assert result.exit_code == 2
        assert result.stderr.startswith("sepstop: no ")


def test_a_template_of_your_own(run, finished, tmp_path):
    record = next(r for r in finished[1].history if r.step == finished[1].decision.best_step)
    template = tmp_path / "my.md.j2"
    template.write_text(
        "{{ decides }} {{ scores[0].at_step }} at {{ step }}/{{ steps }}: {{ weights }}"
        "{{ '!' if is_average }}{{ figure }}\n"
    )
    result = sepstop("card", run, "--template", template)
    score, steps = record.scores["separability"], finished[1].history[-1].step
    assert result.stdout == (f"separability {score} at {record.step}/{steps}: {record.average}!\n")
    for text, message in (
        ("{{ accuracy }}", "'accuracy' is undefined; a template has the variables weights,"),
        ("ok\n{% if %}", f"{template}, line 2: Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "'__class__' of 'str' object is unsafe"),
    ):
        template.write_text(text)
        result = sepstop("card", run, "--template", template, "--figure", tmp_path / "x.png")
        assert result.exit_code == 2
        assert message in result.stderr
        assert not (tmp_path / "x.png").exists()
    assert sepstop("card", run, "--template", tmp_path / "none").exit_code == 2


@pytest.mark.filterwarnings("ignore:.* has no trace of the model before training")
@pytest.mark.parametrize(
    "options", [{}, {"criterion": "sepstop.bench.criteria:TotalPersistence"}], ids=["auto", "lower"]
)
def test_a_selection_is_shown_alike(tmp_path, tokenizer, train_rows, pool, options):
    run = tmp_path / "run"
    train(run, tokenizer, train_rows, None, make_encoder(), max_steps=16)
    selection = select_checkpoint(run, pool, progress=False, **options, average=False)
    shown, decision = read_scored_run(run), selection.decision
    assert repr(shown.records) == repr(selection.records)
    assert shown.decision == decision
    assert shown.decides == selection.decides
    assert shown.higher_is_better == selection.higher_is_better
    assert shown.settings == selection.settings
    said = sepstop("card", run).output
    assert f"The choice: {decision.reason}" in " ".join(said.split())
    assert f"from step {selection.best_step} of 16 training steps" in said
    assert f"| {selection.decides} (decides) | {selection.pick} |" in said


def test_a_figure_of_a_run(run, finished, tmp_path):
    shown = read_scored_run(run)
    assert shown.decides == "separability"
    assert list(shown.records) == finished[1].history
    assert shown.decision == finished[1].decision
    figure = tmp_path / "run.png"
    result = sepstop("plot", run, "-o", figure)
    assert result.exit_code == 0, result.output
    assert figure.stat().st_size > 5000
    for checkpoint in find_checkpoints(run).values():
        shutil.rmtree(checkpoint)
    assert read_scored_run(run) == shown
    result = sepstop("plot", tmp_path)
    assert result.exit_code == 2
    assert "no scores in" in result.stderr


def test_version():
    assert sepstop("--version").stdout.startswith("sepstop 0.")


def test_errors_and_warnings_are_one_line_each_in_a_file():
    path = Path("folder of runs") / ("a long name" * 12)
    console = Console(file=io.StringIO())

    @user_errors(console)
    def command():
        warnings.warn(f"sepstop: no label in {path}", UserWarning, stacklevel=1)
        raise FileNotFoundError(f"no folder at {path}")

    with pytest.raises(typer.Exit):
        command()
    lines = [f"sepstop: no folder at {path}", f"sepstop: no label in {path}"]
    assert console.file.getvalue().splitlines() == lines


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), user_errors(Console(file=io.StringIO())):
        1 / 0  # noqa: B018
