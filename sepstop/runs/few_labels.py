"""A few labeled texts in a selection: read them, choose by them, and name more texts to label."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepstop.decide.few_labels import (
    MIN_LABELS,
    LabelChoice,
    choose_by_labels,
    contenders,
    draw_texts,
    telling_texts,
)
from sepstop.decide.selection import Selection
from sepstop.measure.embedding import Observation
from sepstop.measure.monitor import Monitor
from sepstop.measure.pool import Pool
from sepstop.runs.cache import ObservationCache
from sepstop.runs.candidates import Candidates
from sepstop.runs.plan import Plan
from sepstop.types import candidate_name
from sepstop.utils.files import write_atomically
from sepstop.utils.labels import CLASSES_FILE, Labels, class_names, read_labeled

ASK_FILE = "sepstop_ask.jsonl"
"""Texts to label, in the run's folder."""

_UNKNOWN = -1  # class of a candidate that labels can't choose
_MIN_POOL = 4  # texts that a Monitor takes

Classes = NDArray[np.int64]


class FewLabels:
    """The user's labeled texts in the selection of a run, and how many more to ask for.

    Args:
        plan: of the selection.
        labels: table of labeled texts, which need not be in the pool; rows without a label are left
            out. None without labels.
        label_column: its column with the labels. The one with the texts is the configuration's.
        ask: number of texts to write to ``ask_output``.
        ask_output: default: `ASK_FILE` in the run's folder; of a repository on the hub, in the
            working directory.

    Raises:
        FileNotFoundError: no such file of labels.
        FileExistsError: there is a file for the texts to label, which may hold labels.
        ValueError: a pool that is not of texts; no, or too few labels; a label that is no class.
    """

    def __init__(
        self,
        plan: Plan,
        labels: Any,
        label_column: str,
        ask: int,
        ask_output: str | Path | None,
    ) -> None:
        self._plan, self._label_column, self._ask = plan, label_column, ask
        home = plan.run.home if plan.run.store is None else Path()
        self._output = Path(ask_output or home / ASK_FILE)
        self._seen: dict[int, Classes] = {}
        self._num_classes = 0
        if ask < 0:
            raise ValueError(f"expected at least 0 texts to ask for, got {ask}")
        if ask and self._output.exists():
            raise FileExistsError(
                f"{self._output} exists and may hold labels; pass it as labels= (--labels), and "
                "name another file for the texts to label: ask_output= (--ask-output)"
            )
        if not isinstance(plan.monitor.pool.rows[0], str):
            raise ValueError(
                "labels= and ask= (--labels, --ask) need a pool of texts; this one has chat "
                "messages or token ids"
            )
        if isinstance(plan.monitor.observer.answers, int):
            raise ValueError(
                "labels= and ask= (--labels, --ask) need the answers by name, not their number; "
                "pass answers= (--answers)"
            )
        self._texts: list[str] = []
        self._labels = Labels([], (), "")
        if labels is not None:
            self._read(labels)
        self._names = _names_of(plan)
        if self._names:
            self._numbered(self._names)  # raises early

    def _read(self, source: Any) -> None:
        found = read_labeled(source, self._plan.config.text_column, self._label_column, "labels")
        pairs = zip(found.texts["text"], found.labels.values, strict=True)
        labeled = [(text, label) for text, label in pairs if label is not None]
        if len(labeled) < MIN_LABELS:
            raise ValueError(
                f"expected at least {MIN_LABELS} labels in {found.labels.table}, column "
                f"{self._label_column!r}, got {len(labeled)}: fewer can't outweigh the score"
            )
        self._texts = [text for text, _ in labeled]
        self._labels = replace(found.labels, values=[label for _, label in labeled])

    def _numbered(self, names: Sequence[str]) -> Classes:
        """The class of each label, by its name or else by its number."""
        numbers = [str(number) for number in range(len(names))]
        values = set(self._labels.values)
        by_number = values.isdisjoint(names) and values <= set(numbers)
        return self._labels.numbered(numbers if by_number else names)

    # Candidates

    def watching(
        self, on_observed: Callable[[int, Observation], None] | None
    ) -> Callable[[int, Observation], None]:
        """``on_observed`` of a selection, with the predicted classes kept on the way."""

        def keep(step: int, seen: Observation) -> None:
            if seen.logits is None or seen.classes is None:
                raise ValueError(
                    "labels= and ask= (--labels, --ask) compare predicted classes; these models "
                    "predict none: they have no head, or one for labels that do not exclude each "
                    "other"
                )
            self._seen[step] = seen.classes.cpu().numpy()
            self._num_classes = seen.logits.shape[-1]
            if on_observed is not None:
                on_observed(step, seen)

        return keep

    def choose(self, selection: Selection, store: ObservationCache) -> Selection:
        """The selection by score and labels, with the texts to label in their file.

        Raises:
            OSError: the file can't be written.
        """
        decision = selection.decision
        until = decision.step if decision.stop and decision.step is not None else math.inf
        series = selection.series.between(1, until)
        steps = list(series.steps)
        scores = np.array([series.sign * score.value for _, score in series])
        proposed = steps.index(selection.best_step)
        predictions = np.stack([self._seen[step] for step in steps])  # (C, N)
        names = self._names or [str(number) for number in range(self._num_classes)]
        if len(names) != self._num_classes:
            raise ValueError(
                f"config.json or {CLASSES_FILE} names {len(names)} classes, but the models have "
                f"{self._num_classes}"
            )
        compared = contenders(scores, proposed)
        if self._texts:
            labels = self._numbered(names)
            of_labeled = self._of_labeled(predictions, selection, steps, compared, store)
            choice = choose_by_labels(of_labeled, labels, scores, proposed)
            selection = _by_labels(selection, choice, steps)
        if self._ask:
            telling = telling_texts(predictions, scores, proposed)
            drawn = self._drawn(telling)
            rows = [self._question(text, predictions[compared, text], names) for text in drawn]
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            if rows:
                write_atomically(self._output, "".join(lines).encode())
                selection = replace(selection, asked=self._output)
        return selection

    def _of_labeled(
        self,
        predictions: Classes,
        selection: Selection,
        steps: Sequence[int],
        compared: Classes,
        store: ObservationCache,
    ) -> Classes:
        """The classes that the contenders predict for the labeled texts, ``(C, m)``."""
        place = {text: index for index, text in enumerate(self._plan.monitor.pool.rows)}
        new = [text for text in dict.fromkeys(self._texts) if text not in place]
        more = np.full((len(steps), len(new)), _UNKNOWN)
        if new:
            candidates = Candidates(self._plan_for(new), store)
            names = {one.step: candidate_name(one.average) for one in selection.records}
            for index in compared:
                step = steps[index]
                seen = candidates.at(selection.paths[step]).observations[names[step]]
                assert seen.logits is not None
                more[index] = seen.logits.argmax(dim=-1)[: len(new)].cpu().numpy()
        place |= {text: predictions.shape[1] + index for index, text in enumerate(new)}
        return np.hstack([predictions, more])[:, [place[text] for text in self._texts]]

    def _plan_for(self, texts: list[str]) -> Plan:
        """The same candidates on other texts."""
        config = self._plan.config
        config = replace(
            config,
            criterion="entropy",  # needs logits alone
            extra_criteria=(),
            outputs="classes" if config.answers is None else config.outputs,
            pool_size=None,
            resample_size=None,
            progress=False,
        )
        rows = texts * math.ceil(_MIN_POOL / len(texts))
        return replace(self._plan, monitor=Monitor(Pool(tuple(rows)), config))

    # Questions

    def _drawn(self, telling: Classes) -> Classes:
        """Texts of the pool to label."""
        labeled = set(self._texts)
        rows = self._plan.monitor.pool.rows
        known = [index for index in telling.tolist() if rows[index] in labeled]
        drawn = draw_texts(telling, self._ask, self._plan.config.seed, known)
        if len(drawn) < self._ask:
            warnings.warn(
                f"sepstop: {len(drawn) or 'none'} of the {self._ask} texts to label that were "
                "asked for: the candidates agree on all others without a label",
                stacklevel=4,
            )
        return drawn

    def _question(self, text: int, predicted: Classes, names: Sequence[str]) -> dict[str, Any]:
        counts = Counter(predicted.tolist())
        return {
            self._plan.config.text_column: self._plan.monitor.pool.rows[text],
            self._label_column: None,
            "predicted": {names[number]: count for number, count in counts.most_common()},
        }


def _by_labels(selection: Selection, choice: LabelChoice, steps: Sequence[int]) -> Selection:
    """The selection with what labels say about it."""
    choice = replace(
        choice,
        kept=steps[choice.kept],
        proposed=steps[choice.proposed],
        rival=None if choice.rival is None else steps[choice.rival],
    )
    why = f"{selection.decision.reason}; {_in_words(choice)}"
    decision = replace(selection.decision, best_step=choice.kept, reason=why)
    ties = () if choice.is_replaced else selection.ties
    return replace(selection, decision=decision, ties=ties, label_choice=choice)


def _in_words(choice: LabelChoice) -> str:
    if choice.rival is None:
        return f"the {choice.num_labels} labels have no other candidate to choose"
    compared = (
        f"step {choice.kept} is right on {choice.wins} labeled texts where step {choice.rival} is "
        f"wrong, and wrong on {choice.losses} where that one is right"
    )
    if choice.is_replaced:
        return (
            f"but by {choice.num_labels} labels step {choice.kept} is better than step "
            f"{choice.proposed}, which the score alone would keep, with probability "
            f"{min(choice.probability, 0.999):.1%}: {compared}"
        )
    return f"{choice.num_labels} labels do not clearly contradict it: {compared}"


def _names_of(plan: Plan) -> list[str]:
    """Names of the models' classes; empty if they have none."""
    answers = plan.monitor.observer.answers
    if isinstance(answers, list):
        return [one.strip() for one in answers if isinstance(one, str)]
    newest = plan.paths[-1]
    with suppress(OSError, ValueError):
        found = class_names(json.loads((newest / "config.json").read_text()))
        if sorted(found) == list(range(len(found))) and found:
            return [found[number] for number in range(len(found))]
    with suppress(OSError, ValueError):
        names = json.loads((plan.run.home / CLASSES_FILE).read_text())
        if isinstance(names, list):
            return list(map(str, names))
    return []
