// The Python module csrkern._cuda: the only CUDA source that knows Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "../bindings/arrays.hpp"
#include "csrkern/cuda_index.hpp"

#ifndef CSRKERN_CUDA_MODULE
#define CSRKERN_CUDA_MODULE _cuda
#define CSRKERN_DEVICE_TYPE "cuda"
#endif

namespace py = pybind11;
namespace cuda = csrkern::cuda;

namespace {

// Device memory and streams are addresses: PyTorch's ABI stays out of this module.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

cuda::IndexOptions read_options(int32_t dim, const std::string& values, int32_t exponent,
                                bool normalize, int32_t impact_bits, uint32_t block) {
  return {dim, value_type(values), normalize, impact_bits, block, exponent};
}

std::unique_ptr<cuda::Index> build_from_host(int device, const Array<float>& values,
                                             const Array<int32_t>& indices,
                                             const std::optional<Array<int64_t>>& starts,
                                             const std::optional<Array<int64_t>>& ids,
                                             const std::optional<Array<float>>& norms,
                                             int64_t first_id, int32_t dim, const std::string& form,
                                             int32_t exponent, bool normalize, int32_t impact_bits,
                                             uint32_t block) {
  const csrkern::SparseRows given = sparse_rows(values, indices, starts, dim);
  if ((ids && ids->size() != given.n) || (norms && norms->size() != given.n)) {
    throw std::invalid_argument("expected an id and a norm for each row");
  }
  const cuda::Rows rows{given.n,      given.width,  given.starts, cuda::Number::float32,
                        given.values, given.indices};
  const cuda::RowFacts facts{ids ? ids->data() : nullptr, first_id,
                             norms ? norms->data() : nullptr};
  const auto options = read_options(dim, form, exponent, normalize, impact_bits, block);
  py::gil_scoped_release release;
  return cuda::Index::from_host(device, rows, facts, options);
}

std::unique_ptr<cuda::Index> build_from_device(
    int device, int64_t n, int64_t width, cuda::Number type, uintptr_t values, uintptr_t indices,
    uintptr_t ids, uintptr_t norms, int64_t first_id, int32_t dim, const std::string& form,
    int32_t exponent, bool normalize, int32_t impact_bits, uint32_t block, uintptr_t stream) {
  const auto options = read_options(dim, form, exponent, normalize, impact_bits, block);
  const cuda::RowFacts facts{pointer<const int64_t>(ids), first_id, pointer<const float>(norms)};
  py::gil_scoped_release release;
  const cuda::Rows rows{
      n, width, nullptr, type, pointer<const void>(values), pointer<const int32_t>(indices)};
  return std::make_unique<cuda::Index>(device, rows, facts, options, pointer<void>(stream));
}

cuda::SearchRequest read_request(int64_t top_k, bool normalize, int64_t query_k, float min_score,
                                 cuda::Way way, bool count_work) {
  cuda::SearchRequest request{};
  request.top_k = top_k;
  request.normalize = normalize;
  request.query_k = query_k;
  request.min_score = min_score;
  request.way = way;
  request.count_work = count_work;
  return request;
}

// (scores, ids) or, with dense queries, (scores, ids, dense scores).
py::tuple search_from_host(const cuda::Index& index, const Array<float>& values,
                           const Array<int32_t>& indices,
                           const std::optional<Array<uint8_t>>& allowed,
                           const std::optional<Array<float>>& dense,
                           const std::optional<Array<float>>& offsets, int64_t top_k,
                           bool normalize, int64_t query_k, float min_score, cuda::Way way,
                           bool count_work) {
  if (values.ndim() != 2 || values.size() != indices.size()) {
    throw std::invalid_argument("expected values and indices [n, k]");
  }
  const int64_t n = values.shape(0), n_docs = index.n_docs();
  cuda::SearchRequest request = read_request(top_k, normalize, query_k, min_score, way, count_work);
  request.queries = {
      n, values.shape(1), nullptr, cuda::Number::float32, values.data(), indices.data()};
  if (allowed) {
    const bool one = allowed->ndim() == 1;
    if (allowed->size() != (one ? n_docs : n * n_docs)) {
      throw std::invalid_argument("expected a byte for each document");
    }
    request.allowed = allowed->data();
    request.allowed_stride = one ? 0 : n_docs;
  }
  if (top_k < 1 || top_k > cuda::kMostHits)
    throw std::invalid_argument("expected top_k in 1..1024");
  Array<float> scores({n, top_k});
  Array<int64_t> ids({n, top_k});
  Array<float> dense_scores({dense ? n : 0, top_k});
  request.scores = scores.mutable_data();
  request.ids = ids.mutable_data();
  if (dense) {
    if (dense->size() != n * index.options().dim || (offsets && offsets->size() != n)) {
      throw std::invalid_argument("expected a dense row and an offset for each query");
    }
    request.dense = dense->data();
    request.offsets = offsets ? offsets->data() : nullptr;
    request.dense_scores = dense_scores.mutable_data();
  }
  {
    py::gil_scoped_release release;
    index.search_from_host(request);
  }
  if (!dense) return py::make_tuple(scores, ids);
  return py::make_tuple(scores, ids, dense_scores);
}

void search_on_device(const cuda::Index& index, int64_t n, int64_t width, cuda::Number type,
                      uintptr_t values, uintptr_t indices, uintptr_t allowed,
                      int64_t allowed_stride, uintptr_t dense, uintptr_t offsets, uintptr_t scores,
                      uintptr_t ids, uintptr_t dense_scores, uintptr_t workspace,
                      size_t workspace_bytes, int64_t top_k, bool normalize, int64_t query_k,
                      float min_score, cuda::Way way, bool count_work, uintptr_t stream) {
  cuda::SearchRequest request = read_request(top_k, normalize, query_k, min_score, way, count_work);
  request.queries = {
      n, width, nullptr, type, pointer<const void>(values), pointer<const int32_t>(indices)};
  request.allowed = pointer<const uint8_t>(allowed);
  request.allowed_stride = allowed_stride;
  request.dense = pointer<const float>(dense);
  request.offsets = pointer<const float>(offsets);
  request.scores = pointer<float>(scores);
  request.ids = pointer<int64_t>(ids);
  request.dense_scores = pointer<float>(dense_scores);
  request.workspace = pointer<unsigned char>(workspace);
  request.workspace_bytes = workspace_bytes;
  py::gil_scoped_release release;
  index.search(request, pointer<void>(stream));
}

}  // namespace

PYBIND11_MODULE(CSRKERN_CUDA_MODULE, m) {
  using py::arg;
  m.attr("DEVICE_TYPE") = CSRKERN_DEVICE_TYPE;
  m.attr("MOST_HITS") = cuda::kMostHits;
  m.attr("MOST_ENTRIES") = cuda::kMostEntries;
  m.attr("WINDOW") = cuda::IndexOptions{}.block;
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const cuda::OutOfMemory& memory) {
      PyErr_SetString(PyExc_MemoryError, memory.what());
    }
  });
  py::enum_<cuda::Number>(m, "Number", py::module_local())
      .value("float32", cuda::Number::float32)
      .value("float16", cuda::Number::float16)
      .value("bfloat16", cuda::Number::bfloat16);
  py::enum_<cuda::Way>(m, "Way", py::module_local())
      .value("cheaper", cuda::Way::cheaper)
      .value("walk", cuda::Way::walk)
      .value("gather", cuda::Way::gather);

  m.def("count_devices", &cuda::count_devices, "0 where there is no driver.");
  m.def("device_info", [](int device) {
    const cuda::DeviceInfo info = cuda::device_info(device);
    py::dict facts;
    facts["name"] = info.name;
    facts["processors"] = info.processors;
    facts["free_bytes"] = info.free_bytes;
    facts["total_bytes"] = info.total_bytes;
    return facts;
  });
  m.def("current_device", &cuda::current_device, "Of this thread.");
  m.def(
      "kernel_needs",
      [](int64_t top_k) {
        py::dict needs;
        for (const cuda::KernelNeed& need : cuda::kernel_needs(cuda::IndexOptions{}.block, top_k)) {
          needs[need.kernel] = py::make_tuple(need.threads, need.shared);
        }
        return needs;
      },
      "By kernel: threads of a thread block, and bytes of shared memory that it needs.",
      arg("top_k"));

  py::class_<cuda::Index>(m, "Index", py::module_local())
      .def_static("from_host", &build_from_host, py::kw_only(), arg("device"), arg("values"),
                  arg("indices"), arg("starts"), arg("ids"), arg("norms"), arg("first_id"),
                  arg("dim"), arg("dtype"), arg("exponent"), arg("normalize"), arg("impact_bits"),
                  arg("window"))
      .def_static("from_device", &build_from_device, py::kw_only(), arg("device"), arg("n"),
                  arg("width"), arg("type"), arg("values"), arg("indices"), arg("ids"),
                  arg("norms"), arg("first_id"), arg("dim"), arg("dtype"), arg("exponent"),
                  arg("normalize"), arg("impact_bits"), arg("window"), arg("stream"))
      .def("search_from_host", &search_from_host, py::kw_only(), arg("values"), arg("indices"),
           arg("allowed"), arg("dense"), arg("offsets"), arg("top_k"), arg("normalize"),
           arg("query_k"), arg("min_score"), arg("way"), arg("count_work"))
      .def("search", &search_on_device, py::kw_only(), arg("n"), arg("width"), arg("type"),
           arg("values"), arg("indices"), arg("allowed"), arg("allowed_stride"), arg("dense"),
           arg("offsets"), arg("scores"), arg("ids"), arg("dense_scores"), arg("workspace"),
           arg("workspace_bytes"), arg("top_k"), arg("normalize"), arg("query_k"), arg("min_score"),
           arg("way"), arg("count_work"), arg("stream"))
      .def("workspace_bytes", &cuda::Index::workspace_bytes)
      .def("calibrate", &cuda::Index::calibrate, py::call_guard<py::gil_scoped_release>())
      .def("take_work",
           [](const cuda::Index& index) {
             const cuda::Work work = index.take_work(nullptr);
             py::dict counts;
             counts["walks"] = work.walks;
             counts["gathers"] = work.gathers;
             counts["postings"] = work.postings;
             counts["entries"] = work.entries;
             return counts;
           })
      .def_property_readonly("device", &cuda::Index::device)
      .def_property_readonly("n_docs", &cuda::Index::n_docs)
      .def_property_readonly("entries", &cuda::Index::entries)
      .def_property_readonly("row_width", &cuda::Index::row_width)
      .def_property_readonly("bytes", &cuda::Index::bytes)
      .def_property_readonly("gather_cost", &cuda::Index::gather_cost);
}
