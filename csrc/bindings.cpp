// The Python module csrkern._C: the only file that knows Python.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrkern/isa.hpp"
#include "csrkern/parallel.hpp"
#include "csrkern/topk_relu.hpp"

namespace py = pybind11;

namespace {

// Tensors arrive as addresses: PyTorch's ABI stays out of this module.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_topk_relu(py::module_& m) {
  py::native_enum<csrkern::DType>(m, "DType", "enum.IntEnum")
      .value("float32", csrkern::DType::float32)
      .value("float16", csrkern::DType::float16)
      .value("bfloat16", csrkern::DType::bfloat16)
      .finalize();
  m.def(
      "topk_relu",
      [](uintptr_t pre, csrkern::DType dtype, int64_t n, int64_t h, int64_t row_stride,
         int64_t col_stride, uintptr_t latent_mask, int64_t k, uintptr_t values, uintptr_t indices,
         int num_threads) {
        py::gil_scoped_release release;
        csrkern::topk_relu({pointer<const void>(pre), dtype, n, h, row_stride, col_stride,
                            pointer<const uint8_t>(latent_mask), k, pointer<void>(values),
                            pointer<int32_t>(indices)},
                           num_threads);
      },
      "See csrkern/topk_relu.hpp; addresses are integers.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of csrkern.";
  m.def(
      "isa", [] { return csrkern::isa_name(csrkern::isa()); },
      "The instruction set in use: 'portable', 'avx2' or 'avx512'.");
  m.def("available_threads", &csrkern::available_threads,
        "The number of processors this process may run on.");
  bind_topk_relu(m);
}
