"""What a fine-tuning on any machine is asked for: references and parameters, no data."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from tasks.embedding.source import decoding
from tasks.finetune.spec import Distillation
from tasks.params import DataParams, FinetuneParams, HeadParams, Params
from tasks.records import Backbone, DatasetVersion, Manifest, Split
from tasks.stage import stage_key

# Say whether to climb, what it costs and how often it is saved: they change no weight.
_WITHOUT_EFFECT = {
    *("when", "price_per_hour", "worth_per_point", "trial_samples", "keep", "checkpoint_s"),
}


class FinetuneRequest(BaseModel):
    """A fine-tuning: the data is named by its version, the weights by their digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Of the model.")
    # It becomes part of paths.
    key: str = Field(pattern=r"^[0-9a-f]{32}$", description="Names the training by all that determines it.")
    dvc_file: str = Field(description="Text of the version's data.dvc.")
    data: DataParams = Field(description="With which the version was audited and split.")
    manifest: str = Field(description="Digest of the manifest that they give.")
    take: dict[Split, int] | None = Field(None, description="Of a trial: so many of each split, no others.")
    backbone: Backbone = Field(description="That is tuned.")
    head: HeadParams = Field(description="Of the head that training starts from.")
    finetune: FinetuneParams = Field(description="How.")
    distillation: Distillation | None = Field(None, description="Of a student: what it learns from.")
    run_id: str = Field("", description="MLflow run of the training.")

    @property
    def kind(self) -> str:
        """What it is to the registry: finetune, trial or distill."""
        if self.distillation is not None:
            return "distill"
        return "finetune" if self.take is None else "trial"

    @property
    def max_pixels(self) -> int:
        return self.data.max_pixels

    @classmethod
    def of(
        cls,
        name: str,
        dataset: DatasetVersion,
        manifest: Manifest,
        backbone: Backbone,
        params: Params,
        take: dict[Split, int] | None = None,
    ) -> Self:
        """The request for `params.finetune` on this data.

        Args:
            take: of a trial: how `manifest` was drawn from that of all samples, by the seed of `finetune`.
        """
        key = stage_key(
            "finetune",
            manifest.digest,
            backbone.name,
            backbone.weights_digest,
            backbone.preprocess,
            backbone.library,
            *decoding(),
            params.head,
            params.data.max_pixels,
            effective(params.finetune),
        )
        return cls(
            name=name,
            key=key,
            dvc_file=dataset.dvc_file.read_text(encoding="utf-8"),
            data=params.data,
            manifest=manifest.digest,
            take=take,
            backbone=backbone,
            head=params.head,
            finetune=params.finetune,
        )


def effective(params: FinetuneParams) -> FinetuneParams:
    """The parameters with those that change no weight at their defaults."""
    return FinetuneParams.model_validate(params.model_dump(mode="json", exclude=_WITHOUT_EFFECT))
