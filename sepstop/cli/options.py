"""Command-line options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sepstop.config import SepStopConfig

if TYPE_CHECKING:
    from sepstop.runs.loading import Loading

POOL_HELP = "Unlabeled texts: .txt (one per line), .jsonl, .json, .csv or .parquet."

# Configuration: the names are those of `SepStopConfig`.

TextColumn = Annotated[str, typer.Option(help="Column of the pool with the texts.")]
PoolSize = Annotated[int | None, typer.Option(help="Sample a larger pool down to this many texts.")]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="Score that decides: auto, robust_mi, neighbor_mi, separability, ..., or "
        "module:attribute. Default: the run's own, else auto."
    ),
]
ExtraCriteria = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated scores to show beside the one that decides, from the same forward "
        "pass. Default: those that the run recorded."
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        help="Replay a policy on the scores: auto, past_peak, patience, plateau, first_optimum or "
        "module:attribute. Default: every checkpoint is a candidate."
    ),
]
Pooling = Annotated[
    str | None, typer.Option(help="Pooling of the tokens: auto, mean, cls, last or module:attr.")
]
Layer = Annotated[int | None, typer.Option(help="Hidden layer to pool. -1 is the last.")]
NumResamples = Annotated[int | None, typer.Option(help="Number of resamples of the pool.")]
ResampleSize = Annotated[int | None, typer.Option(help="Texts in a resample.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the pool's sample and of the resamples.")]
MaxLength = Annotated[int | None, typer.Option(help="Truncate texts to this many tokens.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Texts in a forward pass. Default: as many as have 16384 tokens, 2048 on a CPU. "
        "Halved when memory runs out."
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option(help="Folder or hub name. Default: the one saved with checkpoints.")
]
Outputs = Annotated[
    str | None,
    typer.Option(
        help="Outputs of the models: classes (one out of k), labels (yes or no for each) or none. "
        "Default: as the run recorded, else inferred."
    ),
]
Answers = Annotated[
    str | None,
    typer.Option(
        help="File with the answers that the models may give to the prompts of the pool, one a row "
        "(of a table, the column answer); or, if they are unknown, a guess at their number. "
        "Default: as the run recorded."
    ),
]
AnswerEnd = Annotated[
    str | None,
    typer.Option(help="Text that training puts after an answer, such as the end-of-text token."),
]
Average = Annotated[
    bool | None,
    typer.Option(
        "--average/--no-average",
        help="Score averages of the checkpoints so far instead of the checkpoints themselves. "
        "Default: yes, for checkpoints that are surely of one run.",
    ),
]
ScoreCheckpoints = Annotated[
    bool | None,
    typer.Option(
        "--score-checkpoints",
        help="Score each checkpoint beside its averages. The best of them is kept.",
    ),
]
AverageDevice = Annotated[
    str | None,
    typer.Option(help="Device of the sums, 8 bytes a weight. Default: that of the weights."),
]

# Loading: the names are those of `sepstop.runs.loading.Loading`.

BaseModel = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub name of the model that training started from. Adapters are loaded "
        "onto it, and scores refer to its neighbors if the run left none. "
        "Default: the base that adapters name."
    ),
]
ModelClass = Annotated[
    str | None, typer.Option(help="Class of the models, as module:Class, if it is your own.")
]
Adapter = Annotated[
    str | None, typer.Option(help="Name of the adapter, if checkpoints have several.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU if there is one.")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Cast weights to float32, bfloat16 or float16. Default: as saved."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings.")
]
Cache = Annotated[bool, typer.Option(help="Keep embeddings in sepstop_cache in the run's folder.")]


def config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `SepStopConfig` that the user gave.

    Args:
        arguments: of a command, by name; None for those that were not given.

    >>> config_of({"seed": 3, "outputs": None, "extra_criteria": "infomax, entropy", "top": 5})
    {'extra_criteria': ['infomax', 'entropy'], 'seed': 3}
    >>> config_of({"pooling": "cls", "layer": 6})
    {'pooling': {'name': 'cls', 'layer': 6}}
    """
    given = {
        name: arguments[name] for name in SepStopConfig.names() if arguments.get(name) is not None
    }
    if "extra_criteria" in given:
        names = given["extra_criteria"].split(",")
        given["extra_criteria"] = [name.strip() for name in names if name.strip()]
    if arguments.get("layer") is not None:
        name = {"name": given["pooling"]} if "pooling" in given else {}
        given["pooling"] = name | {"layer": arguments["layer"]}
    return given


def loading_of(arguments: Mapping[str, Any]) -> Loading:
    """The loading options among the arguments of a command.

    Raises:
        ValueError: unknown dtype.
    """
    from sepstop.runs.loading import Loading

    return Loading(**{field.name: arguments[field.name] for field in fields(Loading)})
