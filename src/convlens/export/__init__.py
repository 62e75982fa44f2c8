"""A trained net to portable files, each behind a gate: every route must give the same answers.

`export` writes ``onnx`` (runs in onnxruntime without PyTorch), ``torch`` (a ``torch.export`` archive of plain
aten operators) or ``safetensors`` (our own self-describing file, copied). `Portable` is what is exported: the
preprocessing and the net in one module.
"""

from __future__ import annotations

from convlens.export.files import FORMATS, Exported, export
from convlens.export.gate import RouteAnswers, agree
from convlens.export.portable import Portable

__all__ = ["FORMATS", "Exported", "Portable", "RouteAnswers", "agree", "export"]
