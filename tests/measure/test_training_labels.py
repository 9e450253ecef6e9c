"""Training labels, read without side effects."""

import random
from functools import partial

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import DataCollatorWithPadding

from sepstop.measure.training_labels import training_labels


def loader(rows):
    return DataLoader(rows, batch_size=2)


def test_training_labels_are_those_of_the_first_rows():
    rows = datasets.Dataset.from_dict({"text": ["a"] * 300, "label": list(range(300))})
    assert training_labels(loader(rows)) == list(range(100))
    assert training_labels(loader(rows.rename_column("label", "stars")), ["stars"])[0] == 0
    assert training_labels(loader(rows.rename_column("label", "stars"))) is None
    assert training_labels(loader(rows.with_format("torch")))[3] == 3
    listed = [{"input_ids": [1], "labels": [0.0, 1.0]}, {"input_ids": [2], "labels": [1.0, 1.0]}]
    assert training_labels(loader(listed)) == [[0.0, 1.0], [1.0, 1.0]]
    for nothing in (None, loader([(1, 2)]), loader(["a", "b"]), loader([])):
        assert not training_labels(nothing)


def test_numbers_are_unknown_labels_with_a_custom_collator(tokenizer):
    def hot(rows):
        labels = torch.nn.functional.one_hot(torch.tensor([row["label"] for row in rows]), 3)
        return {"labels": labels.float()}

    numbers = datasets.Dataset.from_dict({"label": [0, 1, 2, 1]})
    vectors = datasets.Dataset.from_dict({"label": [[1.0, 0.0, 0.0]]})
    padding = DataCollatorWithPadding(tokenizer)
    assert training_labels(DataLoader(numbers, collate_fn=padding)) == [0, 1, 2, 1]
    for collator in (hot, partial(hot)):
        assert training_labels(DataLoader(numbers, collate_fn=collator)) is None
    assert training_labels(DataLoader(vectors, collate_fn=hot)) == [[1.0, 0.0, 0.0]]


def test_streamed_data_is_not_iterated():
    begun = []

    def rows():
        begun.append(1)
        yield {"label": 1}

    assert training_labels(loader(datasets.IterableDataset.from_generator(rows))) is None
    assert not begun


class Restless(Dataset):
    """A data set that draws from every kind of random generator."""

    def __init__(self):
        self.generators = random.Random(0), np.random.default_rng(0)
        self.python, self.numpy = self.generators
        self.torch = torch.Generator().manual_seed(0)

    def __len__(self):
        return 200

    def draws(self):
        return [
            *(random.random(), np.random.rand(), float(torch.rand(1))),  # noqa: NPY002
            *(self.python.random(), self.numpy.random()),
            float(torch.rand(1, generator=self.torch)),
        ]

    def __getitem__(self, place):
        return {"input_ids": [1], "labels": [float(draw > 0.5) for draw in self.draws()]}


def test_random_states_do_not_change_and_errors_mean_no_labels():
    def seeded():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        return Restless()

    expected = seeded().draws()
    rows = seeded()
    assert len(training_labels(loader(rows))) == 100
    assert rows.draws() == expected

    plain = datasets.Dataset.from_dict({"label": [0, 1] * 50})
    drawn = plain.with_transform(
        lambda batch: {"labels": [[random.random()]] * len(batch["label"])}
    )
    random.seed(1)
    assert len(training_labels(loader(drawn))[0]) == 1  # as transformed
    expected = random.random()
    random.seed(1)
    assert random.random() == expected

    def broken(batch):
        raise RuntimeError("no such file")

    assert training_labels(loader(plain.with_transform(broken))) is None
