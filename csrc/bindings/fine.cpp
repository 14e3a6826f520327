// Fine codes in Python: the products and the search behind csrkern.FineQuantizer.
#include "csrkern/fine.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "arrays.hpp"

namespace py = pybind11;

namespace {

py::array_t<float> unit_rows(const Array<float>& x, const std::optional<Array<float>>& center,
                             int num_threads) {
  if (x.ndim() != 2 || (center && center->size() != x.shape(1)) || num_threads < 1) {
    throw std::invalid_argument("expected x [n, width] and a center [width]");
  }
  py::array_t<float> out({x.shape(0), x.shape(1)});
  float* const to = out.mutable_data();
  py::gil_scoped_release release;
  csrkern::unit_rows(x.data(), x.shape(0), x.shape(1), center ? center->data() : nullptr, to,
                     num_threads);
  return out;
}

bool within(const Array<float>& x, float limit) {
  py::gil_scoped_release release;
  return csrkern::within(x.data(), x.size(), limit);
}

py::array_t<float> block_products(const Array<float>& x, const Array<float>& blocks,
                                  const Array<int64_t>& first, int num_threads) {
  if (x.ndim() != 2 || blocks.ndim() != 3 || first.ndim() != 1 || first.size() != blocks.shape(0) ||
      num_threads < 1) {
    throw std::invalid_argument("expected x [n, width], blocks [b, rows, columns] and first [b]");
  }
  for (py::ssize_t b = 0; b < first.size(); ++b) {
    if (first.at(b) < 0 || first.at(b) > x.shape(1) - blocks.shape(1)) {
      throw std::invalid_argument("expected blocks within the width of x");
    }
  }
  py::array_t<float> out({x.shape(0), blocks.shape(0), blocks.shape(2)});
  const csrkern::BlockProducts args{x.shape(0),      x.shape(1),      x.data(),
                                    blocks.shape(0), blocks.shape(1), blocks.shape(2),
                                    blocks.data(),   first.data(),    out.mutable_data()};
  py::gil_scoped_release release;
  csrkern::block_products(args, num_threads);
  return out;
}

py::array_t<uint8_t> fine_encode(const Array<float>& products, const Array<float>& squares,
                                 const Array<float>& crossed, int64_t parts, int64_t beam,
                                 int num_threads) {
  using csrkern::kWords;
  const bool shaped = products.ndim() == 3 && products.shape(2) == kWords && parts >= 1 &&
                      beam >= 1 && beam <= kWords && num_threads >= 1 &&
                      products.shape(1) % parts == 0;
  const py::ssize_t books = shaped ? products.shape(1) : 0;
  if (!shaped || squares.size() != books * kWords ||
      crossed.size() != books * kWords * (books / parts) * kWords) {
    throw std::invalid_argument("expected products [n, books, 256], squares and crossed of them");
  }
  py::array_t<uint8_t> codes({products.shape(0), books});
  const csrkern::FineEncoding args{
      products.shape(0), books,          parts,          beam,
      products.data(),   squares.data(), crossed.data(), codes.mutable_data()};
  py::gil_scoped_release release;
  csrkern::fine_encode(args, num_threads);
  return codes;
}

}  // namespace

void bind_fine(py::module_& m) {
  using py::arg;
  m.def("unit_rows", &unit_rows, "Rows x [n, width] at norm 1, less the center [width].", arg("x"),
        arg("center") = py::none(), arg("num_threads") = 1);
  m.def("within", &within, "Whether all numbers are at most `limit` in magnitude.", arg("x"),
        arg("limit"));
  m.def("block_products", &block_products,
        "Products [n, b, columns] of rows x [n, width] with blocks [b, rows, columns].", arg("x"),
        arg("blocks"), arg("first"), arg("num_threads"));
  m.def("fine_encode", &fine_encode, "Fine codes uint8 [n, books].", arg("products"),
        arg("squares"), arg("crossed"), arg("parts"), arg("beam"), arg("num_threads"));
}
