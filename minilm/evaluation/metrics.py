"""The metrics of the evaluation: their names, units and meanings, for the report and the model card."""

from typing import NamedTuple


class Meaning(NamedTuple):
    """What a metric is."""

    name: str
    unit: str  # "%" shows a share of 1 as a percentage
    text: str  # one line for who meets it for the first time


_NATS = "nats per character"
# By their keys in reports/metrics.json and MLflow.
MEANINGS = {
    "test_loss": Meaning("loss", _NATS, "mean surprisal of the next character; what training lowers"),
    "test_bits_per_char": Meaning(
        "bits per character", "bits", "the same in bits: what compressing the text with this model would cost"
    ),
    "test_perplexity": Meaning(
        "perplexity", "characters", "the model is as unsure as between so many equally likely characters"
    ),
    "test_word_perplexity": Meaning(
        "word perplexity", "words", "the same for whole words, to compare with models of words"
    ),
    "test_accuracy": Meaning("accuracy", "%", "characters that were the model's first guess"),
    "test_top5_accuracy": Meaning("top-5 accuracy", "%", "characters among the model's five first guesses"),
    "test_calibration_error": Meaning(
        "calibration error", "%", "mean distance between the model's confidence and its accuracy"
    ),
    "unknown_char_rate": Meaning("unknown characters", "%", "characters that the vocabulary lacks"),
    "unigram_loss": Meaning(
        "unigram loss", _NATS, "of a model that knows how often each character occurs, and no more"
    ),
    "ngram_loss": Meaning("n-gram loss", _NATS, "of a model that counted what follows each few characters"),
}
