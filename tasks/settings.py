"""Facts about a deployment: places, ports, addresses. From the environment (`REGRAFT_*`),
never from `params.yaml`, never logged."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[1]  # the checkout: params.yaml, dvc.yaml, infra/


class Settings(BaseSettings):
    """Read anew at each call, so that a command line option can set the environment first."""

    model_config = SettingsConfigDict(env_prefix="REGRAFT_", frozen=True, hide_input_in_errors=True)

    state: Path = Field(Path(".regraft"), description="Folder of all state.")
    host: str = Field("127.0.0.1", description="Address that local servers bind to.")
    prefect_port: int = 4200
    mlflow_port: int = 5000
    dvc_remote: str | None = Field(None, description="URL of the DVC remote; default: a folder in the state.")
    s3_endpoint_url: str | None = Field(None, description="Endpoint of the S3 server; default: AWS.")
    cache_url: str | None = Field(
        None,
        pattern=r"^s3://[^/@]+(/.*)?$",  # credentials have no place in it
        description="Shared tier of the embedding cache, s3://bucket/prefix; default: this disk alone.",
    )
    checkpoints_url: str | None = Field(
        None,
        pattern=r"^(s3://[^/@]+(/.*)?|[^:]+)$",  # credentials have no place in it
        description="Checkpoints of fine-tuning, s3://bucket/prefix or a shared folder; default: a folder in"
        " the state.",
    )
    forward: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="What runs the backbone: torch or openvino on the CPU; auto: the GPUs if there are any,"
        " else whichever of the two measures quicker.",
    )
    runner: Literal["threads", "ray", "dask"] = Field(
        "threads", description="What the shards of an embedding run on."
    )
    runner_address: str | None = Field(
        None, description="Address of the Ray or Dask cluster; default: one on this machine for the run."
    )
    trainers: int = Field(
        1,
        ge=1,
        le=4096,
        description="Processes that train one backbone together on the Ray cluster, one a GPU where it has"
        " GPUs; its machines share the state folder. 1: the GPUs of this machine.",
    )
    shards: int = Field(1, ge=1, le=100_000, description="Parts that an embedding is split into.")
    gpu_workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Workers of the pool adapt-gpu that `regraft up` starts; one: with all GPUs, more: with"
        " one GPU each.",
    )
    finetune_silent_s: float = Field(
        600.0,
        ge=1,
        description="From then on without a sign of life, a fine-tuning elsewhere is begun again, s; its"
        " heartbeats come every 180 s.",
    )
    memory_gb: float = Field(
        4.0, gt=0, description="Embeddings larger than this are trained on from the disk, in blocks, GB."
    )
    image_root: Path | None = Field(
        None, description="Folder from which a served model may read images given by path."
    )

    @cached_property
    def root(self) -> Path:
        """The state folder, absolute."""
        return self.state.expanduser().resolve()

    @property
    def memory_bytes(self) -> int:
        """Of embeddings that are held at once."""
        return round(self.memory_gb * 1e9)

    @property
    def prefect_url(self) -> str:
        return f"http://{self.host}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{self.host}:{self.mlflow_port}"
