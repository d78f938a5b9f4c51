"""KServe's InferenceGRPCClient: every method. Usage: ADDRESS"""

import asyncio
import sys

import numpy as np
from checks import Checks
from kserve import InferenceGRPCClient, InferInput, InferRequest

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)


def request(*, raw: bool) -> InferRequest:
    given = InferInput(name="x", shape=[2, 4], datatype="FP32", data=None if raw else X.ravel().tolist())
    if raw:
        given.set_data_from_numpy(X, binary_data=True)
    return InferRequest(model_name="halved", infer_inputs=[given], request_id="seven")


async def main(address: str) -> None:
    check = Checks()
    async with InferenceGRPCClient(address) as client:
        with check("is_server_live, is_server_ready, is_model_ready"):
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("halved")
        for raw in (True, False):
            with check(f"infer, {'raw' if raw else 'typed'} contents"):
                answer = await client.infer(request(raw=raw))
                assert answer.id == "seven"
                (y,) = answer.outputs
                np.testing.assert_array_equal(y.as_numpy(), X / 4)
    check.finish()


asyncio.run(main(*sys.argv[1:]))
