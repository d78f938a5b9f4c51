"""Whose fault a failed run is: the caller's, the machine's, or ours; and what of ONNX Runtime's text callers see."""

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from forwardpass_server.errors import InvalidRequest, OutOfMemory, RunFailed
from forwardpass_server.runtime.blame import blame

NODE = (
    "[ONNXRuntimeError] : {code} : Non-zero status code returned while running {op} node. "
    "Name:'a' Status Message: {why}"
)
SOURCE = "/onnxruntime_src/onnxruntime/core/"
FAIL, INVALID, THROWN = "1 : FAIL", "2 : INVALID_ARGUMENT", "6 : RUNTIME_EXCEPTION"


def failed(kind: type[Exception], code: str, op: str, why: str) -> Exception:
    return kind(NODE.format(code=code, op=op, why=why))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            failed(ort_errors.InvalidArgument, INVALID, "Gather", "idx=9 must be within the inclusive range [-4,3]"),
            " (operator Gather): idx=9 must be within the inclusive range [-4,3]",
        ),
        (
            failed(
                ort_errors.Fail,
                FAIL,
                "Reshape",
                f"{SOURCE}providers/cpu/tensor/reshape_helper.h:91 onnxruntime::ReshapeHelper::ReshapeHelper(const "
                "onnxruntime::TensorShape&, bool) size == requested was false. Input shape:{4}, requested shape:{3}",
            ),
            " (operator Reshape): Input shape:{4}, requested shape:{3}",
        ),
        (
            failed(
                ort_errors.Fail,
                FAIL,
                "GatherElements",
                f"{SOURCE}gather_elements.cc:150 void onnxruntime::core_impl(const Tensor*, int64_t) [with Tin = long "
                "int; int64_t = long int] GatherElements op: Out of range value in index tensor",
            ),
            " (operator GatherElements): GatherElements op: Out of range value in index tensor",
        ),
        (
            failed(ort_errors.Fail, FAIL, "Div", "element_wise_ops.cc:692 Compute Integer division by zero"),
            " (operator Div): Integer division by zero",
        ),
        (
            failed(
                ort_errors.Fail,
                FAIL,
                "ConstantOfShape",
                f"{SOURCE}framework/op_kernel.cc:87 virtual OrtValue* onnxruntime::OpKernelContext::OutputMLValue(int) "
                "[ONNXRuntimeError] : 1 : FAIL : tensor.cc:57 CalculateTensorStorageSize shape.Size() must be >= 0",
            ),
            " (operator ConstantOfShape)",
        ),
        (failed(ort_errors.RuntimeException, THROWN, "Cast", "stod"), " (operator Cast)"),
        (failed(ort_errors.RuntimeException, THROWN, "ArgMax", ""), " (operator ArgMax)"),
        (
            ort_errors.InvalidArgument(f"[ONNXRuntimeError] : {INVALID} : Got invalid dimensions for input: x"),
            ": Got invalid dimensions for input: x",
        ),
    ],
)
def test_a_node_that_refuses_its_data_is_the_callers_fault_and_says_why(error: Exception, said: str) -> None:
    verdict = blame(error)
    assert type(verdict) is InvalidRequest
    assert str(verdict) == f"the model cannot compute with these values{said}"


@pytest.mark.parametrize(
    "error",
    [
        failed(ort_errors.RuntimeException, THROWN, "Expand", "std::bad_alloc"),
        failed(
            ort_errors.RuntimeException,
            THROWN,
            "Conv",
            f"{SOURCE}framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t) Failed to "
            "allocate memory for requested buffer of size 17179869184",
        ),
        failed(
            ort_errors.Fail, FAIL, "MatMul", "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size)"
        ),
        failed(ort_errors.Fail, FAIL, "Gemm", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"),
        MemoryError(),
    ],
)
def test_no_memory_is_nobodys_mistake(error: Exception) -> None:
    verdict = blame(error)
    assert type(verdict) is OutOfMemory
    assert str(verdict) == "no memory for this run; send fewer rows, or smaller tensors"


@pytest.mark.parametrize(
    "error",
    [
        failed(ort_errors.Fail, FAIL, "Relu", "CUDA failure 700: an illegal memory access was encountered ; GPU=0"),
        failed(ort_errors.Fail, FAIL, "Conv", "CUDNN failure 5003: CUDNN_STATUS_EXECUTION_FAILED_CUDART ; GPU=0"),
        failed(ort_errors.Fail, FAIL, "TRTKernel_graph", "TensorRT EP execution context enqueue failed."),
        failed(ort_errors.Fail, FAIL, "Loop", "Exiting due to terminate flag being set to true."),
        failed(ort_errors.NotImplemented, "9 : NOT_IMPLEMENTED", "Resize", "no such mode"),
        failed(ort_errors.EPFail, "11 : EP_FAIL", "Relu", "the provider broke"),
        ort_errors.Fail(f"[ONNXRuntimeError] : {FAIL} : the thread pool is gone"),
        RuntimeError("/models/secret"),
    ],
)
def test_what_is_not_about_data_is_ours_and_keeps_its_text_for_the_log(error: Exception) -> None:
    verdict = blame(error)
    assert type(verdict) is RunFailed
    assert str(verdict) == " ".join(str(error).split())


def test_an_answer_that_numpy_cannot_hold_is_the_callers_fault() -> None:
    verdict = blame(ValueError("array is too big"))
    assert type(verdict) is InvalidRequest
    assert str(verdict) == "no array can hold the model's answer to these values: array is too big"
