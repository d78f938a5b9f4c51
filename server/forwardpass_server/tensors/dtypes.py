"""The one table of datatypes: what each is called on the wire, in numpy, in ONNX, in ONNX Runtime and in ModelConfig.

Raw tensors are little-endian and row-major. BF16 has no numpy type of its own and is carried as its bit patterns, in
uint16. BYTES is carried as numpy objects of type `str`: ONNX Runtime's Python strings are UTF-8 text.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from forwardpass_proto import model_config_pb2 as config_pb


@dataclass(frozen=True, eq=False)
class Dtype:
    """One datatype under all its names. There is one object a datatype: compare with `is`."""

    wire: str
    """As in `datatype` of the protocol: "FP32"."""
    numpy: np.dtype
    """What an array of it has; little-endian."""
    itemsize: int
    """Bytes an element in a raw tensor; 0 for BYTES, whose elements have no fixed size."""
    onnx: int
    """`onnx.TensorProto.DataType`."""
    ort: str
    """As ONNX Runtime writes it: "tensor(float)"."""
    config: int
    """`inference.DataType` of ModelConfig."""
    contents: str | None
    """The typed field of InferTensorContents, or None where the protocol has raw bytes only."""

    def __repr__(self) -> str:
        return f"Dtype({self.wire})"


_T = TensorProto
_C = config_pb
BOOL = Dtype("BOOL", np.dtype("?"), 1, _T.BOOL, "tensor(bool)", _C.TYPE_BOOL, "bool_contents")
UINT8 = Dtype("UINT8", np.dtype("u1"), 1, _T.UINT8, "tensor(uint8)", _C.TYPE_UINT8, "uint_contents")
UINT16 = Dtype("UINT16", np.dtype("<u2"), 2, _T.UINT16, "tensor(uint16)", _C.TYPE_UINT16, "uint_contents")
UINT32 = Dtype("UINT32", np.dtype("<u4"), 4, _T.UINT32, "tensor(uint32)", _C.TYPE_UINT32, "uint_contents")
UINT64 = Dtype("UINT64", np.dtype("<u8"), 8, _T.UINT64, "tensor(uint64)", _C.TYPE_UINT64, "uint64_contents")
INT8 = Dtype("INT8", np.dtype("i1"), 1, _T.INT8, "tensor(int8)", _C.TYPE_INT8, "int_contents")
INT16 = Dtype("INT16", np.dtype("<i2"), 2, _T.INT16, "tensor(int16)", _C.TYPE_INT16, "int_contents")
INT32 = Dtype("INT32", np.dtype("<i4"), 4, _T.INT32, "tensor(int32)", _C.TYPE_INT32, "int_contents")
INT64 = Dtype("INT64", np.dtype("<i8"), 8, _T.INT64, "tensor(int64)", _C.TYPE_INT64, "int64_contents")
FP16 = Dtype("FP16", np.dtype("<f2"), 2, _T.FLOAT16, "tensor(float16)", _C.TYPE_FP16, None)
BF16 = Dtype("BF16", np.dtype("<u2"), 2, _T.BFLOAT16, "tensor(bfloat16)", _C.TYPE_BF16, None)
FP32 = Dtype("FP32", np.dtype("<f4"), 4, _T.FLOAT, "tensor(float)", _C.TYPE_FP32, "fp32_contents")
FP64 = Dtype("FP64", np.dtype("<f8"), 8, _T.DOUBLE, "tensor(double)", _C.TYPE_FP64, "fp64_contents")
BYTES = Dtype("BYTES", np.dtype("O"), 0, _T.STRING, "tensor(string)", _C.TYPE_STRING, "bytes_contents")

ALL = (BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64, BYTES)

_BY_WIRE = {dtype.wire: dtype for dtype in ALL}
_BY_ONNX = {dtype.onnx: dtype for dtype in ALL}
_BY_ORT = {dtype.ort: dtype for dtype in ALL}
_BY_CONFIG = {dtype.config: dtype for dtype in ALL}


def by_wire(name: str) -> Dtype | None:
    """The datatype called `name` on the wire ("FP32"), or None."""
    return _BY_WIRE.get(name)


def by_onnx(code: int) -> Dtype | None:
    """The datatype with this `onnx.TensorProto.DataType`, or None where the protocol has no name for it."""
    return _BY_ONNX.get(code)


def by_ort(text: str) -> Dtype | None:
    """The datatype that ONNX Runtime writes as `text` ("tensor(float)"), or None."""
    return _BY_ORT.get(text)


def by_config(number: int) -> Dtype | None:
    """The datatype with this `inference.DataType` of ModelConfig, or None."""
    return _BY_CONFIG.get(number)
