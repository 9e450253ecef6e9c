import math
import random
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import make_decoder, make_decoder_classifier, make_encoder

from sepstop import Monitor, Plateau, h0_separability
from sepstop.criteria import CRITERIA
from sepstop.measure.embedding import MeanPooling, embed, observe
from sepstop.measure.tokens import drop_tokens


@pytest.fixture
def monitor(pool, tokenizer):
    return Monitor(pool, tokenizer=tokenizer, resamples=6, resample_size=30)


def test_the_record_is_the_mean_over_the_resamples(monitor, encoder, pool, tokenizer):
    record = monitor.measure(encoder, step=7, epoch=0.5)
    tokens = [torch.tensor(ids) for ids in tokenizer(pool)["input_ids"]]
    points = embed(encoder, tokens, MeanPooling())
    scores = [h0_separability(points[chosen]).item() for chosen in monitor.resamples]
    assert record.resamples == pytest.approx(scores, abs=1e-6)
    assert record.score == pytest.approx(sum(scores) / 6, abs=1e-6)
    assert record.low < record.score < record.high
    assert (record.step, record.epoch, record.pool_size, record.resample_size) == (7, 0.5, 80, 30)
    assert record.seconds > 0


def test_measuring_twice_gives_the_same_record(monitor, encoder, pool, tokenizer):
    first, second = monitor.measure(encoder, 1), monitor.measure(encoder, 1)
    again = Monitor(pool, tokenizer=tokenizer, resamples=6, resample_size=30).measure(encoder, 1)
    assert first.resamples == second.resamples == again.resamples


def test_texts_tokens_and_files_are_the_same_pool(monitor, encoder, pool, tokenizer, tmp_path):
    expected = monitor.measure(encoder, 1).resamples
    padded = tokenizer(pool, padding=True)
    tokens = datasets.Dataset.from_dict(dict(padded))
    (tmp_path / "pool.txt").write_text("\n".join(pool))
    for other in (tokens, tmp_path / "pool.txt", datasets.Dataset.from_dict({"text": pool})):
        given = None if other is tokens else tokenizer
        record = Monitor(other, tokenizer=given, resamples=6, resample_size=30).measure(encoder, 1)
        assert record.resamples == expected


def test_a_tokenizer_without_padding_token_works(pool, bare_tokenizer):
    record = Monitor(pool, "last", tokenizer=bare_tokenizer).measure(make_decoder(), 1)
    assert record.is_finite


def test_the_tokenizer_saved_with_the_model_is_found(pool, tokenizer, encoder, tmp_path, monitor):
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = type(encoder).from_pretrained(tmp_path)
    for given in (None, tmp_path, str(tmp_path)):
        found = Monitor(pool, resamples=6, resample_size=30, tokenizer=given).measure(loaded, 1)
        assert found.resamples == monitor.measure(encoder, 1).resamples


def test_no_tokenizer_anywhere_is_an_error(pool, encoder):
    with pytest.raises(ValueError, match=r"no tokenizer for the pool.*processing_class"):
        Monitor(pool).prepare(encoder)


def test_a_tokenizer_of_special_tokens_alone_is_none(pool, encoder, tmp_path):
    encoder.save_pretrained(tmp_path)  # transformers makes one up for a folder without
    loaded = type(encoder).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer for the pool: .* special tokens only"):
        Monitor(pool).prepare(loaded)


def test_a_tokenizer_that_does_not_tell_the_texts_apart_is_refused(encoder, tokenizer):
    foreign = [f"{word} zebra" for word in ("un", "deux", "trois", "quatre", "cinq")]
    with pytest.raises(ValueError, match="the 5 different texts of the pool become only 1 diff"):
        Monitor(foreign, tokenizer=tokenizer).prepare(encoder)


def test_preparing_again_takes_the_tokenizer_of_now(pool, encoder, tokenizer):
    monitor = Monitor(pool)
    monitor.prepare(encoder, tokenizer)
    expected = Monitor(pool, tokenizer=tokenizer).measure(encoder, 1).resamples
    assert monitor.measure(encoder, 1).resamples == expected

    def reversed_tokenizer(texts, **options):
        return {"input_ids": [ids[::-1] for ids in tokenizer(texts, **options)["input_ids"]]}

    monitor.prepare(encoder, reversed_tokenizer)
    assert monitor.measure(encoder, 1).resamples != expected


def test_long_texts_are_cut(encoder, tokenizer):
    pool = [f"{word} {'film ' * 200}" for word in ("good", "bad", "dull", "warm", "cold")]
    monitor = Monitor(pool, tokenizer=tokenizer, max_length=16)
    assert monitor.measure(encoder, 1).is_finite
    assert max(len(ids) for ids in monitor._tokenized(encoder)) == 16
    limited = Monitor(pool, tokenizer=tokenizer, max_length=500)  # the tokenizer allows 64
    assert max(len(ids) for ids in limited._tokenized(encoder)) == 64


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_give_a_warning_and_no_score(monitor, encoder, value):
    encoder.bert.encoder.layer[1].output.dense.bias.data[0] = value
    with pytest.warns(RuntimeWarning, match="80 of 80 embeddings are NaN or infinite at step 3"):
        record = monitor.measure(encoder, 3)
    assert math.isnan(record.score)
    assert not Plateau()([record]).stop


def test_a_collapsed_model_scores_zero(monitor, encoder):
    for parameter in encoder.bert.embeddings.word_embeddings.parameters():
        parameter.data.zero_()
    encoder.bert.embeddings.position_embeddings.weight.data.zero_()
    assert monitor.measure(encoder, 1).score == 0


def test_a_criterion_of_ones_own(pool, tokenizer, encoder):
    class Spread:
        name = "spread"
        higher_is_better = False

        def __call__(self, points):
            return points.std(dim=1).mean(dim=-1)

    record = Monitor(pool, criterion=Spread(), tokenizer=tokenizer).measure(encoder, 1)
    assert record.criterion == "spread"
    assert record.is_finite

    Spread.__call__ = lambda self, points: points.mean(dim=(1, 2)) / 0
    with pytest.warns(RuntimeWarning, match="spread is not a finite number at step 1"):
        record = Monitor(pool, criterion=Spread(), tokenizer=tokenizer).measure(encoder, 1)
    assert not record.is_finite

    Spread.__call__ = lambda self, points: points.mean()
    with pytest.raises(ValueError, match=r"'spread' to return \(20,\) scores, got \(\)"):
        Monitor(pool, criterion=Spread(), tokenizer=tokenizer).measure(encoder, 1)
    with pytest.raises(ValueError, match="has no attribute `name`"):
        Monitor(pool, criterion=lambda points: points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample_size": 81}, "`resample_size` from 2 to the 80 texts of the pool, got 81"),
        ({"resample_size": 0}, "got 0"),
        ({"resamples": 0}, "expected `resamples` >= 1"),
        (
            {"criterion": "depth"},
            "unknown criterion 'depth'; known: alpha_req, bnm,",
        ),
        ({"embedder": "max"}, "unknown embedder 'max'; known: auto, cls, last, mean"),
        ({"embedder": {"name": "mean", "depth": 3}}, "does not take these settings"),
    ],
)
def test_settings_that_can_not_be(pool, options, message):
    with pytest.raises(ValueError, match=message):
        Monitor(pool, **options)


def count_passes(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("make", [make_encoder, make_decoder_classifier])
def test_logits_come_from_the_same_pass_as_the_points(pool, tokenizer, make, layer):
    model = make()
    monitor = Monitor(pool, criterion="infomax", tokenizer=tokenizer, embedder=MeanPooling(layer))
    monitor.prepare(model)  # tries what padding does
    body = model.base_model
    layers = count_passes(body.encoder.layer[0] if hasattr(body, "encoder") else body.layers[0])
    record = monitor.measure(model, 1)
    assert len(layers) == 2  # batches of 64 for 80 texts
    assert "forward" not in vars(body)

    model.eval()
    ids = [torch.tensor(row) for row in tokenizer(pool)["input_ids"]]
    with torch.no_grad():
        logits = torch.cat([model(row[None]).logits for row in ids])
    expected = CRITERIA["infomax"]()(logits[monitor.resamples])
    assert record.resamples == pytest.approx(expected.tolist(), abs=1e-6)


def test_every_criterion_scores_the_outputs_that_it_is_for(pool, tokenizer, encoder):
    for name, criterion in CRITERIA.items():
        outputs = getattr(criterion(), "outputs", None) or "auto"
        monitor = Monitor(pool, criterion=name, tokenizer=tokenizer, outputs=outputs)
        monitor.measure(encoder, 1)
        record = monitor.measure(encoder, 2)
        assert record.is_finite, name
        assert record.criterion == criterion.name == name


def test_churn_starts_with_the_second_evaluation(pool, tokenizer, encoder):
    monitor = Monitor(pool, criterion="churn", tokenizer=tokenizer)
    assert not monitor.measure(encoder, 1).is_finite
    assert monitor.measure(encoder, 2).score == 0
    encoder.classifier.weight.data.neg_()
    encoder.classifier.bias.data.neg_()
    assert monitor.measure(encoder, 3).score == 1
    monitor.prepare(encoder)
    assert not monitor.measure(encoder, 1).is_finite


def test_consistency_looks_at_the_pool_without_some_of_its_tokens(pool, tokenizer, encoder):
    monitor = Monitor(pool, criterion="consistency", tokenizer=tokenizer)
    record = monitor.measure(encoder, 1)
    tokens = [torch.tensor(row) for row in tokenizer(pool)["input_ids"]]
    logits = [
        observe(encoder, ids, MeanPooling(), with_logits=True).logits[monitor.resamples]
        for ids in (tokens, drop_tokens(tokens, 0.3, monitor.seed))
    ]
    expected = CRITERIA["consistency"]()(*logits)
    assert record.resamples == pytest.approx(expected.tolist())
    assert monitor.measure(encoder, 2).resamples == record.resamples


def test_predictions_need_a_classifier(pool, tokenizer):
    monitor = Monitor(pool, criterion="infomax", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"expected logits of shape \(1, k\), got \(1"):
        monitor.prepare(make_decoder())
    with pytest.raises(ValueError, match=r"got none from BertModel"):
        monitor.prepare(make_encoder().bert)


def test_a_criterion_s_unknown_needs_are_named(pool):
    def greedy(labels):
        return labels

    greedy.name, greedy.higher_is_better, greedy.needs = "greedy", True, ("labels",)
    with pytest.raises(ValueError, match="'greedy' needs labels; known: points, logits"):
        Monitor(pool, criterion=greedy)


def test_logits_that_are_not_finite_give_no_score(pool, tokenizer, encoder):
    encoder.classifier.bias.data[0] = math.nan
    monitor = Monitor(pool, criterion="infomax", tokenizer=tokenizer)
    with pytest.warns(RuntimeWarning, match="80 of 80 logits are NaN or infinite at step 3"):
        assert not monitor.measure(encoder, 3).is_finite


def test_one_resample_has_no_interval(pool, tokenizer, encoder):
    record = Monitor(pool, resamples=1, tokenizer=tokenizer).measure(encoder, 1)
    assert record.is_finite
    assert math.isnan(record.low)


def test_in_a_plain_loop_it_follows_the_training(pool, tokenizer, train_rows):
    """No Trainer: a score an epoch, and training stays what it is without them."""
    rows = train_rows.with_format("torch")

    def train(monitor):
        model, history = make_encoder(seed=3), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        torch.manual_seed(5)
        for step in range(1, 9):
            model.train()
            batch = {k: rows[:][k] for k in ("input_ids", "attention_mask")}
            model(**batch, labels=rows[:]["label"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if monitor:
                history.append(monitor.measure(model, step))
        return model, history

    plain, _ = train(None)
    watched, history = train(Monitor(pool, tokenizer=tokenizer))
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len({record.score for record in history}) == 8


def test_random_states_are_left_alone(monitor, encoder):
    """Also where an embedder or a criterion draws: data loaders and collators draw from them."""

    def restless(points):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return points.mean(dim=(1, 2))

    restless.name, restless.higher_is_better = "restless", True
    monitor.criterion = restless
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    monitor.measure(encoder, 1)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002


def test_importing_sepstop_loads_no_torch():
    code = "import sys, sepstop; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_criterion_takes_no_metric_of_the_trainer_s(pool):
    def own(points):
        return points.sum(dim=(1, 2))

    own.name, own.higher_is_better = "loss", False
    with pytest.raises(ValueError, match="'loss' would take the place of the Trainer's own eval_l"):
        Monitor(pool, criterion=own)
