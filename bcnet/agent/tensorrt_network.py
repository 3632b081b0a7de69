"""An engine on the GPU, with its buffers. In: a serialised engine. Out: outputs, or inferences to time."""

from typing import Any, Dict, List, Sequence, Tuple

from .cuda import cuda
from .errors import JobError
from .tensorrt_module import Api

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class Network:
    """An engine on the GPU, with a buffer for each input and output."""

    def __init__(self, api: Api, content: bytes, settings: Dict[str, Any]) -> None:
        trt = api.trt
        self.api = api
        self.gpu = cuda()
        self._runtime = trt.Runtime(api.log)
        self.engine = self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise JobError("network", api.message("cannot load the engine"))
        self.context = _context(api, self.engine)
        if self.context is None:
            raise JobError("network", api.message("cannot create the engine's execution context"))
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        is_input = [self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names]
        self.inputs = [name for name, incoming in zip(names, is_input) if incoming]
        self.outputs = [name for name, incoming in zip(names, is_input) if not incoming]
        self.types = {name: _dtype(self.engine, name) for name in names}
        self.min_batch, opt_batch, self.max_batch = self._sizes()
        self._set_batch(self.max_batch)
        self.buffers = {name: self.gpu.buffer(self._size(name)) for name in names}
        for name in names:
            if not self.context.set_tensor_address(name, int(self.buffers[name])):
                raise JobError("network", api.message("does not accept the buffer of '%s'" % name))
        self.timed = int(settings.get("batch") or opt_batch)

    def _sizes(self) -> Tuple[int, int, int]:
        """The smallest, optimal and largest batch; all the same if it is fixed."""
        name = self.inputs[0]
        shape = tuple(self.engine.get_tensor_shape(name))
        if shape and shape[0] >= 0:
            return shape[0], shape[0], shape[0]
        smallest, optimal, largest = self.engine.get_tensor_profile_shape(name, 0)
        return smallest[0], optimal[0], largest[0]

    def _set_batch(self, size: int) -> None:
        for name in self.inputs:
            shape = tuple(self.engine.get_tensor_shape(name))
            if -1 in shape and not self.context.set_input_shape(name, (size,) + shape[1:]):
                raise JobError("network", self.api.message("does not accept a batch of %d" % size))

    def _shape(self, name: str) -> Tuple[int, ...]:
        shape = tuple(self.context.get_tensor_shape(name))
        if -1 in shape:
            raise JobError("network", "the shape of '%s' depends on values: %s" % (name, shape))
        return shape

    def _size(self, name: str) -> int:
        size = self.types[name].itemsize
        for side in self._shape(name):
            size *= side
        return int(size)

    def fill(self) -> List[Any]:
        """Fill all inputs with noise, at the batch that is timed; integers and booleans with zeros.

        Returns the arrays, in the engine's order.
        """
        import numpy as np

        self._set_batch(self.timed)
        rng = np.random.RandomState(0)
        arrays = []
        for name in self.inputs:
            kind, shape = self.types[name], self._shape(name)
            array = rng.standard_normal(shape) if kind.kind == "f" else np.zeros(shape)
            arrays.append(np.ascontiguousarray(array.astype(kind)))
        self.put(arrays)
        return arrays

    def run(self, arrays: Sequence[Any]) -> List[Any]:
        """All outputs for one batch of inputs, in the engine's order."""
        import numpy as np

        self._set_batch(len(arrays[0]))
        given = []
        for name, array in zip(self.inputs, arrays):
            if tuple(array.shape) != self._shape(name):
                shapes = (name, self._shape(name), tuple(array.shape))
                raise JobError("network", "input '%s' needs shape %s, not %s" % shapes)
            given.append(np.ascontiguousarray(array.astype(self.types[name])))
        self.put(given)
        self.enqueue()
        self.gpu.synchronize()
        found = self.empty_outputs()
        self.get(found)
        return found

    def put(self, arrays: Sequence[Any]) -> None:
        """Copy contiguous arrays of the inputs' types and shapes to the GPU."""
        for name, array in zip(self.inputs, arrays):
            self.gpu.write(self.buffers[name], array)

    def empty_outputs(self) -> List[Any]:
        """An array for each output, of the current batch."""
        import numpy as np

        return [np.empty(self._shape(name), self.types[name]) for name in self.outputs]

    def get(self, arrays: Sequence[Any]) -> None:
        """Copy the outputs from the GPU into contiguous arrays of their types and shapes."""
        for name, array in zip(self.outputs, arrays):
            self.gpu.read(array, self.buffers[name])

    def enqueue(self) -> None:
        """Enqueue one inference into the stream. Raises JobError."""
        if not self.try_enqueue():
            raise JobError("network", self.api.message("cannot run the network"))

    def try_enqueue(self) -> bool:
        """Enqueue one inference into the stream; False if that failed."""
        return bool(self.context.execute_async_v3(self.gpu.stream.value))


def _context(api: Api, engine: Any) -> Any:
    """The execution context of an engine. TensorRT for RTX compiles the kernels of a new shape eagerly."""
    kinds = getattr(api.trt, "DynamicShapesKernelSpecializationStrategy", None)
    if kinds is None or not hasattr(engine, "create_runtime_config"):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
    return engine.create_execution_context(config)


def _dtype(engine: Any, name: str) -> Any:
    import numpy as np

    kind = str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
    if kind not in DTYPES:
        raise JobError("network", "'%s' has type %s, which numpy does not support" % (name, kind))
    return np.dtype(DTYPES[kind])
