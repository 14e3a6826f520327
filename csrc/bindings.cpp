// The Python module csrkern._C: the only file that knows Python.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "csrkern/codes.hpp"
#include "csrkern/encode.hpp"
#include "csrkern/gather.hpp"
#include "csrkern/index.hpp"
#include "csrkern/info_nce.hpp"
#include "csrkern/isa.hpp"
#include "csrkern/parallel.hpp"
#include "csrkern/similarity.hpp"
#include "csrkern/topk_relu.hpp"

namespace py = pybind11;

namespace {

// Tensors arrive as addresses: PyTorch's ABI stays out of this module.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_transpose(py::module_& m) {
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
      [](uintptr_t starts, uintptr_t rows, uintptr_t slots, int64_t n, int64_t k, int64_t dim,
         csrkern::DType dtype, int64_t d, const std::vector<SourceArgs>& sources, uintptr_t out,
         int num_threads) {
        csrkern::ScatterSum args{pointer<const int64_t>(starts),
                                 pointer<const int32_t>(rows),
                                 pointer<const int32_t>(slots),
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

// A NumPy array over memory that `owner` keeps and the array then owns.
template <class T, class Owner>
py::array_t<T> adopt(Owner owner, const void* data, size_t size) {
  auto* kept = new Owner(std::move(owner));
  const py::capsule free(kept, [](void* p) { delete static_cast<Owner*>(p); });
  return py::array_t<T>(static_cast<py::ssize_t>(size), static_cast<const T*>(data), free);
}

template <class T>
py::array_t<T> adopt(std::vector<T> owner) {
  const T* data = owner.data();  // survives the move
  const size_t size = owner.size();
  return adopt<T>(std::move(owner), data, size);
}

py::array_t<uint8_t> adopt(csrkern::Buffer owner) {
  uint8_t* data = owner.data();
  const size_t size = owner.bytes();
  return adopt<uint8_t>(std::move(owner), data, size);
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// values and indices [n, k], or flat with starts [n + 1].
csrkern::SparseRows sparse_rows(const Array<float>& values, const Array<int32_t>& indices,
                                const std::optional<Array<int64_t>>& starts, int32_t dim) {
  if (values.size() != indices.size())
    throw std::invalid_argument("expected as many values as indices");
  if (!starts) {
    if (values.ndim() != 2) throw std::invalid_argument("expected values of shape [n, k]");
    return {values.shape(0), dim, values.shape(1), nullptr, values.data(), indices.data()};
  }
  if (starts->size() < 1 || starts->at(starts->size() - 1) > values.size()) {
    throw std::invalid_argument("expected row starts that end within the values");
  }
  return {starts->size() - 1, dim, 0, starts->data(), values.data(), indices.data()};
}

// An index and the NumPy arrays it reads.
struct PyIndex {
  Array<int32_t> terms;
  Array<uint64_t> offsets;
  Array<uint32_t> checksums;
  Array<uint8_t> postings;
  std::optional<Array<int64_t>> ids;
  std::optional<Array<uint8_t>> maxima;
  std::optional<Array<float>> scales;
  std::unique_ptr<csrkern::Index> index;

  PyIndex(int64_t n_docs, int32_t dim, int32_t window, int32_t block, bool half, bool trusted,
          Array<int32_t> terms, Array<uint64_t> offsets, Array<uint32_t> checksums,
          Array<uint8_t> postings, std::optional<Array<int64_t>> ids,
          std::optional<Array<uint8_t>> maxima, std::optional<Array<float>> scales)
      : terms(terms),
        offsets(offsets),
        checksums(checksums),
        postings(postings),
        ids(ids),
        maxima(maxima),
        scales(scales) {
    const auto type = half ? csrkern::ValueType::float16 : csrkern::ValueType::float32;
    const auto damaged = [](const std::string& what) {
      throw std::invalid_argument("the index is damaged: " + what);
    };
    if (n_docs < 0 || dim < 1 || window < 64 || window > 65536 || window % 64 != 0 || block < 0 ||
        block % 64 != 0 || (block > 0 && window % block != 0)) {
      damaged("impossible sizes in its header");
    }
    const int64_t n_windows = n_docs / window + (n_docs % window != 0);
    // In this order a product of two sizes from a hostile file cannot wrap around.
    if (offsets.size() < 1 || (n_windows > 0 && terms.size() > (offsets.size() - 1) / n_windows) ||
        offsets.size() != terms.size() * n_windows + 1 || checksums.size() != terms.size()) {
      damaged("its arrays disagree in size");
    }
    const uint64_t n_postings = offsets.at(offsets.size() - 1);
    if (n_postings > static_cast<uint64_t>(postings.size()) ||
        n_postings * csrkern::posting_bytes(type) != static_cast<uint64_t>(postings.size())) {
      damaged("its postings do not fill their array");
    }
    if (ids && ids->size() != n_docs) damaged("its ids disagree with its number of documents");
    csrkern::IndexView view{n_docs,
                            dim,
                            window,
                            n_windows,
                            terms.size(),
                            type,
                            terms.data(),
                            offsets.data(),
                            postings.data(),
                            checksums.data(),
                            ids ? ids->data() : nullptr};
    if (block > 0) {
      view.block = block;
      const int64_t pitch = view.block_pitch();
      if (!maxima || !scales || scales->size() != terms.size() || !pitch ||
          maxima->size() % pitch != 0 || maxima->size() / pitch != terms.size()) {
        damaged("its block maxima disagree in size");
      }
      view.maxima = maxima->data();
      view.scales = scales->data();
    }
    py::gil_scoped_release release;
    index = std::make_unique<csrkern::Index>(view, trusted);
  }
};

void bind_index(py::module_& m) {
  m.def("crc32c", [](const py::buffer& data) {
    const py::buffer_info info = data.request();
    return csrkern::crc32c(info.ptr, static_cast<size_t>(info.size * info.itemsize));
  });
  m.def(
      "empty_pages",
      [](size_t bytes) {
        csrkern::Buffer buffer(bytes);
        return adopt(std::move(buffer));
      },
      "Uninitialised bytes in huge pages where the system grants them.");
  m.def(
      "cluster_order",
      [](const Array<float>& values, const Array<int32_t>& indices,
         const std::optional<Array<int64_t>>& starts, int32_t dim, double least_similarity,
         int num_threads) {
        const csrkern::SparseRows rows = sparse_rows(values, indices, starts, dim);
        std::vector<int64_t> order;
        {
          py::gil_scoped_release release;
          order = csrkern::cluster_order(rows, least_similarity, num_threads);
        }
        return adopt(std::move(order));
      },
      "An order of the rows in which similar ones stand together, int64 [n], or empty.");
  m.def(
      "build_index",
      [](const Array<float>& values, const Array<int32_t>& indices,
         const std::optional<Array<int64_t>>& starts, int32_t dim,
         const std::optional<Array<int64_t>>& order, int32_t window, int32_t block, bool half,
         bool normalize, int num_threads) {
        csrkern::SparseRows rows = sparse_rows(values, indices, starts, dim);
        if (order) {
          if (order->size() != rows.n) throw std::invalid_argument("expected an order of all rows");
          rows.order = order->data();
        }
        csrkern::BuiltIndex built;
        {
          py::gil_scoped_release release;
          built = csrkern::build_index(
              rows, window, block, half ? csrkern::ValueType::float16 : csrkern::ValueType::float32,
              normalize, num_threads);
        }
        py::dict arrays;
        arrays["terms"] = adopt(std::move(built.terms));
        arrays["offsets"] = adopt(std::move(built.offsets));
        arrays["checksums"] = adopt(std::move(built.checksums));
        arrays["postings"] = adopt(std::move(built.postings));
        if (block > 0) {
          arrays["maxima"] = adopt(std::move(built.maxima));
          arrays["scales"] = adopt(std::move(built.scales));
        }
        return arrays;
      },
      "The arrays of an index by name: see csrkern/index.hpp.");

  using py::arg;
  py::class_<PyIndex>(m, "Index")
      .def(py::init<int64_t, int32_t, int32_t, int32_t, bool, bool, Array<int32_t>, Array<uint64_t>,
                    Array<uint32_t>, Array<uint8_t>, std::optional<Array<int64_t>>,
                    std::optional<Array<uint8_t>>, std::optional<Array<float>>>(),
           py::kw_only(), arg("n_docs"), arg("dim"), arg("window"), arg("block"), arg("half"),
           arg("trusted"), arg("terms").noconvert(), arg("offsets").noconvert(),
           arg("checksums").noconvert(), arg("postings").noconvert(),
           arg("ids").noconvert() = py::none(), arg("maxima").noconvert() = py::none(),
           arg("scales").noconvert() = py::none())
      .def_readonly("terms", &PyIndex::terms)
      .def_readonly("offsets", &PyIndex::offsets)
      .def_readonly("checksums", &PyIndex::checksums)
      .def_readonly("postings", &PyIndex::postings)
      .def_readonly("ids", &PyIndex::ids)
      .def_readonly("maxima", &PyIndex::maxima)
      .def_readonly("scales", &PyIndex::scales)
      .def(
          "search",
          [](const PyIndex& self, const Array<float>& values, const Array<int32_t>& indices,
             const std::optional<Array<int64_t>>& starts, int64_t topk, bool normalize,
             const std::optional<Array<uint64_t>>& allowed, int num_threads) {
            const csrkern::SparseRows rows =
                sparse_rows(values, indices, starts, self.index->view().dim);
            if (allowed && allowed->size() < (self.index->view().n_docs + 63) / 64) {
              throw std::invalid_argument("expected a bit for each document");
            }
            py::array_t<float> scores({rows.n, topk});
            py::array_t<int64_t> ids({rows.n, topk});
            float* scores_out = scores.mutable_data();
            int64_t* ids_out = ids.mutable_data();
            {
              py::gil_scoped_release release;
              self.index->search(rows, topk, normalize, allowed ? allowed->data() : nullptr,
                                 num_threads, scores_out, ids_out);
            }
            return py::make_tuple(scores, ids);
          },
          "(scores, ids), both [n, topk].")
      .def("explain",
           [](const PyIndex& self, const Array<float>& values, const Array<int32_t>& indices,
              const std::optional<Array<int64_t>>& starts, int64_t topk, bool normalize) {
             const csrkern::SearchCost cost = self.index->explain(
                 sparse_rows(values, indices, starts, self.index->view().dim), 0, topk, normalize);
             py::dict counts;
             counts["terms"] = cost.terms;
             counts["postings"] = cost.postings;
             counts["blocks_scored"] = cost.blocks_scored;
             counts["windows_scanned"] = cost.windows_scanned;
             return counts;
           })
      .def("gain_of_blocks",
           [](const PyIndex& self, const Array<float>& values, const Array<int32_t>& indices,
              const std::optional<Array<int64_t>>& starts, const Array<int64_t>& chosen,
              bool normalize) {
             csrkern::SparseRows rows =
                 sparse_rows(values, indices, starts, self.index->view().dim);
             rows.n = chosen.size();
             rows.order = chosen.data();
             return self.index->gain_of_blocks(rows, normalize);
           })
      .def("verify",
           [](const PyIndex& self, int num_threads) {
             py::gil_scoped_release release;
             self.index->verify(num_threads);
           })
      .def("rows", [](const PyIndex& self) {
        const csrkern::IndexView& view = self.index->view();
        const auto n = static_cast<py::ssize_t>(self.offsets.at(self.offsets.size() - 1));
        py::array_t<int64_t> starts(view.n_docs + 1);
        py::array_t<int32_t> latents(n);
        py::array_t<float> values(n);
        int64_t* starts_out = starts.mutable_data();
        int32_t* latents_out = latents.mutable_data();
        float* values_out = values.mutable_data();
        {
          py::gil_scoped_release release;
          self.index->rows(starts_out, latents_out, values_out);
        }
        return py::make_tuple(starts, latents, values);
      });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of csrkern.";
  m.def(
      "isa", [] { return csrkern::isa_name(csrkern::isa()); },
      "The instruction set in use: 'portable', 'avx2' or 'avx512'.");
  m.def("multiplies_bfloat16", &csrkern::multiplies_bfloat16,
        "Whether this processor has instructions that multiply bfloat16.");
  m.def("available_threads", &csrkern::available_threads,
        "The number of processors this process may run on.");
  bind_topk_relu(m);
  bind_encode(m);
  bind_gather(m);
  bind_transpose(m);
  bind_similarity(m);
  bind_info_nce(m);
  bind_index(m);
}
