"""The agent's CUDA on a real GPU; on a stand-in of the driver, TensorRT's jobs test it."""

import ctypes

import numpy as np
import pytest
import torch

from bcnet.agent.cuda import Cuda, cuda
from bcnet.agent.errors import JobError

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> Cuda:
    return cuda()


def test_the_gpu_is_the_one_that_pytorch_sees(gpu: Cuda) -> None:
    facts, properties = gpu.facts(), torch.cuda.get_device_properties(0)
    assert facts["name"] == properties.name
    assert facts["compute_capability"] == f"{properties.major}.{properties.minor}"


def test_what_is_written_into_a_buffer_is_read_from_it(gpu: Cuda) -> None:
    array = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32)
    buffer, back = gpu.buffer(array.nbytes), np.empty_like(array)
    gpu.write(buffer, array)
    gpu.read(back, buffer)
    assert np.array_equal(back, array)


def test_a_graph_does_its_work_when_it_is_launched_and_not_before_and_events_time_it(gpu: Cuda) -> None:
    array = np.zeros(1 << 16, np.uint8)
    buffer, back = gpu.buffer(array.nbytes), np.empty_like(array)

    def sevens() -> bool:
        place, size = ctypes.c_ulonglong(int(buffer)), ctypes.c_size_t(array.nbytes)
        return not gpu._driver.cuMemsetD8Async(place, ctypes.c_ubyte(7), size, gpu.stream)

    assert sevens()
    gpu.synchronize()
    gpu.write(buffer, array)
    launch = gpu.captured(sevens)
    assert launch is not None
    gpu.synchronize()
    gpu.read(back, buffer)
    assert not back.any()
    start, end = gpu.events[0]
    gpu.record(start)
    launch()
    gpu.record(end)
    assert 0 < gpu.elapsed_ms(start, end) < 1000
    gpu.read(back, buffer)
    assert (back == 7).all()


def test_a_buffer_larger_than_the_gpu_is_refused_with_its_size(gpu: Cuda) -> None:
    with pytest.raises(JobError, match=r"the GPU cannot allocate 35184372\.1 MB: "):
        gpu.buffer(1 << 45)
