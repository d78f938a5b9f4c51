"""Every method of tritonclient's asyncio client, its stream included. Usage: ADDRESS ADMIN_TOKEN"""

import asyncio
import sys

import numpy as np
import tritonclient.grpc.aio as triton
from admin import Admin
from checks import Checks, Recorder

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
LOCAL = {"plugin", "register_plugin", "unregister_plugin", "close"}
"""What the client does by itself, without a call."""


def tensor(name: str, array: np.ndarray) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


async def refused(code: str, call: object) -> None:
    """Wait for a call that must end with that status."""
    status = "OK"
    try:
        await call
    except triton.InferenceServerException as error:
        status = error.status()
    assert status != "OK", "not refused"
    assert code in status, status


async def everything(client, check) -> None:
    with check("readiness, metadata, configuration, index"):
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("halved", "2")
        assert "statistics" in (await client.get_server_metadata()).extensions
        assert list((await client.get_model_metadata("halved")).inputs[0].shape) == [-1, 4]
        assert (await client.get_model_config("halved")).config.max_batch_size == 16
        assert "halved" in {each.name for each in (await client.get_model_repository_index()).models}
    with check("a hundred infers at once"):
        answers = await asyncio.gather(*(client.infer("halved", [tensor("x", X + n)]) for n in range(100)))
        for number, answer in enumerate(answers):
            np.testing.assert_array_equal(answer.as_numpy("y"), (X + number) / 4)
        await refused("NOT_FOUND", client.infer("nobody", [tensor("x", X)]))
    with check("stream_infer: in order, and errors among the answers"):

        async def requests():
            for number in range(20):
                model = "nobody" if number == 10 else "halved"
                yield {"model_name": model, "inputs": [tensor("x", X + number)], "request_id": str(number)}

        number = 0
        async for result, error in client.stream_infer(requests()):
            if number == 10:
                assert "nobody" in str(error), error
            else:
                assert error is None, error
                assert result.get_response().id == str(number)
                np.testing.assert_array_equal(result.as_numpy("y"), (X + number) / 4)
            number += 1
        assert number == 20
    with check("statistics, trace and log settings"):
        statistics = (await client.get_inference_statistics("halved")).model_stats
        assert sum(each.inference_count for each in statistics) >= 200
        assert "trace_level" in (await client.get_trace_settings()).settings
        await client.update_trace_settings(settings={"trace_level": ["OFF"]})
        assert "log_error" in (await client.get_log_settings()).settings
        await client.update_log_settings({"log_verbose_level": 0})
    with check("shared memory"):
        await client.unregister_system_shared_memory()
        assert not (await client.get_system_shared_memory_status()).regions
        await refused("", client.register_system_shared_memory("none", "/compat-none", 64))
        await refused("UNIMPLEMENTED", client.register_cuda_shared_memory("c", b"\0" * 64, 0, 64))
        assert not (await client.get_cuda_shared_memory_status()).regions
        await client.unregister_cuda_shared_memory()
    with check("unload_model, load_model"):
        await client.unload_model("words")
        await client.load_model("words")
        assert await client.is_model_ready("words")


async def main(address: str, token: str) -> None:
    check = Checks()
    async with triton.InferenceServerClient(address) as plain:
        plain.register_plugin(Admin(token))
        client = Recorder(plain)
        await everything(client, check)
        with check("every method was called"):
            assert not (never := client.never_called(but=LOCAL)), never
    check.finish()


asyncio.run(main(*sys.argv[1:]))
