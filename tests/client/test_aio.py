"""`AsyncClient`: the same conversations, awaited; and what only asyncio brings: cancellation, loops, bursts."""

import asyncio
import threading
from typing import Any

import grpc
import numpy as np
import pytest

from forwardpass import AsyncClient, Client, Health
from forwardpass import errors as e


def test_every_question_has_its_awaited_twin(server: Any) -> None:
    server.index = [("echo", "1", "READY", "")]

    async def ask() -> None:
        async with AsyncClient(server.address, deadline_s=20) as client:
            result = await client.infer("echo", {"x": [[1, 2]]}, request_id="r")
            assert result["x"].dtype == np.float32
            assert (result.id, result.model_version) == ("r", "1")
            assert await client.live()
            assert await client.ready()
            assert await client.model_ready("echo")
            assert await client.health() is Health.SERVING
            assert (await client.server()).name == "fake"
            assert (await client.metadata("echo")).name == "echo"
            assert [row.name for row in await client.models()] == ["echo"]
            await client.wait_until_ready("echo")

    asyncio.run(ask())


def test_the_twins_have_the_same_methods_with_the_same_arguments() -> None:
    def shape(kind: type) -> dict[str, Any]:
        return {
            name: (dict(method.__annotations__), method.__kwdefaults__, method.__defaults__)
            for name, method in vars(kind).items()
            if callable(method) and not name.startswith("_")
        }

    kinds = [shape(Client), shape(AsyncClient)]
    for kind in kinds:
        for name in ("generate", "sequence"):
            kind[name][0].pop("return")  # what they give has an awaited twin itself
    assert kinds[0] == kinds[1]


def test_trailers_and_typed_errors_arrive(server: Any) -> None:
    def trail(request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("queue-us", "3"),))
        return server._ModelInfer(request, context)

    async def ask() -> None:
        async with AsyncClient(server.address, retry=None) as client:
            server.overrides["ModelInfer"] = trail
            assert (await client.infer("echo", {"x": 1.0})).trailers["queue-us"] == "3"
            server.overrides["ModelInfer"] = lambda request, context: context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "full"
            )
            with pytest.raises(e.Overloaded, match="full") as caught:
                await client.infer("echo", {"x": 1.0})
            assert caught.value.model == "echo"
            with pytest.raises(e.ModelNotFound):
                await client.infer("nope", {"x": 1.0})
            with pytest.raises(e.InvalidRequest, match="got text") as local:
                await client.infer("echo", {"x": "text"})
            assert local.value.address == server.address

    asyncio.run(ask())


def test_a_passing_failure_is_tried_again(server: Any) -> None:
    calls = []

    def flaky(request: Any, context: Any) -> Any:
        calls.append(1)
        if len(calls) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        return server._ModelInfer(request, context)

    async def ask() -> None:
        server.overrides["ModelInfer"] = flaky
        async with AsyncClient(server.address) as client:
            await client.infer("echo", {"x": 1.0})

    asyncio.run(ask())
    assert len(calls) == 3


def test_a_burst_of_five_hundred_tasks_each_gets_its_own_answer(server: Any) -> None:
    async def ask() -> None:
        async with AsyncClient(server.address, deadline_s=60) as client:
            answers = await asyncio.gather(*(client.infer("echo", {"x": [number]}) for number in range(500)))
            assert [int(answer["x"][0]) for answer in answers] == list(range(500))

    asyncio.run(ask())
    assert len(server.peers) == 1


def test_a_deadline_ends_a_slow_call(server: Any) -> None:
    leave = threading.Event()
    server.overrides["ModelInfer"] = lambda request, context: leave.wait(20) and b""

    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            with pytest.raises(e.DeadlineExceeded, match=r"within 0\.2 s"):
                await client.infer("echo", {"x": 1.0}, deadline_s=0.2)

    asyncio.run(ask())
    leave.set()


def hanging(server: Any) -> tuple[threading.Event, threading.Event]:
    """ModelInfer that hangs until its call ends; events of its arrival and of its end."""
    arrived, ended = threading.Event(), threading.Event()

    def hang(request: Any, context: Any) -> bytes:
        context.add_callback(ended.set)
        arrived.set()
        ended.wait(20)
        return b""

    server.overrides["ModelInfer"] = hang
    return arrived, ended


def test_cancelling_a_task_cancels_its_call_on_the_server(server: Any) -> None:
    arrived, ended = hanging(server)

    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            task = asyncio.create_task(client.infer("echo", {"x": 1.0}))
            assert await asyncio.to_thread(arrived.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(ended.wait, 20)

    asyncio.run(ask())


def test_closing_ends_calls_in_flight_with_an_error_and_not_as_a_cancelled_task(server: Any) -> None:
    arrived, _ = hanging(server)

    async def ask() -> None:
        client = AsyncClient(server.address)
        task = asyncio.create_task(client.infer("echo", {"x": 1.0}))
        assert await asyncio.to_thread(arrived.wait, 20)
        await client.close()
        with pytest.raises(e.CallCancelled, match="closed"):
            await task
        with pytest.raises(e.ClientMisused, match="closed"):
            await client.live()
        await client.close()

    asyncio.run(ask())


def test_asyncio_timeout_works_as_everywhere(server: Any) -> None:
    hanging(server)

    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.infer("echo", {"x": 1.0})

    asyncio.run(ask())


def test_it_is_made_outside_a_loop_and_belongs_to_the_loop_of_its_first_call(server: Any) -> None:
    client = AsyncClient(server.address)
    other = asyncio.new_event_loop()

    async def first() -> None:
        assert await client.live()
        try:
            with pytest.raises(e.ClientMisused, match="one event loop"):
                await asyncio.to_thread(other.run_until_complete, client.live())
        finally:
            await client.close()

    asyncio.run(first())
    other.close()


def test_waiting_for_a_model_pauses_without_blocking_the_loop(server: Any, make_echo: Any) -> None:
    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            waiting = asyncio.create_task(client.wait_until_ready("late", deadline_s=20))
            while server.count("ModelReady") < 2:
                await asyncio.sleep(0)
            assert not waiting.done()
            server.models["late"] = make_echo("FP32")
            await waiting
            with pytest.raises(e.DeadlineExceeded, match="last seen: Request for unknown model"):
                await client.wait_until_ready("never", deadline_s=0.3)

    asyncio.run(ask())


def test_both_kinds_of_client_work_in_one_process(server: Any, client: Client) -> None:
    async def ask() -> float:
        async with AsyncClient(server.address) as other:
            answers = await asyncio.gather(
                asyncio.to_thread(client.infer, "echo", {"x": 1.0}), other.infer("echo", {"x": 2.0})
            )
            return float(sum(answer["x"] for answer in answers))

    assert asyncio.run(ask()) == 3.0


def test_tls(make_server: Any, make_echo: Any, certificates: Any) -> None:
    from forwardpass import TLS

    server = make_server(certificates.server_credentials(ask_client=False))
    server.models["echo"] = make_echo("FP32")

    async def ask() -> None:
        async with AsyncClient(server.address, tls=TLS(ca_file=certificates.ca)) as client:
            assert (await client.infer("echo", {"x": [1.0]}))["x"] == 1.0

    asyncio.run(ask())
