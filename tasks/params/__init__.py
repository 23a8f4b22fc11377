"""`params.yaml`, parsed once into frozen models. The same models are the flows' parameters,
so the form in the Prefect UI shows each field with its description and bounds."""

from pathlib import Path
from typing import Self

import yaml
from pydantic import ValidationError, model_validator

from tasks.errors import ParamsError
from tasks.params.data import BUILTIN, DataParams
from tasks.params.embedding import NETWORK, PIXELS, RANDOM, BackboneParams, EmbeddingParams
from tasks.params.evaluation import AuditParams, EvaluationParams, Floor, GateParams
from tasks.params.finetune import MIXES, DistillParams, FinetuneParams
from tasks.params.head import HeadParams
from tasks.params.metrics import IN_LABEL_UNITS, KINDS, LOWER_IS_BETTER, METRICS, Metric
from tasks.params.section import Fraction, Section

__all__ = [
    "BUILTIN",
    "IN_LABEL_UNITS",
    "KINDS",
    "LOWER_IS_BETTER",
    "METRICS",
    "MIXES",
    "NETWORK",
    "PIXELS",
    "RANDOM",
    "AuditParams",
    "BackboneParams",
    "DataParams",
    "DistillParams",
    "EmbeddingParams",
    "EvaluationParams",
    "FinetuneParams",
    "Floor",
    "Fraction",
    "GateParams",
    "HeadParams",
    "Metric",
    "Params",
    "Section",
    "explain",
    "load_params",
]


class Params(Section):
    """All parameters of the adapt flow."""

    data: DataParams = DataParams()
    embedding: EmbeddingParams = EmbeddingParams()
    head: HeadParams = HeadParams()
    finetune: FinetuneParams = FinetuneParams()
    distill: DistillParams = DistillParams()
    audit: AuditParams = AuditParams()
    evaluation: EvaluationParams = EvaluationParams()
    gate: GateParams = GateParams()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        target = self.data.target
        if self.head.kind not in KINDS[target]:
            raise ValueError(
                f"head.kind {self.head.kind} is not for data.target {target}; use {' or '.join(KINDS[target])}"
            )
        for where, metric in (
            ("gate.metric", self.gate.metric),
            *((f"gate.floors.{at}.metric", floor.metric) for at, floor in enumerate(self.gate.floors)),
        ):
            if metric not in METRICS[target]:
                raise ValueError(
                    f"{where} {metric} is not for data.target {target}; use {', '.join(METRICS[target])}"
                )
        if self.gate.metric in IN_LABEL_UNITS:
            needed = ["margin"] if self.gate.mode == "non_inferior" else []
            if self.evaluation.robustness_samples and self.gate.mode != "absolute":
                needed.append("max_robustness_loss")
            for name in needed:
                if name not in self.gate.model_fields_set:
                    raise ValueError(f"gate.{name} must be given for {self.gate.metric}, in the label's unit")
        blocks = sum(len(one.layers) * len(one.views) for one in (self.embedding, *self.embedding.others))
        if self.head.inputs == "chosen" and blocks == 1:
            raise ValueError(
                "head.inputs chosen has no effect on one block; name more layers, views or others"
            )
        if target != "class":
            without_effect = {
                "head.imbalance": self.head.imbalance != "none",
                "finetune.balance": self.finetune.balance != "none",
                "finetune.label_smoothing": self.finetune.label_smoothing != 0,
            }
            for name in (name for name, given in without_effect.items() if given):
                raise ValueError(f"{name} has no effect on data.target {target}")
        return self


def load_params(file: Path) -> Params:
    """Reads a parameters file; fields that it leaves out keep their defaults.

    Raises:
        ParamsError: the file is missing, is not YAML, or has unknown or invalid fields; the
            message names each.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsError(
            f"{file}: can't be read ({error.strerror}); name an existing parameters file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{file}: is not YAML ({' '.join(str(error).split())})") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ParamsError(f"{file}: must be a mapping with the sections {', '.join(Params.model_fields)}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{file}: {explain(error)}") from None


def explain(error: ValidationError, *, values: bool = True) -> str:
    """One line for all problems: `head.fold: unknown field; …`.

    Args:
        values: say what was given; not where it may be a secret.
    """
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "parameters"
        what = "unknown field" if problem["type"] == "extra_forbidden" else problem["msg"]
        shown = values and not isinstance(problem["input"], dict)
        given = f" (given: {problem['input']!r})" if shown else ""
        lines.append(f"{where}: {what}{given}")
    return "; ".join(lines)
