"""What all sections of the parameters are."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    # No infinities: "no limit" is an empty field, and digests are of JSON, which has neither them nor NaN.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
