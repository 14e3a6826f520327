// The Python module csrkern._C: the only file that knows Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrkern/isa.hpp"
#include "csrkern/parallel.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of csrkern.";
  m.def(
      "isa", [] { return csrkern::isa_name(csrkern::isa()); },
      "The instruction set in use: 'portable', 'avx2' or 'avx512'.");
  m.def("available_threads", &csrkern::available_threads,
        "The number of processors this process may run on.");
}
