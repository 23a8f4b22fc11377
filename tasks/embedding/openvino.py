"""The forward pass by OpenVINO, from the optional extra `cpu`: about twice as quick as PyTorch."""

import json
import logging
import shutil
import sys
import tempfile
import threading
import warnings
from pathlib import Path

# The package reports its import to a server, unless its telemetry can't be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.preprocess import PrePostProcessor
from torch import Tensor

from tasks.embedding.backbone import load
from tasks.embedding.features import Features, outputs_of
from tasks.embedding.forward import batch_for, threads
from tasks.embedding.source import file_digest
from tasks.records import Backbone

log = logging.getLogger(__name__)

_FILES = ("model.xml", "model.bin")
_DIGESTS = "digests.json"


class OpenVinoForward:
    """As many streams as cores, each of one thread: a calling thread waits while its stream works."""

    def __init__(self, backbone: Backbone, folder: Path) -> None:
        """Converts the network, which takes seconds, or reads it back from `folder`."""
        self.batch = batch_for(backbone.preprocess.size)
        core = ov.Core()
        model = _read(core, folder)
        if model is None:
            model = _converted(backbone, self.batch)
            try:
                _keep(model, folder)
            except OSError as error:
                log.warning("%s: can't be kept (%s); it is converted again next time", folder, error.strerror)
        steps = PrePostProcessor(model)
        # Channels last is how crops lie in memory: no copy on the way in.
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        how = {
            "NUM_STREAMS": threads(),
            "INFERENCE_NUM_THREADS": threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if backbone.precision == "bfloat16" else "f32",
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = core.compile_model(steps.build(), "CPU", how)
        self._outputs = len(outputs_of(backbone))
        self._own = threading.local()  # the request of each calling thread

    def __call__(self, crops: Tensor) -> list[NDArray[np.float32]]:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        found = self._own.request.infer([crops.permute(0, 2, 3, 1).numpy()], share_inputs=True)
        return [np.array(found[number]) for number in range(self._outputs)]


def _converted(backbone: Backbone, batch: int) -> ov.Model:
    size = backbone.preprocess.size
    features = Features(load(backbone), backbone.preprocess, outputs_of(backbone), backbone.name)
    example = torch.zeros(batch, 3, size, size, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: shapes are fixed here
        # `_agree` checks the result; the tracer's own check takes most of the time.
        traced = TorchScriptPythonDecoder(
            features, example_input=example, trace_kwargs={"check_trace": False}
        )
    # Not `openvino.convert_model`, which reports its use to a server.
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(traced))
    model.reshape(list(example.shape))
    return model


def _keep(model: ov.Model, folder: Path) -> None:
    """Writes the converted network, which appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        ov.save_model(model, made / _FILES[0], compress_to_fp16=False)
        digests = {name: file_digest(made / name) for name in _FILES}
        (made / _DIGESTS).write_text(json.dumps(digests))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        made.rename(folder)
    except OSError:
        if not folder.exists():  # another process was quicker
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _read(core: ov.Core, folder: Path) -> ov.Model | None:
    """What `_keep` wrote; None where it is missing or damaged."""
    try:
        digests = json.loads((folder / _DIGESTS).read_text())
        if digests != {name: file_digest(folder / name) for name in _FILES}:
            return None
    except (OSError, ValueError):
        return None
    return core.read_model(folder / _FILES[0])
