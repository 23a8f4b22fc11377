from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from tasks.errors import ParamsError
from tasks.params import (
    KINDS,
    LOWER_IS_BETTER,
    METRICS,
    Floor,
    GateParams,
    HeadParams,
    Metric,
    Params,
    load_params,
)
from tasks.records import Target
from tasks.settings import ROOT

FILE = ROOT / "params.yaml"
NUMBERS = "data: {target: number}\nhead: {kind: ridge}\n"


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    return file


def test_params_yaml__is_the_defaults() -> None:
    assert load_params(FILE) == Params()


def test_params_yaml__names_every_field() -> None:
    # Equal values could be a field that is left out: each is written down.
    given = yaml.safe_load(FILE.read_text())
    expected = Params().model_dump(mode="json")
    assert {name: set(section) for name, section in given.items()} == {
        name: set(section) for name, section in expected.items()
    }


def test_params_yaml__says_for_each_knob_what_a_change_costs() -> None:
    fields = {name for section in Params().model_dump().values() for name in section}
    knobs = [line for line in FILE.read_text().splitlines() if line.strip().split(":")[0] in fields]
    assert len(knobs) == sum(len(section) for section in Params().model_dump().values())
    assert [line for line in knobs if not line.partition("#")[2].strip()] == []


def _models() -> list[type[BaseModel]]:
    sections = [field.annotation for field in Params.model_fields.values()]
    return [Floor, *(section for section in sections if isinstance(section, type))]


def test_params__every_field_is_described() -> None:
    assert len(_models()) == 9
    nameless = [
        f"{model.__name__}.{name}"
        for model in _models()
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert nameless == []


def test_params__are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Params().head.folds = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heads: {}", r"heads: unknown field"),
        ("head: {fold: 3}", r"head\.fold: unknown field \(given: 3\)"),
        ("gate: {floors: [{metric: ece, limit: 0.1, limt: 2}]}", r"gate\.floors\.0\.limt: unknown field"),
    ],
)
def test_load__unknown_key_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        load_params(written(tmp_path, text))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("data", "test_fraction", 0),
        ("data", "test_fraction", 0.9),
        ("data", "test_fraction", ".nan"),
        ("data", "validation_fraction", -0.1),
        ("data", "split_seed", -1),
        ("data", "min_per_class", 0),
        ("data", "max_pixels", 0),
        ("data", "max_quarantined_fraction", 1.01),
        ("data", "follow_links", "perhaps"),
        ("embedding", "backbone", "resnet18"),
        ("embedding", "backbone", "timm:../../etc"),
        ("embedding", "backbone", "regraft:other"),
        ("embedding", "backbone", "regraft:pixels:0.5"),
        ("embedding", "backbone", "timm:resnet18:1.0"),
        ("embedding", "backbone", "timm:resnet18:0.0"),
        ("embedding", "backbone", "timm:resnet18:0.50"),
        ("distill", "student", "resnet18"),
        ("distill", "student", "timm:resnet18:2"),
        ("embedding", "image_size", 15),
        ("embedding", "image_size", 2049),
        ("embedding", "layers", "[]"),
        ("embedding", "pooling", "[]"),
        ("embedding", "pooling", "[median]"),
        ("embedding", "views", "[]"),
        ("embedding", "views", "[rotate]"),
        ("embedding", "views", "[crop]"),
        ("embedding", "views", "[crop-1000]"),
        ("embedding", "views", "[crop--1]"),
        ("embedding", "views", "[noise-1]"),
        ("embedding", "views", "[hflip+noise-1]"),
        ("embedding", "precision", "float16"),
        ("embedding", "others", "[{views: []}]"),
        ("embedding", "others", "[{others: []}]"),
        ("head", "folds", 1),
        ("head", "folds", 2.5),
        ("head", "max_iterations", 9),
        ("head", "strengths", "[]"),
        ("evaluation", "bootstrap", 99),
        ("evaluation", "calibration_bins", 1),
        ("gate", "metric", "auc"),
        ("gate", "margin", -0.01),
        ("gate", "min_test_samples", 0),
        ("gate", "floors", "[]"),
    ],
)
def test_load__out_of_bounds_is_refused_by_name(
    tmp_path: Path, section: str, field: str, value: object
) -> None:
    with pytest.raises(ParamsError, match=rf"params\.yaml: {section}\.{field}[.\w]*: "):
        load_params(written(tmp_path, f"{section}: {{{field}: {value}}}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head: {strengths: [0.1, 0.1]}", "strengths must be positive and distinct"),
        ("head: {strengths: [0.0, 0.1]}", "strengths must be positive and distinct"),
        ("data: {test_fraction: 0.6, validation_fraction: 0.4}", "or nothing is left to train on"),
        ("gate: {floors: [{metric: ece, limit: .nan}]}", r"gate\.floors\.0\.limit: .*finite"),
        ("embedding: {layers: [network, blocks.4, network]}", "layers must be distinct"),
        ("embedding: {layers: [blocks.4], pooling: [max, max]}", "pooling must be distinct"),
        ("embedding: {views: [hflip, hflip]}", "views must be distinct"),
        ("embedding: {backbone: 'regraft:pixels', weights: random}", "regraft:pixels has no weights"),
        ("embedding: {backbone: 'regraft:pixels', layers: [a]}", "regraft:pixels has no weights"),
        ("embedding: {pooling: [max]}", "pooling has no effect on the layer network.*name modules in layers"),
        ("embedding: {pooling: [mean, std]}", "pooling has no effect on the layer network"),
        ("head: {neighbours: [3, 3]}", "neighbours must be positive and distinct"),
        ("head: {kind: ridge}", "head.kind ridge is not for data.target class; use logistic or prototype or"),
        ("data: {target: labels}", "head.kind logistic is not for data.target labels; use multilabel"),
        ("gate: {metric: mae}", "gate.metric mae is not for data.target class; use accuracy, balanced"),
        (
            "gate: {floors: [{metric: r2, limit: 0.5}]}",
            r"gate\.floors\.0\.metric r2 is not for data\.target class",
        ),
        ("head: {inputs: chosen}", "head.inputs chosen has no effect on one block; name more layers"),
        (
            "data: {target: number}\nhead: {kind: ridge, imbalance: balanced}\n"
            "gate: {metric: r2, floors: [{metric: r2, limit: 0.5}]}",
            "head.imbalance has no effect on data.target number",
        ),
        (
            NUMBERS + "gate: {metric: mae, max_robustness_loss: 2, floors: [{metric: r2, limit: 0.5}]}",
            "gate.margin must be given for mae, in the label's unit",
        ),
        (
            NUMBERS + "gate: {metric: rmse, margin: 2, floors: [{metric: r2, limit: 0.5}]}",
            "gate.max_robustness_loss must be given for rmse, in the label's unit",
        ),
        (
            "embedding: {others: [{backbone: timm:resnet18, pooling: [max]}]}",
            r"embedding\.others\.0: .*pooling has no effect on the layer network",
        ),
    ],
)
def test_load__senseless_combination_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        load_params(written(tmp_path, text))


@pytest.mark.parametrize(
    "rest",
    [
        "gate: {metric: mae, mode: absolute, floors: [{metric: r2, limit: 0.5}]}",
        "evaluation: {robustness_samples: 0}\n"
        "gate: {metric: mae, margin: 3, floors: [{metric: r2, limit: 0.5}]}",
        "gate: {metric: r2, floors: [{metric: r2, limit: 0.5}]}",
    ],
)
def test_load__limits_that_nothing_is_held_against_need_not_be_given(tmp_path: Path, rest: str) -> None:
    load_params(written(tmp_path, NUMBERS + rest))


def _floats() -> list[tuple[str, str]]:
    """Every parameter that holds a float: its section and its name."""
    found = []
    for section, field in Params.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        found += [
            (section, name)
            for name, each in field.annotation.model_fields.items()
            if "float" in str(each.annotation)
        ]
    return found


@pytest.mark.parametrize(("section", "name"), _floats())
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_load__no_float_may_be_infinite_or_no_number(
    tmp_path: Path, section: str, name: str, value: str
) -> None:
    given = f"[{value}, 1]" if name == "strengths" else value
    with pytest.raises(ParamsError, match=rf"{section}\.{name}[.\d]*: Input should be "):
        load_params(written(tmp_path, f"{section}: {{{name}: {given}}}"))


def test_load__layers_views_and_backbones_are_read(tmp_path: Path) -> None:
    text = """
        embedding:
          layers: [network, blocks.4]
          pooling: [std, mean]
          views: [identity, crop-12]
          others: [{backbone: timm:resnet18, layers: [layer3], pooling: [max]}]
    """
    read = load_params(written(tmp_path, text)).embedding
    assert (read.layers, read.pooling) == (("network", "blocks.4"), ("std", "mean"))
    assert read.views == ("identity", "crop-12")
    (other,) = read.others
    assert (other.backbone, other.layers, other.pooling) == ("timm:resnet18", ("layer3",), ("max",))
    assert (other.weights, other.views, other.precision) == ("auto", ("identity",), "float32")


def test_load__all_problems_are_told_at_once_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as error:
        load_params(written(tmp_path, "head: {folds: 1, fold: 3}\ngate: {margin: -2}"))
    text = str(error.value)
    assert all(name in text for name in ("head.folds", "head.fold: unknown", "gate.margin"))
    assert "\n" not in text


@pytest.mark.parametrize("text", ["head: [", "head: {folds: 3", "a: b: c", "\x00"])
def test_load__bad_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ParamsError, match=r"params\.yaml: is not YAML") as error:
        load_params(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_load__binary_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ParamsError, match="is not YAML"):
        load_params(file)


def test_load__code_in_yaml_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="is not YAML"):
        load_params(written(tmp_path, f"head: !!python/object/apply:os.mkdir ['{tmp_path}/ran']"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["- 1", "word", "3"])
def test_load__other_than_a_mapping_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ParamsError, match="must be a mapping with the sections data, embedding, head"):
        load_params(written(tmp_path, text))


def test_load__missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"none\.yaml: can't be read \(No such file or directory\)"):
        load_params(tmp_path / "none.yaml")


def test_load__folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="can't be read"):
        load_params(tmp_path)


def test_load__partial_file_keeps_the_other_defaults(tmp_path: Path) -> None:
    read = load_params(written(tmp_path, "head: {folds: 3}"))
    expected = Params()
    assert read.head == expected.head.model_copy(update={"folds": 3})
    assert read.model_copy(update={"head": expected.head}) == expected


def test_load__empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_params(written(tmp_path, "# nothing\n")) == Params()


def test_params__survive_json() -> None:
    # How the orchestrator stores and sends them.
    params = Params(gate=GateParams(floors=(Floor(metric="brier", limit=0.2),)))
    assert Params.model_validate_json(params.model_dump_json()) == params


def test_metrics__lower_is_better_names_metrics() -> None:
    assert {name for names in METRICS.values() for name in names} >= LOWER_IS_BETTER


def test_metrics__every_metric_may_be_named_and_is_of_some_target() -> None:
    assert {name for names in METRICS.values() for name in names} == set(get_args(Metric))


def test_kinds__every_kind_is_of_one_target() -> None:
    kinds = [kind for some in KINDS.values() for kind in some]
    assert sorted(kinds) == sorted(get_args(HeadParams.model_fields["kind"].annotation))
    assert set(KINDS) == set(METRICS) == set(get_args(Target))


def test_load__numbers_take_ridge_and_their_own_metrics(tmp_path: Path) -> None:
    read = load_params(
        written(
            tmp_path,
            NUMBERS
            + "gate: {metric: mae, margin: 3, max_robustness_loss: null, floors: [{metric: r2, limit: 0.5}]}",
        )
    )
    assert (read.data.target, read.gate.metric, read.gate.floors[0].metric) == ("number", "mae", "r2")
