"""How a dataset is read."""

from typing import Self

from pydantic import Field, model_validator

from tasks.params.section import Fraction, Section
from tasks.records import Target

BUILTIN = "builtin:surface-inspection"  # the dataset that the extra `demo` ships


class DataParams(Section):
    """How a dataset is versioned, checked and split."""

    target: Target = Field(
        "class",
        description="What a label is: class (one name), labels (any number of names, separated by |), or number.",
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="Samples that are left out: paths as in the dataset, or digests, as the audit's review.csv lists them.",
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=0.9, description="Share of the samples (or groups) in the test split."
    )
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=0.9,
        description="Share of the samples (or groups) in the validation split, which sets the thresholds of confidence and conformal sets.",
    )
    split_seed: int = Field(
        0,
        ge=0,
        description="Seed of the hash that assigns splits. Another seed is another split of everything: numbers are no longer comparable.",
    )
    min_per_class: int = Field(
        2, ge=1, description="Samples that every class needs in each split; fewer is an error."
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        description="Larger images (width × height, px) are quarantined without being decoded.",
    )
    max_quarantined_fraction: Fraction = Field(
        0.05, description="The run fails when more than this share of the samples is quarantined."
    )
    follow_links: bool = Field(
        False,
        description="Follow symbolic links that lead outside the dataset's folder; otherwise such files are quarantined.",
    )
    git_commit: bool = Field(
        False,
        description="Commit the .dvc file of each new data version to the git repository of the working directory.",
    )

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.test_fraction + self.validation_fraction >= 0.95:
            raise ValueError(
                "test_fraction + validation_fraction must be below 0.95, or nothing is left to train on"
            )
        return self
