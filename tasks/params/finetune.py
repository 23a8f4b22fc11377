"""How far the ladder is climbed: fine-tuning, and distillation into something small."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.params.embedding import NAMED
from tasks.params.section import Section

Method = Literal["lp_ft", "last_blocks", "gradual", "full", "lora", "norm_only", "scratch"]
Augmentation = Literal["hflip", "vflip", "crop", "randaugment", "colour", "mixup", "cutmix"]

MIXES = ("mixup", "cutmix")  # of whole batches, not of an image


class FinetuneParams(Section):
    """Weight transfer: when the backbone's weights are trained too, and how."""

    when: Literal["never", "auto", "always"] = Field(
        "auto",
        description="auto: where a floor of the gate fails, or the expected gain is worth its price.",
    )
    method: Method = Field(
        "lp_ft",
        description="lp_ft (from the head on the embeddings, all layers), last_blocks, gradual (unfrozen from the top, epoch by epoch), full (all layers, a new head), lora (low-rank adapters), norm_only, or scratch (random weights: the honest baseline).",
    )
    blocks: int = Field(
        2, ge=1, le=1000, description="Blocks that last_blocks trains, counted from the output."
    )
    rank: int = Field(8, ge=1, le=1024, description="Rank of lora's adapters.")
    epochs: int = Field(10, ge=1, le=10_000, description="Passes over the training split.")
    batch: int = Field(16, ge=1, le=65_536, description="Samples in a step, over all processes.")
    accumulate: int = Field(
        1, ge=1, le=1024, description="Parts that a batch is computed in; more: less memory, the same step."
    )
    optimiser: Literal["adamw", "sgd"] = Field("adamw", description="sgd: with momentum 0.9.")
    learning_rate: float = Field(
        1e-3,
        gt=0,
        le=10,
        description="Of the backbone's last block at the peak; it warms up, then falls as a cosine.",
    )
    head_learning_rate: float = Field(3e-3, gt=0, le=10, description="Of the head, likewise.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each block's learning rate, as a part of that of the block above it."
    )
    weight_decay: float = Field(0.05, ge=0, le=1, description="Not of biases and normalisations.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Part of the steps in which the learning rate rises.")
    clip: float = Field(1.0, ge=0, description="Greatest norm of the gradient; 0: not clipped.")
    augment: tuple[Augmentation, ...] = Field(
        ("hflip",),
        description="Random changes of the training images: hflip, vflip, crop, randaugment, colour; of batches: mixup, cutmix.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Part of a label that is spread over all classes."
    )
    balance: Literal["none", "loss", "sampling"] = Field(
        "none", description="For rare classes: weights in the loss, or seen as often as the others."
    )
    batch_norm: Literal["frozen", "trained"] = Field(
        "trained",
        description="Statistics of batch normalisation: those of the pretrained weights, or the data's.",
    )
    average: float = Field(
        0.0, ge=0, lt=1, description="Decay of a moving average of the weights (EMA) over the steps; 0: none."
    )
    interpolate: bool = Field(
        False,
        description="Choose by validation between the weights before and after, and mixtures of them (WiSE-FT).",
    )
    soup: int = Field(
        0,
        ge=0,
        le=20,
        description="Average the weights of up to so many epochs, as far as validation gains (greedy soup).",
    )
    patience: int = Field(
        0,
        ge=0,
        description="Epochs without a lower validation loss after which training ends; 0: all epochs.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the forward and backward pass; auto: bfloat16 on a GPU that has it."
    )
    compile: bool = Field(False, description="torch.compile: a minute at the start, quicker steps on a GPU.")
    cached_views: int = Field(
        0,
        ge=0,
        le=1000,
        description="With last_blocks: so many augmented views of each sample go through the frozen blocks once, and training starts from there; 0: through all blocks in every epoch.",
    )
    price_per_hour: float = Field(
        1.0, ge=0, description="Of the machine that fine-tunes, in the currency of worth_per_point."
    )
    worth_per_point: float = Field(
        0.0,
        ge=0,
        description="What a point (0.01) of gate.metric is worth; 0: auto climbs only where a floor fails.",
    )
    trial_samples: int = Field(
        300, ge=20, description="Training samples of the trial by which auto estimates the gain."
    )
    keep: int = Field(2, ge=1, le=100, description="Checkpoints that are kept.")
    checkpoint_s: float = Field(60.0, ge=1, description="Seconds between two checkpoints.")
    seed: int = Field(0, ge=0, description="Of the order, the augmentation and new weights.")

    def changed(self, **values: object) -> Self:
        """With other values; a soup is of as many epochs as there are."""
        made = self.model_dump() | values
        soup = min(made["soup"], made["epochs"])
        return self.model_validate({**made, "soup": soup if soup > 1 else 0})

    @model_validator(mode="after")
    def _each_counts(self) -> Self:
        if len(set(self.augment)) < len(self.augment):
            raise ValueError("augment must be distinct")
        if self.cached_views and self.method != "last_blocks":
            raise ValueError(f"cached_views has no effect on method {self.method}, which trains all blocks")
        if self.cached_views and set(self.augment) & set(MIXES):
            raise ValueError("cached_views: mixup and cutmix change images that are not looked at again")
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate {self.accumulate} parts of a batch of {self.batch} are empty")
        if self.soup == 1:
            raise ValueError("soup of 1 is that epoch itself; use 0, or more")
        if self.soup > self.epochs:
            raise ValueError(f"soup {self.soup}: there are only {self.epochs} epochs")
        if self.cached_views > 1 and not self.augment:
            raise ValueError("cached_views: without augment all views of a sample are the same; use 1")
        if self.interpolate and self.method in ("scratch", "full"):
            raise ValueError(f"interpolate: method {self.method} begins with a head that knows nothing")
        if self.batch_norm == "frozen" and self.method == "scratch":
            raise ValueError("batch_norm: frozen statistics of random weights mean nothing; use trained")
        if self.method == "lora" and (self.average or self.soup or self.interpolate):
            raise ValueError("average, soup and interpolate mix weights, not the factors of lora's adapters")
        return self


class DistillParams(Section):
    """Knowledge distillation: a small student of what was found to be best."""

    student: str = Field(
        "",
        pattern=rf"^({NAMED})?$",
        description="timm:NAME or torchvision:NAME[@WEIGHTS]; NAME:0.5 has half of the channels of every layer (of a convolutional network); empty: no student.",
    )
    weights: str = Field(
        "auto", description="The student's before: auto, random, or the path of a .safetensors file."
    )
    image_size: int | None = Field(None, ge=16, le=2048, description="Of the student, px; empty: as trained.")
    teachers: tuple[Annotated[str, Field(pattern=r"^(best|champion|[1-9]\d{0,8})$")], ...] = Field(
        ("best",),
        min_length=1,
        description="best (the best rung of this run), champion, or a version's number; several are averaged.",
    )
    temperature: float = Field(2.0, gt=0, le=100, description="Softens what the student matches.")
    labels: float = Field(
        0.1, ge=0, le=1, description="Weight of the true labels in the loss; the rest is the teacher's."
    )
    features: float = Field(0.0, ge=0, description="Weight of matching the teacher's embedding.")
    unlabelled: str = Field("", description="A folder of further images without labels; empty: none.")
    views: int = Field(
        4, ge=1, le=1000, description="Augmented views of each image that the teacher answers, once."
    )
    epochs: int = Field(20, ge=1, le=10_000, description="Passes over the images.")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Of the student at the peak.")
    margin: float = Field(
        0.01,
        ge=0,
        description="The student may be worse than its teacher by at most this much of gate.metric.",
    )
    min_speedup: float = Field(1.0, gt=0, description="Least throughput, as a multiple of the teacher's.")
    max_size: float = Field(
        1.0, gt=0, description="Greatest size of the package, as a part of the teacher's."
    )

    @model_validator(mode="after")
    def _each_counts(self) -> Self:
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("teachers must be distinct")
        if self.labels == 1 and not self.features:
            raise ValueError("labels: with weight 1 the teacher is not listened to; use less, or features")
        return self
