"""`python -m tasks.evaluation`: the numbers and plots of the head on the test split."""

from tasks.evaluation import evaluate, predict
from tasks.head.__main__ import embeddings
from tasks.params import Params
from tasks.records import Head, Manifest
from tasks.repro import fresh, place, stage


def main(params: Params) -> None:
    manifest = Manifest.load(place("manifest"))
    head = Head.load(place("head"))
    outputs, classes = predict.test_outputs(manifest, embeddings().select(head.blocks), head.path)
    out = fresh("evaluation")
    evaluate.run(
        out,
        manifest,
        outputs,
        classes,
        None,
        params.evaluation,
        confidence=head.confidence,
        conformal=head.conformal,
    ).save()


if __name__ == "__main__":
    stage(main)
