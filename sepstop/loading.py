"""The model in a checkpoint folder, whatever kind it is of."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of weights, by the name that a user gives."""


class Bases:
    """The base of the adapter that was loaded last, so that the next one needs no other."""

    def __init__(self) -> None:
        self._key: Any = None
        self._adapted: Any = None

    def base(self, key: Any, load: Callable[[], nn.Module]) -> nn.Module:
        """The base of that key, without the last adapter; loaded if it is another."""
        adapted, self._adapted = self._adapted, None
        if adapted is not None and key == self._key:
            whole = adapted.active_peft_config.is_prompt_learning
            return adapted.get_base_model() if whole else adapted.unload()
        self._key = key
        return load()

    def keep(self, adapted: nn.Module) -> None:
        self._adapted = adapted


def load_model(
    checkpoint: str | Path,
    trust_remote_code: bool = False,
    with_head: bool = False,
    bases: Bases | None = None,
) -> nn.Module:
    """The model in a checkpoint folder.

    Args:
        with_head: with its classification head, where it has one.
        bases: keeps the base of an adapter for the next; the last model is then taken apart.

    Raises:
        ValueError: weights are missing from the folder.
    """
    path = Path(checkpoint)
    _check_shards(path)
    with _quiet_transformers():
        if (path / "adapter_config.json").is_file():
            return _load_adapter(path, trust_remote_code, Bases() if bases is None else bases)
        if (path / "modules.json").is_file():
            return _load_sentence_transformer(path, trust_remote_code)
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        trained = " ".join(config.architectures or ())
        classifies = with_head and "ForSequenceClassification" in trained
        auto_class = AutoModelForSequenceClassification if classifies else AutoModel
        model, info = auto_class.from_pretrained(
            path, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    # A pooler on top of the hidden states takes no part in the embedding.
    missing = sorted(key for key in info["missing_keys"] if classifies or "pooler" not in key)
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, among them {missing[0]}")
    return model


def _check_shards(path: Path) -> None:
    """An index of sharded weights may name files of its own folder only."""
    for index in path.glob("*.index.json"):
        shards = json.loads(index.read_text()).get("weight_map", {}).values()
        for shard in set(map(str, shards)):
            if Path(shard).is_absolute() or ".." in Path(shard).parts:
                raise ValueError(f"{index.name} names weights outside its folder: {shard!r:.80}")


def _load_sentence_transformer(path: Path, trust_remote_code: bool) -> nn.Module:
    """With the pooling of its own; a folder's own modules are code, and need to be allowed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            "a SentenceTransformer needs its library: pip install sentence-transformers"
        ) from error

    kinds = [str(module.get("type")) for module in json.loads((path / "modules.json").read_text())]
    foreign = [kind for kind in kinds if not kind.startswith("sentence_transformers.")]
    foreign += sorted(file.name for file in path.rglob("*.py"))
    if foreign and not trust_remote_code:
        raise ValueError(
            f"{path.name} brings code of its own, {foreign[0]}; trust_remote_code "
            "(--trust-remote-code) allows it"
        )
    return SentenceTransformer(str(path), device="cpu", trust_remote_code=trust_remote_code)


def _load_adapter(path: Path, trust_remote_code: bool, bases: Bases) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise ValueError("a PEFT adapter needs peft: pip install 'sepstop[peft]'") from error
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = peft.PeftConfig.from_pretrained(str(path))
    # Names of the adapted modules start at the class that was trained.
    base_class: Any = {
        "CAUSAL_LM": AutoModelForCausalLM,
        "SEQ_CLS": AutoModelForSequenceClassification,
    }.get(str(getattr(config.task_type, "value", config.task_type)), _adapted_class(config))
    classes = {}
    if base_class is AutoModelForSequenceClassification:
        # The head that was trained may have more labels than the base's.
        labels = _labels_of_head(peft.load_peft_weights(str(path), device="cpu"))
        classes = {"ignore_mismatched_sizes": True} | ({"num_labels": labels} if labels else {})
    source = config.base_model_name_or_path
    base = bases.base(
        (source, base_class, classes),
        lambda: base_class.from_pretrained(source, trust_remote_code=trust_remote_code, **classes),
    )
    # PEFT reports what does not fit in a warning, a key a line.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base, str(path), ignore_mismatched_sizes=True)
    report = "\n".join(str(warning.message) for warning in caught)
    misfits = re.findall(r"^\s*- (?!.*modules_to_save)(.+): found shape", report, re.MULTILINE)
    if misfits:
        raise ValueError(f"the adapter does not fit {source}: {misfits[0]} has another shape")
    if "missing adapter keys" in report:  # a model without it would be scored in its place
        raise ValueError(
            f"the adapter does not fit {type(base).__name__} of {source}: "
            "weights are missing, or their modules are called otherwise"
        )
    bases.keep(model)
    return model


def _adapted_class(config: Any) -> Any:
    """The class of the base that PEFT notes where an adapter has no task, if it is a known one."""
    import transformers

    noted = config.auto_mapping or {}
    if str(noted.get("parent_library", "")).startswith("transformers."):
        return getattr(transformers, str(noted.get("base_model_class")), transformers.AutoModel)
    return transformers.AutoModel


def _labels_of_head(weights: dict[str, torch.Tensor]) -> int | None:
    """Rows of the last linear layer under one of the names that classification heads have."""
    heads = [
        weight.shape[0]
        for key, weight in weights.items()
        if re.search(r"\.(score|classifier|out_proj)\.weight$", key) and weight.ndim == 2
    ]
    return heads[-1] if heads else None


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No report of unused head weights and no bar for each checkpoint."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
