"""`python -m tasks.evaluation`: the numbers and plots of the head on the test split."""

from tasks.evaluation import evaluate, predict
from tasks.head.__main__ import embeddings
from tasks.params import Params
from tasks.records import Manifest
from tasks.repro import fresh, place, stage


def main(params: Params) -> None:
    manifest = Manifest.load(place("manifest"))
    probabilities, classes = predict.test_probabilities(manifest, embeddings(), place("head"))
    out = fresh("evaluation")
    evaluate.run(out, manifest, probabilities, classes, None, params.evaluation).save()


if __name__ == "__main__":
    stage(main)
