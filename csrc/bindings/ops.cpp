// The Python module csrkern._C. Only this file and index.cpp know Python.
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <utility>
#include <vector>

#include "csrkern/codes.hpp"
#include "csrkern/encode.hpp"
#include "csrkern/gather.hpp"
#include "csrkern/info_nce.hpp"
#include "csrkern/isa.hpp"
#include "csrkern/packed.hpp"
#include "csrkern/parallel.hpp"
#include "csrkern/prefix_errors.hpp"
#include "csrkern/similarity.hpp"
#include "csrkern/topk_relu.hpp"

namespace py = pybind11;

void bind_fine(py::module_& m);   // fine.cpp
void bind_index(py::module_& m);  // index.cpp

namespace {

// Tensors are passed as addresses: PyTorch's ABI stays out of this module.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_codes(py::module_& m) {
  m.def(
      "check_latents",
      [](uintptr_t values, uintptr_t indices, int64_t n, int64_t k, int64_t dim, int num_threads) {
        py::gil_scoped_release release;
        csrkern::check_latents(
            {pointer<const float>(values), pointer<const int32_t>(indices), n, k, dim},
            num_threads);
      },
      "See csrkern/codes.hpp; addresses are integers.");
  m.def(
      "first_invalid",
      [](uintptr_t values, uintptr_t indices, int64_t n, int64_t k, int64_t dim, int num_threads) {
        py::gil_scoped_release release;
        return csrkern::first_invalid(
            {pointer<const float>(values), pointer<const int32_t>(indices), n, k, dim},
            num_threads);
      },
      "See csrkern/codes.hpp; addresses are integers.");
  m.def(
      "check_postings",
      [](uintptr_t starts, uintptr_t rows, uintptr_t slots, int64_t entries, int64_t n, int64_t k,
         int64_t dim) {
        py::gil_scoped_release release;
        csrkern::check_postings({pointer<const int64_t>(starts), pointer<const int32_t>(rows),
                                 pointer<const int32_t>(slots), nullptr},
                                n, k, dim, entries);
      },
      "See csrkern/codes.hpp; addresses are integers.");
  m.def(
      "transpose",
      [](uintptr_t values, uintptr_t indices, int64_t n, int64_t k, int64_t dim, uintptr_t starts,
         uintptr_t rows, uintptr_t slots, uintptr_t sorted_values, int num_threads) {
        py::gil_scoped_release release;
        csrkern::transpose(
            {pointer<const float>(values), pointer<const int32_t>(indices), n, k, dim},
            pointer<int64_t>(starts), pointer<int32_t>(rows), pointer<int32_t>(slots),
            pointer<float>(sorted_values), num_threads);
      },
      "See csrkern/codes.hpp; addresses are integers.");
}

using PackedArgs = std::tuple<int64_t, int64_t, int64_t, int, float>;  // n, k, dim, bits, largest

void bind_packed(py::module_& m) {
  m.def(
      "packed_bytes",
      [](int64_t k, int64_t dim, int value_bits) {
        return csrkern::packed_form(k, dim, value_bits).row_bytes;
      },
      "Bytes of a row; see csrkern/packed.hpp.");
  m.def(
      "pack",
      [](const PackedArgs& args, uintptr_t values, uintptr_t indices, uintptr_t rows,
         int num_threads) {
        const auto& [n, k, dim, value_bits, largest] = args;
        py::gil_scoped_release release;
        return csrkern::pack(
            {pointer<const float>(values), pointer<const int32_t>(indices), n, k, dim},
            csrkern::packed_form(k, dim, value_bits), largest, pointer<uint8_t>(rows), num_threads);
      },
      "See csrkern/packed.hpp; addresses are integers.");
  m.def(
      "unpack",
      [](const PackedArgs& args, uintptr_t rows, uintptr_t values, uintptr_t indices,
         int num_threads) {
        const auto& [n, k, dim, value_bits, largest] = args;
        py::gil_scoped_release release;
        return csrkern::unpack(pointer<const uint8_t>(rows), n,
                               csrkern::packed_form(k, dim, value_bits), largest,
                               pointer<float>(values), pointer<int32_t>(indices), num_threads);
      },
      "See csrkern/packed.hpp; addresses are integers.");
}

using SourceArgs =
    std::tuple<uintptr_t, int64_t, int64_t, int64_t, uintptr_t>;  // rows, stride, begin, end, scale

int fill_sources(const std::vector<SourceArgs>& from, csrkern::Source* to) {
  if (from.size() > csrkern::kMaxSources) throw py::value_error("too many sources");
  for (const auto& [rows, stride, begin, end, scale] : from) {
    *to++ = {{pointer<const void>(rows), stride}, begin, end, pointer<const float>(scale)};
  }
  return static_cast<int>(from.size());
}

void bind_gather(py::module_& m) {
  m.attr("MAX_PREFIXES") = csrkern::kMaxPrefixes;
  m.def(
      "gather_sum",
      [](uintptr_t values, uintptr_t indices, int64_t n, int64_t k, int64_t dim,
         csrkern::DType dtype, uintptr_t table, int64_t row_stride, int64_t d, uintptr_t bias,
         const std::vector<std::pair<int64_t, uintptr_t>>& prefixes, int num_threads) {
        if (prefixes.size() > csrkern::kMaxPrefixes) throw py::value_error("too many prefixes");
        csrkern::GatherSum args{
            {pointer<const float>(values), pointer<const int32_t>(indices), n, k, dim},
            dtype,
            {pointer<const void>(table), row_stride},
            d,
            pointer<const void>(bias),
            static_cast<int>(prefixes.size()),
            {},
            {}};
        for (size_t q = 0; q < prefixes.size(); ++q) {
          args.ends[q] = prefixes[q].first;
          args.outs[q] = pointer<void>(prefixes[q].second);
        }
        py::gil_scoped_release release;
        csrkern::gather_sum(args, num_threads);
      },
      "See csrkern/gather.hpp; addresses are integers, prefixes are (end, out).");
  m.def(
      "gather_dot",
      [](uintptr_t values, uintptr_t indices, int64_t n, int64_t k, int64_t dim,
         csrkern::DType dtype, uintptr_t table, int64_t row_stride, int64_t d,
         const std::vector<SourceArgs>& sources, uintptr_t out, int num_threads) {
        csrkern::GatherDot args{
            {pointer<const float>(values), pointer<const int32_t>(indices), n, k, dim},
            dtype,
            {pointer<const void>(table), row_stride},
            d,
            0,
            {},
            pointer<float>(out)};
        args.num_sources = fill_sources(sources, args.sources);
        py::gil_scoped_release release;
        csrkern::gather_dot(args, num_threads);
      },
      "See csrkern/gather.hpp; sources are (rows, row_stride, begin, end, 0).");
  m.def(
      "scatter_sum",
      [](uintptr_t starts, uintptr_t rows, uintptr_t slots, int64_t entries, int64_t n, int64_t k,
         int64_t dim, csrkern::DType dtype, int64_t d, const std::vector<SourceArgs>& sources,
         uintptr_t out, int num_threads) {
        csrkern::ScatterSum args{pointer<const int64_t>(starts),
                                 pointer<const int32_t>(rows),
                                 pointer<const int32_t>(slots),
                                 entries,
                                 n,
                                 k,
                                 dim,
                                 dtype,
                                 d,
                                 0,
                                 {},
                                 pointer<void>(out),
                                 n};
        args.num_sources = fill_sources(sources, args.sources);
        py::gil_scoped_release release;
        csrkern::scatter_sum(args, num_threads);
      },
      "See csrkern/gather.hpp; sources are (rows, row_stride, begin, end, scale).");
}

using CodesArgs =
    std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;   // values, indices, n, k, dim
using PostingsArgs = std::tuple<uintptr_t, uintptr_t, uintptr_t>;  // starts, rows, values

csrkern::Codes to_codes(const CodesArgs& args) {
  const auto& [values, indices, n, k, dim] = args;
  return {pointer<const float>(values), pointer<const int32_t>(indices), n, k, dim};
}

csrkern::Postings to_postings(const PostingsArgs& args) {
  const auto& [starts, rows, values] = args;
  return {pointer<const int64_t>(starts), pointer<const int32_t>(rows), nullptr,
          pointer<const float>(values)};
}

void bind_similarity(py::module_& m) {
  m.def(
      "similarity",
      [](const CodesArgs& a, const PostingsArgs& b, int64_t m, uintptr_t out, int num_threads) {
        py::gil_scoped_release release;
        csrkern::similarity(to_codes(a), to_postings(b), m, pointer<float>(out), num_threads);
      },
      "See csrkern/similarity.hpp; addresses are integers, codes and postings are tuples.");
  m.def(
      "similarity_backward",
      [](const CodesArgs& a, const PostingsArgs& b, int64_t m, uintptr_t grad, int64_t row_stride,
         int64_t col_stride, uintptr_t grad_values, int num_threads) {
        py::gil_scoped_release release;
        csrkern::similarity_backward(to_codes(a), to_postings(b), m,
                                     {pointer<const float>(grad), row_stride, col_stride},
                                     pointer<float>(grad_values), num_threads);
      },
      "See csrkern/similarity.hpp; addresses are integers, codes and postings are tuples.");
}

void bind_info_nce(py::module_& m) {
  using csrkern::InfoNce;
  py::class_<InfoNce>(m, "InfoNce", "See csrkern/info_nce.hpp; addresses are integers.")
      .def(py::init([](const CodesArgs& a, const PostingsArgs& b, int64_t m, bool one_set,
                       double temperature, uintptr_t classes_a, uintptr_t classes_b,
                       uintptr_t n_positives) {
             return InfoNce{to_codes(a),
                            to_postings(b),
                            m,
                            one_set,
                            static_cast<float>(1.0 / temperature),
                            pointer<const int32_t>(classes_a),
                            pointer<const int32_t>(classes_b),
                            pointer<const int32_t>(n_positives)};
           }),
           py::kw_only(), py::arg("a"), py::arg("b"), py::arg("m"), py::arg("one_set"),
           py::arg("temperature"), py::arg("classes_a"), py::arg("classes_b"),
           py::arg("n_positives"));
  m.def("info_nce", [](const InfoNce& args, uintptr_t loss, uintptr_t peak, uintptr_t log_total,
                       int num_threads) {
    py::gil_scoped_release release;
    csrkern::info_nce(args, pointer<float>(loss), pointer<float>(peak), pointer<float>(log_total),
                      num_threads);
  });
  m.def("info_nce_backward", [](const InfoNce& args, uintptr_t grad, uintptr_t peak,
                                uintptr_t log_total, bool of_columns, uintptr_t grad_values,
                                int num_threads) {
    py::gil_scoped_release release;
    csrkern::info_nce_backward(
        args,
        {pointer<const float>(grad), pointer<const float>(peak), pointer<const float>(log_total)},
        of_columns, pointer<float>(grad_values), num_threads);
  });
}

void bind_prefix_errors(py::module_& m) {
  m.def(
      "prefix_errors",
      [](const CodesArgs& codes, csrkern::DType dtype, uintptr_t table, int64_t row_stride,
         int64_t d, uintptr_t residual, uintptr_t errors, int num_threads) {
        py::gil_scoped_release release;
        csrkern::prefix_errors({to_codes(codes),
                                dtype,
                                {pointer<const void>(table), row_stride},
                                d,
                                pointer<float>(residual),
                                pointer<double>(errors)},
                               num_threads);
      },
      "See csrkern/prefix_errors.hpp; addresses are integers, codes are a tuple.");
  m.def(
      "prefix_errors_backward",
      [](const CodesArgs& codes, csrkern::DType dtype, uintptr_t table, int64_t row_stride,
         int64_t d, uintptr_t residual, uintptr_t weights, uintptr_t grad_values,
         uintptr_t grad_table, uintptr_t grad_x, int num_threads) {
        py::gil_scoped_release release;
        csrkern::prefix_errors_backward({to_codes(codes),
                                         dtype,
                                         {pointer<const void>(table), row_stride},
                                         d,
                                         pointer<const float>(residual),
                                         pointer<const float>(weights),
                                         pointer<float>(grad_values),
                                         pointer<float>(grad_table),
                                         pointer<float>(grad_x)},
                                        num_threads);
      },
      "See csrkern/prefix_errors.hpp; addresses are integers, codes are a tuple.");
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

void bind_encode(py::module_& m) {
  using LayerArgs = std::tuple<uintptr_t, uintptr_t, int64_t, uintptr_t, int64_t, int64_t,
                               int64_t>;  // x, weight, row_stride, bias, n, h, d
  const auto layer = [](const LayerArgs& args) {
    const auto& [x, weight, row_stride, bias, n, h, d] = args;
    return csrkern::Linear{pointer<const float>(x),
                           pointer<const float>(weight),
                           row_stride,
                           pointer<const float>(bias),
                           n,
                           h,
                           d};
  };
  m.def(
      "linear_exact",
      [layer](const LayerArgs& args, uintptr_t out, int num_threads) {
        py::gil_scoped_release release;
        csrkern::linear_exact(layer(args), pointer<float>(out), num_threads);
      },
      "See csrkern/encode.hpp; addresses are integers.");
  m.def(
      "round_rows",
      [](uintptr_t rows, int64_t row_stride, int64_t n, int64_t d, uintptr_t rounded,
         uintptr_t norms, uintptr_t residuals, int num_threads) {
        py::gil_scoped_release release;
        csrkern::round_rows(
            {pointer<const float>(rows), row_stride, n, d, pointer<uint16_t>(rounded),
             pointer<float>(norms), pointer<float>(residuals)},
            num_threads);
      },
      "See csrkern/encode.hpp; addresses are integers.");
  m.def(
      "refine",
      [layer](const LayerArgs& args, uintptr_t approx, csrkern::DType dtype, uintptr_t slack,
              double relative, int64_t k, int64_t limit, uintptr_t values, uintptr_t indices,
              uintptr_t candidates, int num_threads) {
        py::gil_scoped_release release;
        csrkern::refine({layer(args), pointer<const void>(approx), dtype,
                         pointer<const double>(slack), relative, k, limit, pointer<float>(values),
                         pointer<int32_t>(indices), pointer<int32_t>(candidates)},
                        num_threads);
      },
      "See csrkern/encode.hpp; addresses are integers.");
}

}  // namespace

// Whatever the module shares is behind a lock or atomic: the pool, the OpenMP runtime that was
// found, measured costs. Threads may share an index, with the GIL or without.
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Native kernels of csrkern.";
  m.def(
      "isa", [] { return csrkern::isa_name(csrkern::isa()); },
      "The instruction set in use: 'portable', 'avx2', 'avx512' or 'neon'.");
  m.def("multiplies_bfloat16", &csrkern::multiplies_bfloat16,
        "Whether this processor has instructions that multiply bfloat16.");
  m.def("available_threads", &csrkern::available_threads,
        "The number of processors this process may run on.");
  bind_topk_relu(m);
  bind_encode(m);
  bind_gather(m);
  bind_prefix_errors(m);
  bind_codes(m);
  bind_packed(m);
  bind_similarity(m);
  bind_info_nce(m);
  bind_fine(m);
  bind_index(m);
}
