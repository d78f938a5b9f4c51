"""SystemSharedMemory… and CudaSharedMemory…: which regions clients have registered.

Off unless the server was started with --enable-shared-memory. No region lies on a GPU: to register one is refused,
while "which are there?" and "forget them all" have true answers, and clients ask both before they use system memory.
"""

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import NotFound, NotImplementedHere
from forwardpass_server.rpc.messages import parse
from forwardpass_server.tensors.shared_memory import SharedMemory
from forwardpass_server.transport.call import Call


class SystemMemory:
    """Regions in the system's shared memory. Loop thread."""

    def __init__(self, regions: SharedMemory) -> None:
        self._regions = regions

    def register(self, call: Call, body: bytes) -> None:
        """Raises InvalidRequest, AlreadyExists or Overloaded, as `SharedMemory.register`."""
        request = parse(pb.SystemSharedMemoryRegisterRequest, body)
        self._regions.register(request.name, request.key, request.offset, request.byte_size, call.peer)
        call.reply(pb.SystemSharedMemoryRegisterResponse().SerializeToString())

    def unregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> pb.SystemSharedMemoryUnregisterResponse:
        self._regions.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def status(self, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        """Raises NotFound."""
        return pb.SystemSharedMemoryStatusResponse(
            regions={
                region.name: pb.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name, key=region.key, offset=region.offset, byte_size=region.nbytes
                )
                for region in self._regions.status(request.name)
            }
        )


class CudaMemory:
    """Regions on GPUs: none. Loop thread."""

    def register(self, _request: pb.CudaSharedMemoryRegisterRequest) -> pb.CudaSharedMemoryRegisterResponse:
        """Raises NotImplementedHere."""
        raise NotImplementedHere(
            "CudaSharedMemoryRegister is not served by this version of forwardpass; use system shared memory, or send "
            "tensors in the message"
        )

    def unregister(self, _request: pb.CudaSharedMemoryUnregisterRequest) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()

    def status(self, request: pb.CudaSharedMemoryStatusRequest) -> pb.CudaSharedMemoryStatusResponse:
        """Raises NotFound."""
        if request.name:
            raise NotFound(f"CUDA shared memory region '{request.name:.128}' is not registered")
        return pb.CudaSharedMemoryStatusResponse()
