from tasks.params import Params
from tasks.registry.adapt_run import parameters


def test_parameters__names_are_dotted_and_lists_are_json() -> None:
    flat = parameters(Params.model_validate({"head": {"strengths": [0.1, 1.0], "folds": 4}}))
    assert flat["head.folds"] == "4"
    assert flat["head.strengths"] == "[0.1, 1.0]"
    assert flat["embedding.backbone"] == "timm:tf_efficientnet_lite0"
    assert flat["embedding.image_size"] == "null"
    assert flat["data.git_commit"] == "false"
    assert flat["embedding.layers"] == '["network"]'
    assert flat["embedding.others"] == "[]"
