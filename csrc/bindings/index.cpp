// The inverted index in Python: csrkern._C.Index and the functions that build one.
#include "csrkern/index.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "csrkern/costs.hpp"
#include "csrkern/fine.hpp"
#include "csrkern/index_rows.hpp"
#include "csrkern/memory.hpp"

namespace py = pybind11;

namespace {

// Returns a NumPy array over the memory of `owner`, which the array then owns.
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

// Maps the bytes of an open file, read-only. The descriptor may be closed at once. Python's mmap
// keeps a copy of it as long as the array lives, and a process may have only 1,024.
py::array map_file(int descriptor, size_t bytes) {
  void* data = csrkern::map_file(descriptor, bytes);
  if (data == nullptr) {
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
  struct Mapping {
    void* data;
    size_t bytes;
  };
  const py::capsule unmap(new Mapping{data, bytes}, [](void* p) {
    const std::unique_ptr<Mapping> mapping(static_cast<Mapping*>(p));
    csrkern::unmap_file(mapping->data, mapping->bytes);
  });
  py::array array = py::array_t<uint8_t>(static_cast<py::ssize_t>(bytes),
                                         static_cast<const uint8_t*>(data), unmap);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

bool possible_window(int32_t window, int32_t block) {
  return window >= 64 && window <= 65536 && window % 64 == 0 && block >= 0 && block % 64 == 0 &&
         (block == 0 || window % block == 0);
}

// Throws unless all are numbers of rows, 0..n-1.
void check_rows(const Array<int64_t>& chosen, int64_t n) {
  const int64_t* rows = chosen.data();
  if (!std::all_of(rows, rows + chosen.size(), [&](int64_t i) { return i >= 0 && i < n; })) {
    throw std::invalid_argument("expected numbers of rows that are there");
  }
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
  std::optional<Array<float>> norms;
  std::optional<Array<uint8_t>> fine;
  std::optional<Array<uint32_t>> neighbors;
  std::unique_ptr<csrkern::Index> index;

  PyIndex(int64_t n_docs, int32_t dim, int32_t window, int32_t block, const std::string& values,
          int32_t exponent, bool trusted, Array<int32_t> terms, Array<uint64_t> offsets,
          Array<uint32_t> checksums, Array<uint8_t> postings, std::optional<Array<int64_t>> ids,
          std::optional<Array<uint8_t>> maxima, std::optional<Array<float>> scales,
          std::optional<Array<float>> norms, std::optional<Array<uint8_t>> fine,
          std::optional<Array<uint32_t>> neighbors)
      : terms(terms),
        offsets(offsets),
        checksums(checksums),
        postings(postings),
        ids(ids),
        maxima(maxima),
        scales(scales),
        norms(norms),
        fine(fine),
        neighbors(neighbors) {
    const csrkern::ValueType type = value_type(values);
    const auto damaged = [](const std::string& what) {
      throw std::invalid_argument("the index is damaged: " + what);
    };
    if (n_docs < 0 || dim < 1 || !possible_window(window, block)) {
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
    if (!csrkern::plausible_documents(n_docs, n_postings, ids || fine)) {
      damaged("it claims more documents than its postings account for");
    }
    if (ids && ids->size() != n_docs) damaged("its ids disagree with its number of documents");
    if (norms && norms->size() != n_docs)
      damaged("its norms disagree with its number of documents");
    if (fine && (fine->ndim() != 2 || fine->shape(0) != n_docs || fine->shape(1) < 1)) {
      damaged("its fine codes disagree with its number of documents");
    }
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
    if (norms) view.norms = norms->data();
    if (fine) {
      view.fine = fine->data();
      view.fine_bytes = fine->shape(1);
    }
    if (neighbors) {
      if (neighbors->ndim() != 2 || neighbors->shape(0) != n_docs ||
          neighbors->shape(1) != csrkern::kNeighbors) {
        damaged("its neighbors disagree with its number of documents");
      }
      view.neighbors = neighbors->data();
    }
    view.exponent = exponent;
    py::gil_scoped_release release;
    index = std::make_unique<csrkern::Index>(view, trusted);
  }
};

// The arguments of a search, without its outputs.
struct PySearch {
  std::vector<csrkern::Segment> segments;
  csrkern::SparseRows rows;
  csrkern::SearchOptions options;
};

using PyRows = std::tuple<Array<float>, Array<int32_t>, std::optional<Array<int64_t>>>;
using Bits = std::optional<Array<uint64_t>>;

std::vector<csrkern::Segment> read_segments(
    const std::vector<std::pair<const PyIndex*, Bits>>& segments, int64_t n_queries) {
  std::vector<csrkern::Segment> read;
  for (const auto& [index, bits] : segments) {
    csrkern::Segment segment{index->index.get()};
    if (bits) {
      const int64_t words = (segment.index->view().n_docs + 63) / 64;
      const bool one = bits->ndim() == 1;
      if (bits->ndim() > 2 || bits->shape(bits->ndim() - 1) != words ||
          (!one && bits->shape(0) != n_queries)) {
        throw std::invalid_argument("expected a bit for each document");
      }
      segment.allowed = bits->data();
      segment.allowed_stride = one ? 0 : words;
    }
    read.push_back(segment);
  }
  return read;
}

// Returns the number of books of tables [n, books, 256] that the fine codes of all segments fit.
int64_t read_tables(const Array<float>& tables, const std::optional<Array<float>>& scales,
                    const std::vector<csrkern::Segment>& segments, int64_t n) {
  if (tables.ndim() != 3 || tables.shape(0) != n || tables.shape(1) < 1 ||
      tables.shape(2) != csrkern::kWords || (scales && scales->size() != csrkern::kWords)) {
    throw std::invalid_argument("expected tables [n, books, 256] and scales [256]");
  }
  const int64_t fine_bytes = tables.shape(1) + (scales ? 1 : 0);
  for (const csrkern::Segment& segment : segments) {
    if (segment.index->view().fine_bytes != fine_bytes && segment.index->view().n_docs > 0) {
      throw std::invalid_argument("expected segments with fine codes of as many bytes");
    }
  }
  return tables.shape(1);
}

PySearch read_search(const std::vector<std::pair<const PyIndex*, Bits>>& segments,
                     const Array<float>& values, const Array<int32_t>& indices,
                     const std::optional<Array<int64_t>>& starts, int32_t dim, int64_t top_k,
                     bool normalize, int64_t query_k, float min_score, int num_threads,
                     int64_t shortlist, double kept, double bound_share, int64_t fewest,
                     int64_t most, const std::optional<Array<float>>& dense,
                     const std::optional<Array<float>>& offsets,
                     const std::optional<Array<float>>& tables,
                     const std::optional<Array<float>>& scales, bool strong, int64_t width,
                     double least) {
  PySearch search;
  search.rows = sparse_rows(values, indices, starts, dim);
  const int64_t n = search.rows.n;
  search.segments = read_segments(segments, n);
  for (const csrkern::Segment& segment : search.segments) {
    if (segment.index->view().dim != dim) {
      throw std::invalid_argument("expected segments over the same latents");
    }
  }
  if ((dense && dense->size() != n * dim) || (offsets && offsets->size() != n)) {
    throw std::invalid_argument("expected dense queries [n, dim] and offsets [n]");
  }
  if (tables) {
    if (shortlist < 1) throw std::invalid_argument("expected a shortlist");
    search.options.books = read_tables(*tables, scales, search.segments, n);
    search.options.tables = tables->data();
    search.options.scales = scales ? scales->data() : nullptr;
  }
  if (top_k < 1 || query_k < 0 || shortlist < 0 || width < 0 || num_threads < 1) {
    throw std::invalid_argument("expected top_k and threads of at least 1, and nothing below 0");
  }
  search.options.top_k = top_k;
  search.options.normalize = normalize;
  search.options.query_k = query_k;
  search.options.min_score = min_score;
  search.options.num_threads = num_threads;
  search.options.shortlist = shortlist;
  search.options.kept = kept;
  search.options.bound_share = bound_share;
  search.options.fewest = fewest;
  search.options.most = most;
  search.options.strong = strong;
  search.options.width = width;
  search.options.least = least;
  search.options.dense = dense ? dense->data() : nullptr;
  search.options.offsets = offsets ? offsets->data() : nullptr;
  return search;
}

template <class Body>
void def_search(py::module_& m, const char* name, const char* doc, const Body& body) {
  using py::arg;
  m.def(
      name,
      [body](const std::vector<std::pair<const PyIndex*, Bits>>& segments,
             const Array<float>& values, const Array<int32_t>& indices,
             const std::optional<Array<int64_t>>& starts, int32_t dim, int64_t top_k,
             bool normalize, int64_t query_k, float min_score, int num_threads, int64_t shortlist,
             double kept, double bound_share, int64_t fewest, int64_t most,
             const std::optional<Array<float>>& dense, const std::optional<Array<float>>& offsets,
             const std::optional<Array<float>>& tables, const std::optional<Array<float>>& scales,
             bool strong, int64_t width, double least) {
        return body(read_search(segments, values, indices, starts, dim, top_k, normalize, query_k,
                                min_score, num_threads, shortlist, kept, bound_share, fewest, most,
                                dense, offsets, tables, scales, strong, width, least));
      },
      doc, arg("segments"), arg("values"), arg("indices"), arg("starts"), arg("dim"), py::kw_only(),
      arg("top_k"), arg("normalize"), arg("query_k"), arg("min_score"), arg("num_threads"),
      arg("shortlist") = 0, arg("kept") = 1.0, arg("bound_share") = 1.0, arg("fewest") = 0,
      arg("most") = std::numeric_limits<int64_t>::max(), arg("dense") = py::none(),
      arg("offsets") = py::none(), arg("tables") = py::none(), arg("scales") = py::none(),
      arg("strong") = false, arg("width") = 0, arg("least") = 0.0);
}

void bind_searches(py::module_& m) {
  m.def(
      "read_query",
      [](const Array<float>& values, const Array<int32_t>& indices,
         const std::optional<Array<int64_t>>& starts, int32_t dim, bool normalize) {
        const csrkern::SparseRows rows = sparse_rows(values, indices, starts, dim);
        if (rows.n < 1) throw std::invalid_argument("expected a query");
        csrkern::check_starts(rows, "query");
        std::vector<int32_t> latents;
        std::vector<float> weights;
        for (const csrkern::Entry& e : csrkern::read_query(rows, 0, normalize, dim)) {
          latents.push_back(e.latent);
          weights.push_back(e.value);
        }
        return py::make_tuple(adopt(std::move(latents)), adopt(std::move(weights)));
      },
      "The first row's latents and values in the order in which a search adds them up.");
  def_search(m, "search", "(scores, ids), both [n, top_k].", [](const PySearch& search) {
    py::array_t<float> scores({search.rows.n, search.options.top_k});
    py::array_t<int64_t> ids({search.rows.n, search.options.top_k});
    float* scores_out = scores.mutable_data();
    int64_t* ids_out = ids.mutable_data();
    {
      py::gil_scoped_release release;
      csrkern::search(search.segments, search.rows, search.options, scores_out, ids_out);
    }
    return py::make_tuple(scores, ids);
  });
  m.def(
      "similarity_top_k",
      [](const PyRows& queries, const PyRows& docs, int32_t dim, int32_t window, int64_t top_k,
         float min_score, int num_threads) {
        const auto read = [dim](const PyRows& given) {
          const auto& [values, indices, starts] = given;
          return sparse_rows(values, indices, starts, dim);
        };
        if (top_k < 1 || num_threads < 1 || !possible_window(window, 0)) {
          throw std::invalid_argument("expected top_k and threads of at least 1, and a window");
        }
        csrkern::SearchOptions options;
        options.top_k = top_k;
        options.min_score = min_score;
        options.num_threads = num_threads;
        const csrkern::SparseRows rows = read(queries), of_docs = read(docs);
        py::array_t<float> scores({rows.n, top_k});
        py::array_t<int64_t> ids({rows.n, top_k});
        float* scores_out = scores.mutable_data();
        int64_t* ids_out = ids.mutable_data();
        {
          py::gil_scoped_release release;
          csrkern::similarity_top_k(rows, of_docs, window, options, scores_out, ids_out);
        }
        return py::make_tuple(scores, ids);
      },
      "The same among rows of any sign; both are (values, indices, starts).");
  m.def(
      "search_fine",
      [](const std::vector<std::pair<const PyIndex*, Bits>>& segments, const Array<float>& tables,
         const Array<float>& offsets, const std::optional<Array<float>>& scales, int64_t top_k,
         float min_score, int num_threads, int64_t probes) {
        const int64_t n = offsets.size();
        const std::vector<csrkern::Segment> read = read_segments(segments, n);
        const int64_t books = read_tables(tables, scales, read, n);
        if (top_k < 1 || num_threads < 1 || probes < 1 || probes > csrkern::kWords) {
          throw std::invalid_argument("expected top_k, threads and probes in their ranges");
        }
        py::array_t<float> scores({n, top_k});
        py::array_t<int64_t> ids({n, top_k});
        const csrkern::FineQueries queries{
            n,     books,     tables.data(), offsets.data(), scales ? scales->data() : nullptr,
            top_k, min_score, num_threads,   probes};
        float* scores_out = scores.mutable_data();
        int64_t* ids_out = ids.mutable_data();
        {
          py::gil_scoped_release release;
          csrkern::search_fine(read, queries, scores_out, ids_out);
        }
        return py::make_tuple(scores, ids);
      },
      "The same by the fine codes of all documents, or of those in the best cells.",
      py::arg("segments"), py::kw_only(), py::arg("tables"), py::arg("offsets"), py::arg("scales"),
      py::arg("top_k"), py::arg("min_score"), py::arg("num_threads"),
      py::arg("probes") = csrkern::kWords);
  def_search(m, "expected_ns", "What a query should take on one thread, the mean.",
             [](const PySearch& search) {
               py::gil_scoped_release release;
               return csrkern::expected_ns(search.segments, search.rows, search.options);
             });
  def_search(m, "search_all", "(starts [n + 1], scores, ids).", [](const PySearch& search) {
    csrkern::Ragged found;
    {
      py::gil_scoped_release release;
      found = csrkern::search_all(search.segments, search.rows, search.options);
    }
    return py::make_tuple(adopt(std::move(found.starts)), adopt(std::move(found.scores)),
                          adopt(std::move(found.ids)));
  });
}

py::dict as_dict(const csrkern::Costs& costs) {
  py::dict named;
  for (const auto& [name, cost] : csrkern::kCosts) named[name] = costs.*cost;
  return named;
}

void bind_costs(py::module_& m) {
  m.attr("USUAL_COSTS") = as_dict(csrkern::kUsualCosts);
  m.def(
      "costs",
      [] {
        const csrkern::Costs* costs;
        {
          py::gil_scoped_release release;
          costs = &csrkern::costs();
        }
        return as_dict(*costs);
      },
      "What parts of a search take, in nanoseconds; measured where nothing has set them.");
  m.def("costs_were_measured", &csrkern::costs_were_measured);
  m.def("set_costs", [](const std::map<std::string, double>& given) {
    csrkern::Costs costs;
    for (const auto& [name, cost] : csrkern::kCosts) costs.*cost = given.at(name);
    csrkern::set_costs(costs);
  });
}

}  // namespace

void bind_index(py::module_& m) {
  m.attr("NEIGHBORS") = csrkern::kNeighbors;
  bind_costs(m);
  m.def("crc32c", [](const py::buffer& data) {
    const py::buffer_info info = data.request();
    if (!PyBuffer_IsContiguous(info.view(), 'C')) throw py::value_error("expected whole memory");
    return csrkern::crc32c(info.ptr, static_cast<size_t>(info.size * info.itemsize));
  });
  m.def("plausible_documents", &csrkern::plausible_documents);
  m.def(
      "empty_pages",
      [](size_t bytes) {
        csrkern::Buffer buffer(bytes);
        return adopt(std::move(buffer));
      },
      "Uninitialized bytes in huge pages where the system grants them.");
  m.def("map_file", &map_file,
        "The first bytes of an open file as a read-only array, which needs no descriptor.");
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
         const std::optional<Array<int64_t>>& order, int32_t window, int32_t block,
         const std::string& type, int32_t exponent, bool normalize, int num_threads) {
        csrkern::SparseRows rows = sparse_rows(values, indices, starts, dim);
        if (order) {
          if (order->size() != rows.n) throw std::invalid_argument("expected an order of all rows");
          check_rows(*order, rows.n);
          rows.order = order->data();
        }
        if (!possible_window(window, block)) throw std::invalid_argument("impossible window");
        csrkern::BuiltIndex built;
        {
          py::gil_scoped_release release;
          built = csrkern::build_index(rows, window, block, value_type(type), normalize,
                                       num_threads, exponent);
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
      .def(py::init<int64_t, int32_t, int32_t, int32_t, const std::string&, int32_t, bool,
                    Array<int32_t>, Array<uint64_t>, Array<uint32_t>, Array<uint8_t>,
                    std::optional<Array<int64_t>>, std::optional<Array<uint8_t>>,
                    std::optional<Array<float>>, std::optional<Array<float>>,
                    std::optional<Array<uint8_t>>, std::optional<Array<uint32_t>>>(),
           py::kw_only(), arg("n_docs"), arg("dim"), arg("window"), arg("block"), arg("dtype"),
           arg("exponent"), arg("trusted"), arg("terms").noconvert(), arg("offsets").noconvert(),
           arg("checksums").noconvert(), arg("postings").noconvert(),
           arg("ids").noconvert() = py::none(), arg("maxima").noconvert() = py::none(),
           arg("scales").noconvert() = py::none(), arg("norms").noconvert() = py::none(),
           arg("fine").noconvert() = py::none(), arg("neighbors").noconvert() = py::none())
      .def_property_readonly("n_docs",
                             [](const PyIndex& self) { return self.index->view().n_docs; })
      .def_property_readonly("dim", [](const PyIndex& self) { return self.index->view().dim; })
      .def_property_readonly("window",
                             [](const PyIndex& self) { return self.index->view().window; })
      .def_property_readonly("block", [](const PyIndex& self) { return self.index->view().block; })
      .def_readonly("terms", &PyIndex::terms)
      .def_readonly("offsets", &PyIndex::offsets)
      .def("list_lengths",
           [](const PyIndex& self) {
             const csrkern::IndexView& view = self.index->view();
             py::array_t<int64_t> lengths(view.n_terms);
             for (int64_t t = 0; t < view.n_terms; ++t) {
               lengths.mutable_at(t) =
                   static_cast<int64_t>(view.n_in_list(view.offsets + t * view.n_windows));
             }
             return lengths;
           })
      .def_readonly("checksums", &PyIndex::checksums)
      .def_readonly("postings", &PyIndex::postings)
      .def_readonly("ids", &PyIndex::ids)
      .def_readonly("maxima", &PyIndex::maxima)
      .def_readonly("scales", &PyIndex::scales)
      .def_readonly("norms", &PyIndex::norms)
      .def_readonly("fine", &PyIndex::fine)
      .def_readonly("neighbors", &PyIndex::neighbors)
      .def("value",
           [](const PyIndex& self, int64_t doc, int32_t latent) {
             const csrkern::IndexView& view = self.index->view();
             if (doc < 0 || doc >= view.n_docs || latent < 0 || latent >= view.dim) {
               throw std::invalid_argument("expected a document and a latent of the index");
             }
             return self.index->value(doc, latent);
           })
      .def("make_forward",
           [](const PyIndex& self, int num_threads) {
             py::gil_scoped_release release;
             self.index->forward(num_threads);
           })
      .def("rows_of",
           [](const PyIndex& self, const Array<int64_t>& docs) {
             check_rows(docs, self.index->view().n_docs);
             csrkern::OwnedRows rows;
             {
               py::gil_scoped_release release;
               rows = self.index->rows_of(docs.data(), docs.size());
             }
             return py::make_tuple(adopt(std::move(rows.starts)), adopt(std::move(rows.latents)),
                                   adopt(std::move(rows.values)));
           })
      .def_property_readonly("forward_bytes",
                             [](const PyIndex& self) { return self.index->forward_bytes(); })
      .def_property_readonly("dense_bytes",
                             [](const PyIndex& self) { return self.index->dense_bytes(); })
      .def("profile",
           [](const PyIndex& self, const Array<float>& values, const Array<int32_t>& indices,
              const std::optional<Array<int64_t>>& starts, int64_t top_k, bool normalize) {
             const csrkern::SparseRows rows =
                 sparse_rows(values, indices, starts, self.index->view().dim);
             if (rows.n < 1 || top_k < 1)
               throw std::invalid_argument("expected a query and a top_k");
             const csrkern::SearchCost cost = self.index->profile(rows, 0, top_k, normalize);
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
             check_rows(chosen, rows.n);
             csrkern::check_starts(rows, "queries");
             rows.n = std::min<int64_t>(chosen.size(), rows.n);
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
        const auto n = static_cast<py::ssize_t>(view.n_postings());
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
  bind_searches(m);
}
