"""nvcc, headers, libraries; torch's cpp_extension compiles CUDA, for the GPUs that are asked for"""

import ctypes
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

from torchdock.inside import check, fatbin, versions

# Compilers, and on a machine that is busy.
pytestmark = [pytest.mark.devel, pytest.mark.limit(600)]
REMEDY = (
    "use the devel image (invoke build --devel) as it is: it has the compilers, CUDA_HOME and TORCH_CUDA_ARCH_LIST."
)

KERNEL = r"""
#include <cstdint>
#include <cuda_runtime.h>

__global__ void kernel(float a, const float* x, const float* y, float* result, int64_t n) {
    for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
        result[i] = a * x[i] + y[i];
}

cudaError_t launch(float a, const float* x, const float* y, float* result, int64_t n, cudaStream_t stream) {
    if (n > 0) kernel<<<256, 256, 0, stream>>>(a, x, y, result, n);
    return cudaGetLastError();
}
"""
BINDING = r"""
#include <torch/extension.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

cudaError_t launch(float a, const float* x, const float* y, float* result, int64_t n, cudaStream_t stream);

torch::Tensor scaled_sum(double a, const torch::Tensor& x, const torch::Tensor& y) {
    TORCH_CHECK(x.is_cuda() && x.device() == y.device(), "x and y must be on the same GPU");
    TORCH_CHECK(x.is_contiguous() && y.is_contiguous() && x.sizes() == y.sizes(), "x and y must have the same layout");
    TORCH_CHECK(x.scalar_type() == torch::kFloat && y.scalar_type() == torch::kFloat, "x and y must be float32");
    const c10::cuda::CUDAGuard guard(x.device());
    auto result = torch::empty_like(x);
    C10_CUDA_CHECK(launch(float(a), x.const_data_ptr<float>(), y.const_data_ptr<float>(),
                          result.mutable_data_ptr<float>(), x.numel(), c10::cuda::getCurrentCUDAStream()));
    return result;
}

int64_t devices() {
    int count = 0;
    C10_CUDA_CHECK(cudaGetDeviceCount(&count));
    return count;
}
"""
# What torch's own headers and the extensions that people install include, from every wheel that has headers.
HEADERS = r"""
#include <ATen/cuda/CUDAContext.h>
#include <cub/cub.cuh>
#include <thrust/device_vector.h>
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_profiler_api.h>
#include <cudnn.h>
#include <cufft.h>
#include <curand_kernel.h>
#include <cusparseLt.h>
#include <mma.h>
#include <nccl.h>
#include <nvml.h>
#include <nvtx3/nvToolsExt.h>

__global__ void sum(const float* x, float* result) {
    using Reduce = cub::BlockReduce<float, 128>;
    __shared__ typename Reduce::TempStorage storage;
    const float total = Reduce(storage).Sum(x[threadIdx.x]);
    if (threadIdx.x == 0) *result = total;
}
"""
# A library of its own, without torch: what it was compiled with, and what it runs on.
ALONE = r"""
#include <cuda_runtime.h>

__global__ void nothing() {}

extern "C" int compiled_with() { return CUDART_VERSION; }
extern "C" int runs_on() {
    int version = 0;
    return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}
"""
LIBRARIES = ("cudart", "cublas", "cublasLt", "cudnn", "cufft", "curand", "cusolver", "cusparse", "nccl", "nvrtc")


@pytest.fixture(scope="module")
def home():
    """CUDA_HOME, with nvcc in it."""
    found = os.environ.get("CUDA_HOME", "")
    nvcc = Path(found, "bin", "nvcc")
    assert found and nvcc.is_file(), f"There is no nvcc here: CUDA_HOME is {found or 'not set'}."
    return Path(found)


@pytest.fixture(scope="module")
def folder(home):
    """An empty folder where extensions are built by default: what is there already would hide a missing compiler."""
    from torch.utils import cpp_extension

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    root.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="check-", dir=root))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def module(folder):
    """A Python module of C++ and CUDA sources."""
    from torch.utils import cpp_extension

    build = folder / "inline"
    build.mkdir()
    # Without the implicit headers: torch's own headers once for each architecture take minutes.
    return cpp_extension.load_inline(
        "torchdock_inline",
        cpp_sources=[BINDING],
        cuda_sources=[KERNEL],
        functions=["scaled_sum", "devices"],
        build_directory=str(build),
        no_implicit_headers=True,
    )


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {(done.stderr or done.stdout).strip()[-500:]}"
    return done.stdout


def asked() -> set[str]:
    """What TORCH_CUDA_ARCH_LIST asks for, in nvcc's words."""
    from torch.utils import cpp_extension

    flags = " ".join(cpp_extension._get_cuda_arch_flags())
    return {f"{kind}_{number}" for kind, number in re.findall(r"code=(sm|compute)_(\d+)", flags)}


def test_the_compiler_is_the_locks(home):
    """What is proved here would be proved of another compiler than the lock names."""
    lock = check.ROOT / "docker" / "locks" / os.environ.get("TORCHDOCK_VARIANT", "") / "devel.txt"
    assert lock.is_file(), f"There is no {lock}: this image has no compiler from a lock."
    for name, version in versions.pins(lock.read_text(encoding="utf-8")).items():
        assert metadata.version(name) == version, name


def test_nvcc_is_of_torchs_cuda(home):
    """cpp_extension refuses another major, and another minor may need another driver."""
    said = run(home / "bin" / "nvcc", "--version")
    assert re.findall(r"release (\d+\.\d+)", said) == [torch.version.cuda]
    found = shutil.which("nvcc")
    assert found and Path(found).samefile(home / "bin" / "nvcc"), f"the nvcc on the PATH is {found}"


def test_headers(home, folder):
    """CUDA's, cuDNN's, NCCL's and torch's own headers are there and of versions that compile together."""
    from torch.utils import cpp_extension

    source = folder / "headers.cu"
    source.write_text(HEADERS)
    includes = [f"-I{path}" for path in (*cpp_extension.include_paths("cuda"), sysconfig.get_path("include"))]
    run(home / "bin" / "nvcc", "-c", "-std=c++20", "-arch=sm_90", *includes, source, "-o", source.with_suffix(".o"))
    assert fatbin.targets(source.with_suffix(".o").read_bytes()) == {"sm_90", "compute_90"}


def test_libraries(home, folder):
    """The linker finds each of CUDA's libraries by the name that extensions use."""
    source = folder / "libraries.cpp"
    source.write_text("int main() {}\n")
    names = [f"-l{name}" for name in LIBRARIES]
    run("c++", source, f"-L{home / 'lib64'}", "-Wl,--no-as-needed", *names, "-o", source.with_suffix(""))


def test_load_inline(module):
    """C++ and CUDA become a module that speaks torch: its errors, CUDA's errors, and where there is a GPU, how many."""
    with pytest.raises(RuntimeError, match="must be on the same GPU"):
        module.scaled_sum(2.0, torch.ones(3), torch.ones(3))
    if torch.cuda.is_available():
        assert module.devices() == torch.cuda.device_count()
    else:
        with pytest.raises(RuntimeError, match=r"CUDA error: (no CUDA-capable device|CUDA driver version is insuff)"):
            module.devices()


def test_architectures(module):
    """The module runs on all GPUs that TORCH_CUDA_ARCH_LIST names, not only on the one that was there."""
    assert asked()
    assert fatbin.targets(Path(module.__file__).read_bytes()) == asked()


def test_load(folder):
    """A .cu file becomes a library of its own; header, library and torch are of one CUDA."""
    from torch.utils import cpp_extension

    build = folder / "alone"
    build.mkdir()
    (build / "alone.cu").write_text(ALONE)
    cpp_extension.load("torchdock_alone", [str(build / "alone.cu")], build_directory=str(build), is_python_module=False)
    path = build / "torchdock_alone.so"
    library = ctypes.CDLL(str(path))
    major, minor = map(int, torch.version.cuda.split("."))
    assert library.compiled_with() == library.runs_on() == major * 1000 + minor * 10
    assert fatbin.targets(path.read_bytes()) == asked()


@pytest.mark.gpu
def test_kernel_computes(module):
    """On every GPU, in the current stream: a x + y as torch computes it, within the rounding of two operations."""
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        with torch.cuda.stream(torch.cuda.Stream(device)):
            x, y = torch.randn(1_000_003, device=device), torch.randn(1_000_003, device=device)
            result = module.scaled_sum(2.5, x, y)
            bound = torch.finfo(torch.float32).eps * (2.5 * x.abs() + y.abs())
            assert result.device == device
            assert (result.double() - (2.5 * x.double() + y.double())).abs().le(bound).all()
        empty = torch.empty(0, device=device)
        assert module.scaled_sum(1.0, empty, empty).shape == (0,)
