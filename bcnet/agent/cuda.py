"""CUDA for the runtimes of a device: buffers (by PyCUDA, else by cuda-python), streams, events and graphs.

PyCUDA does not support CUDA graphs, so streams, events and graphs use the driver's library through ctypes.
All of them belong to the GPU's primary context, like those of TensorRT. For use by a single thread.
"""

import ctypes
from typing import Any, Callable, Dict, List, Optional

from .errors import JobError, one_line

NAME_BYTES = 256
CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
CACHE_BYTES = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: 0 without such a cache
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: calls of other threads do not break a capture
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

IN_FLIGHT = 2  # number of inferences that are enqueued ahead, so that their times exclude the launch

Handle = ctypes.c_void_p

_found: List["Cuda"] = []  # one per process


def cuda() -> "Cuda":
    """This machine's first GPU. Raises JobError if there is none, or its memory cannot be accessed."""
    if not _found:
        _found.append(Cuda())
    return _found[0]


class Cuda:
    """A GPU: its properties, buffers, a stream, events and graphs. See `cuda`."""

    def __init__(self) -> None:
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError as cause:
            raise JobError("device", "there is no NVIDIA driver on this machine (%s)" % cause)
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._buffers = _buffers()
        self.through = self._buffers.name
        self.stream = Handle()
        # A blocking stream: it waits for copies, which use the default stream.
        self._call("cuStreamCreate", ctypes.byref(self.stream), 0)
        self.events = [(self._event(), self._event()) for _ in range(IN_FLIGHT)]

    def facts(self) -> Dict[str, str]:
        """The GPU's name, compute capability ("8.7"), PCI address, and its driver's CUDA version ("12.6").

        "cache_mb" is the size of its level-2 cache in 10^6 bytes, if it has one.
        """
        name, address = ctypes.create_string_buffer(NAME_BYTES), ctypes.create_string_buffer(NAME_BYTES)
        self._call("cuDeviceGetName", name, NAME_BYTES, self._device)
        self._call("cuDeviceGetPCIBusId", address, NAME_BYTES, self._device)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        found = {
            "name": name.value.decode(errors="replace"),
            "address": address.value.decode(errors="replace"),
            "compute_capability": "%d.%d" % tuple(self._attribute(number) for number in CAPABILITY),
            "cuda_driver": "%d.%d" % (version.value // 1000, version.value % 1000 // 10),
        }
        cache = self._attribute(CACHE_BYTES)
        if cache > 0:
            found["cache_mb"] = "%.4g" % (cache / 1e6)
        return found

    def _attribute(self, number: int) -> int:
        """One of the GPU's attributes, by its number in cuda.h."""
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def buffer(self, size_bytes: int) -> Any:
        """GPU memory; int() is its address; it is freed with the object. Raises JobError "network"."""
        return self._buffers.allocate(max(size_bytes, 1))

    def write(self, buffer: Any, array: Any) -> None:
        """Copy a contiguous numpy array into a buffer."""
        _copied(self._buffers.write, buffer, array)

    def read(self, array: Any, buffer: Any) -> None:
        """Copy the beginning of a buffer into a contiguous numpy array."""
        _copied(self._buffers.read, array, buffer)

    def synchronize(self) -> None:
        """Wait until the stream has completed all enqueued work."""
        self._call("cuStreamSynchronize", self.stream)

    def _event(self) -> Handle:
        event = Handle()  # without blocking sync: waiting spins, which has the lowest latency
        self._call("cuEventCreate", ctypes.byref(event), 0)
        return event

    def record(self, event: Handle) -> None:
        """Enqueue the event into the stream."""
        self._call("cuEventRecord", event, self.stream)

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        """Milliseconds between two recorded events; waits for the second."""
        self._call("cuEventSynchronize", end)
        found = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(found), start, end)
        return found.value

    def captured(self, enqueue: Callable[[], bool]) -> Optional[Callable[[], None]]:
        """A function that launches the work of `enqueue` as one CUDA graph; None if it cannot be captured.

        `enqueue` must have run before, so that its initialisation is not captured.
        """
        graph, executable = Handle(), Handle()
        self._call("cuStreamBeginCapture_v2", self.stream, THREAD_LOCAL)
        done = enqueue()
        ended = self._driver.cuStreamEndCapture(self.stream, ctypes.byref(graph))  # also after a failure
        if not done or ended or not graph:
            return None
        instantiate = self._driver.cuGraphInstantiateWithFlags
        failed = instantiate(ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        if failed:
            return None
        return _Graph(self, executable).launch

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver. Raises JobError with the driver's message."""
        code = getattr(self._driver, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            reason = text.value.decode(errors="replace") if text.value else "error %d" % code
            kind = "network" if code == OUT_OF_MEMORY else "device"
            raise JobError(kind, "%s of the CUDA driver failed: %s" % (name, reason))


class _Graph:
    """An executable graph; it is destroyed with the object."""

    def __init__(self, cuda: Cuda, executable: Handle) -> None:
        self._cuda, self._executable = cuda, executable

    def launch(self) -> None:
        self._cuda._call("cuGraphLaunch", self._executable, self._cuda.stream)

    def __del__(self) -> None:
        self._cuda._driver.cuGraphExecDestroy(self._executable)


def _copied(copy: Callable[[Any, Any], None], *ends: Any) -> None:
    try:
        copy(*ends)
    except JobError:
        raise
    except Exception as cause:
        raise JobError("device", "copying to or from the GPU failed: %s" % one_line(cause))


def _buffers() -> Any:
    """Access to the GPU's memory by PyCUDA, else by cuda-python. Raises JobError with why neither works."""
    reasons = []
    for kind in (_PyCuda, _CudaPython):
        try:
            return kind()
        except JobError:
            raise
        except Exception as cause:
            reasons.append("%s: %s" % (kind.package, one_line(cause)))
    raise JobError(
        "device",
        "the GPU's memory cannot be accessed (%s); install one: pip install pycuda" % "; ".join(reasons),
    )


class _PyCuda:
    package = "PyCUDA"

    def __init__(self) -> None:
        import pycuda.autoprimaryctx
        import pycuda.driver

        self._driver = pycuda.driver
        self.name = "PyCUDA " + pycuda.VERSION_TEXT

    def allocate(self, size_bytes: int) -> Any:
        try:
            return self._driver.mem_alloc(size_bytes)
        except Exception as cause:
            raise _no_memory(size_bytes, one_line(cause))

    def write(self, buffer: Any, array: Any) -> None:
        self._driver.memcpy_htod(buffer, array)

    def read(self, array: Any, buffer: Any) -> None:
        self._driver.memcpy_dtoh(array, buffer)


class _CudaPython:
    package = "cuda-python"

    def __init__(self) -> None:
        try:
            import cuda.bindings.runtime as runtime
        except ImportError:  # before 12.6
            import cuda.cudart as runtime
        self._runtime = runtime
        self.name = "cuda-python"
        self.check(runtime.cudaFree(0), "cudaFree")  # opens the primary context

    def check(self, answer: Any, name: str) -> None:
        """Raises JobError if a function's first return value is an error."""
        if answer[0] != self._runtime.cudaError_t.cudaSuccess:
            raise JobError("device", "%s of the CUDA runtime failed: %s" % (name, answer[0]))

    def allocate(self, size_bytes: int) -> Any:
        answer = self._runtime.cudaMalloc(size_bytes)
        if answer[0] != self._runtime.cudaError_t.cudaSuccess:
            raise _no_memory(size_bytes, str(answer[0]))
        return _Allocation(int(answer[1]), self._runtime.cudaFree)

    def write(self, buffer: Any, array: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.check(self._runtime.cudaMemcpy(int(buffer), array.ctypes.data, array.nbytes, kind), "cudaMemcpy")

    def read(self, array: Any, buffer: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.check(self._runtime.cudaMemcpy(array.ctypes.data, int(buffer), array.nbytes, kind), "cudaMemcpy")


class _Allocation:
    def __init__(self, address: int, free: Callable[[int], Any]) -> None:
        self._address, self._free = address, free

    def __int__(self) -> int:
        return self._address

    def __del__(self) -> None:
        self._free(self._address)


def _no_memory(size_bytes: int, reason: str) -> JobError:
    return JobError("network", "the GPU cannot allocate %.1f MB: %s" % (size_bytes / 1e6, reason))
