"""Knowledge distillation: a small student learns what a teacher says of every view.

B batch, K outputs, D features of the student, E features of the teacher.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.errors import FinetuneError
from tasks.finetune import losses
from tasks.finetune.answers import Answers
from tasks.finetune.batches import Batch
from tasks.params import DistillParams
from tasks.records import Target


class Distillation(nn.Module):
    """The losses [B] of logits [B, K] and features [B, D]:

        (1 - labels) · matching the teacher + labels · weight · the true label + features · the embedding

    The weight is the batch's, 0 where a sample has no label, and counts for the label alone: the mean of
    these losses is to be taken as it is. Parameters of the module (a projection, where features are
    matched) are trained with the head's; its state dict holds nothing else.
    """

    def __init__(
        self,
        params: DistillParams,
        target: Target,
        answers: Answers,
        projection: nn.Linear | None,
        standard: tuple[float, float],
    ) -> None:
        super().__init__()
        self.projection = projection
        self._params, self._target, self._answers, self._standard = params, target, answers, standard

    def forward(self, logits: Tensor, features: Tensor, batch: Batch) -> Tensor:
        params, logits = self._params, logits.float()
        said = self._answers.outputs(batch.rows, batch.views).to(logits.device)  # [B, K]
        if self._target == "number":
            mean, deviation = self._standard
            said = (said - mean) / deviation
        found = (1 - params.labels) * matching(logits, said, self._target, params.temperature)
        if params.labels:
            found = found + params.labels * batch.weight * losses.loss(logits, batch.y, self._target)
        if self.projection is not None:
            wanted = self._answers.features(batch.rows, batch.views).to(logits.device)  # [B, E]
            with torch.autocast(logits.device.type, enabled=False):
                found = found + params.features * hint(self.projection(features.float()), wanted)
        return found


def distillation(
    params: DistillParams,
    target: Target,
    answers: Answers,
    *,
    features: int,
    seed: int,
    standard: tuple[float, float] = (0.0, 1.0),
) -> Distillation:
    """The objective of a student.

    Args:
        answers: of the rows and views that the batches name.
        features: D of the student.
        seed: of the projection's weights, which are the same in every process.
        standard: mean and standard deviation by which the batches' numbers were standardised.

    Raises:
        FinetuneError: the answers lack the features that are to be matched.
    """
    projection = None
    if params.features:
        if not answers.layout.features:
            raise FinetuneError("distill.features: the teacher's embeddings were not kept; ask for them too")
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            projection = nn.Linear(features, answers.layout.features)
    return Distillation(params, target, answers, projection, standard)


def matching(logits: Tensor, said: Tensor, target: Target, temperature: float) -> Tensor:
    """How far logits [B, K] are from what a teacher says [B, K], [B]; 0 where they agree.

    Of classes T² KL(teacher || student), both softened by the temperature T; the factor keeps the
    gradient's size whatever T is (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2). Of
    labels the same of each label's yes or no, summed: the binary cross entropy against soft targets, less
    the targets' own entropy. Of a number the squared error.
    """
    if target == "number":
        return (logits - said).square().sum(1)
    student, teacher = logits / temperature, said / temperature
    if target == "class":
        apart = F.kl_div(
            F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="none", log_target=True
        )
    else:
        soft = teacher.sigmoid()
        apart = F.binary_cross_entropy_with_logits(student, soft, reduction="none")
        apart = apart - F.binary_cross_entropy_with_logits(teacher, soft, reduction="none")
    return temperature**2 * apart.sum(1)


def hint(projected: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error [B] of projected features [B, E] against the teacher's standardised ones
    (FitNets, Romero et al. 2015, https://arxiv.org/abs/1412.6550): 1 for who knows but their mean."""
    return (projected - wanted).square().mean(1)
