"""spaCy: a text classifier that is trained from a config, whose one changed line names our optimizer."""

from io import StringIO

import pytest

import fastadam

pytest.importorskip("spacy")

import spacy
from spacy.language import DEFAULT_CONFIG
from spacy.tokens import DocBin
from spacy.training.initialize import init_nlp
from spacy.training.loop import train
from thinc.api import Config

import fastadam.thinc

CONFIG = """
[paths]
data = null

[nlp]
lang = "en"
pipeline = ["textcat"]

[components]

[components.textcat]
factory = "textcat"

[components.textcat.model]
@architectures = "spacy.TextCatBOW.v3"
exclusive_classes = true
ngram_size = 1
no_output_layer = false
length = 512

[corpora]

[corpora.train]
@readers = "spacy.Corpus.v1"
path = ${paths.data}

[corpora.dev]
@readers = "spacy.Corpus.v1"
path = ${paths.data}

[training]
seed = 0
max_steps = 20
eval_frequency = 5
dev_corpus = "corpora.dev"
train_corpus = "corpora.train"

[training.optimizer]
@optimizers = "Adam.v1"
L2 = 0.01
use_averages = true

[training.optimizer.learn_rate]
@schedules = "warmup_linear.v1"
warmup_steps = 5
total_steps = 50
initial_rate = 0.05

[training.score_weights]
cats_score = 1.0
"""


@pytest.fixture
def data(tmp_path):
    docs, blank = DocBin(store_user_data=True), spacy.blank("en")
    for number in range(40):
        doc = blank(f"this is {'good and nice' if number % 2 else 'bad and ugly'} number {number}")
        doc.cats = {"good": float(number % 2), "bad": float(1 - number % 2)}
        docs.add(doc)
    docs.to_disk(tmp_path / "data.spacy")
    return tmp_path / "data.spacy"


def made(data, name):
    config = Config().from_str(CONFIG.replace("Adam.v1", name), interpolate=False)
    config["paths"]["data"] = str(data)
    return init_nlp(DEFAULT_CONFIG.merge(config), use_gpu=-1)


def trained(data, name):
    (data.parent / name).mkdir()
    train(made(data, name), data.parent / name, use_gpu=-1, stdout=StringIO(), stderr=StringIO())
    return spacy.load(data.parent / name / "model-last")


def test_a_classifier_from_a_config(data):
    ours, theirs = (trained(data, name) for name in ("fastadam.Adam.v1", "Adam.v1"))
    for text in ("this is good and nice", "this is bad and ugly", "number 3"):
        assert ours(text).cats == pytest.approx(theirs(text).cats, abs=1e-4)
    assert ours("this is good and nice").cats["good"] > 0.8 > 0.2 > ours("this is bad and ugly").cats["good"]


def test_the_config_makes_our_optimizer(data):
    optimizer = made(data, "fastadam.Adam.v1").create_optimizer()
    assert type(optimizer) is fastadam.thinc.Adam
    assert optimizer.L2 == 0.01
