// Hostile indexes and queries: whatever an input makes of a good index is refused, or answers as
// scoring every document would. Run by `make fuzz`; needs clang's libFuzzer.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstring>
#include <set>
#include <stdexcept>
#include <type_traits>

#include "check.hpp"
#include "csrkern/costs.hpp"
#include "owned_codes.hpp"
#include "owned_index.hpp"

namespace csrkern {
namespace {

constexpr int64_t kMostDocuments = 300;

OwnedIndex some_index(FuzzedDataProvider& input) {
  const int64_t n = input.ConsumeIntegralInRange<int64_t>(0, kMostDocuments);
  const int64_t k = input.ConsumeIntegralInRange<int64_t>(1, 6);
  const int64_t dim = input.ConsumeIntegralInRange<int64_t>(k, 20);
  const OwnedCodes codes = random_codes(n, k, dim, input.ConsumeIntegral<uint8_t>());
  const SparseRows rows{n,       static_cast<int32_t>(dim), k,
                        nullptr, codes.values.data(),       codes.indices.data()};
  std::vector<int64_t> ids(input.ConsumeBool() ? n : 0);
  for (int64_t& id : ids) id = 1000 - 3 * (&id - ids.data());
  return OwnedIndex(rows, input.ConsumeBool() ? 64 : 128, n > 0 && input.ConsumeBool() ? 64 : 0,
                    input.PickValueInArray(kValueTypes), input.ConsumeBool(), ids, 1);
}

template <class T>
void forge_array(FuzzedDataProvider& input, Exact<T>& array) {
  if (input.ConsumeIntegralInRange(0, 7) == 0) {
    Exact<T> resized(input.ConsumeIntegralInRange<size_t>(0, array.size() + 70));
    std::copy_n(array.data(), std::min(array.size(), resized.size()), resized.data());
    array = resized;
  } else if (array.size() > 0) {
    T& element = array[input.ConsumeIntegralInRange<size_t>(0, array.size() - 1)];
    if constexpr (std::is_integral_v<T>) {
      element = input.ConsumeBool() ? input.ConsumeIntegral<T>()
                                    : element ^ input.ConsumeIntegralInRange<T>(0, 7);
    } else {
      const std::vector<uint8_t> bytes = input.ConsumeBytes<uint8_t>(sizeof(T));
      std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(&element));
    }
  }
}

void forge(FuzzedDataProvider& input, OwnedIndex& index) {
  switch (input.ConsumeIntegralInRange(0, 13)) {
    case 0:
      return forge_array(input, index.terms);
    case 1:
      return forge_array(input, index.offsets);
    case 2:
      return forge_array(input, index.checksums);
    case 3:
      return forge_array(input, index.ids);
    case 4:
      return forge_array(input, index.maxima);
    case 5:
      return forge_array(input, index.scales);
    case 6:
      index.sizes.n_docs = input.ConsumeBool()
                               ? input.ConsumeIntegralInRange<int64_t>(0, kMostDocuments)
                               : input.ConsumeIntegralInRange<int64_t>(0, int64_t{1} << 40);
      return;
    case 7:
      index.sizes.dim = input.ConsumeIntegral<int32_t>();
      return;
    case 8:
      index.sizes.window = 64 * input.ConsumeIntegralInRange(0, 1024);
      return;
    case 9:
      index.sizes.block = 64 * input.ConsumeIntegralInRange(0, 4);
      return;
    case 10:
      // Any numbers: a walk leaves out those beyond the documents.
      index.neighbors = Exact<uint32_t>(
          static_cast<size_t>(std::min(index.sizes.n_docs, kMostDocuments)) * kNeighbors);
      for (uint32_t& doc : index.neighbors) doc = input.ConsumeIntegralInRange<uint32_t>(0, 64);
      return forge_array(input, index.neighbors);
    case 11:
      index.sizes.exponent = input.ConsumeBool() ? input.ConsumeIntegral<int32_t>()
                                                 : input.ConsumeIntegralInRange(-100, 130);
      return;
    default:
      return forge_array(input, index.postings);
  }
}

// What the caller of Index has checked: the sizes of arrays, not their contents.
bool sizes_agree(OwnedIndex& index) {
  IndexView& sizes = index.sizes;
  if (sizes.dim < 1 || sizes.window < 64 || sizes.window > 65'536 || sizes.window % 64 != 0 ||
      (sizes.block > 0 && sizes.window % sizes.block != 0)) {
    return false;
  }
  sizes.n_windows = (sizes.n_docs + sizes.window - 1) / sizes.window;
  const size_t n_terms = index.terms.size();
  if (index.offsets.size() == 0 || index.checksums.size() != n_terms ||
      index.offsets.size() != n_terms * sizes.n_windows + 1 ||
      (index.ids.size() != 0 && static_cast<int64_t>(index.ids.size()) != sizes.n_docs) ||
      (index.neighbors.size() != 0 &&
       static_cast<int64_t>(index.neighbors.size()) != sizes.n_docs * kNeighbors)) {
    return false;
  }
  const uint64_t postings = index.offsets[index.offsets.size() - 1];
  if (postings > index.postings.size() ||
      postings * posting_bytes(sizes.type) != index.postings.size() ||
      !plausible_documents(sizes.n_docs, postings, index.ids.size() != 0)) {
    return false;
  }
  return sizes.block == 0 ||
         (sizes.n_docs > 0 && index.scales.size() == n_terms &&
          index.maxima.size() == n_terms * static_cast<size_t>(sizes.block_pitch()));
}

struct Queries {
  explicit Queries(FuzzedDataProvider& input, int32_t dim)
      : values(input.ConsumeIntegralInRange<size_t>(0, 12)), indices(values.size()) {
    for (size_t i = 0; i < values.size(); ++i) {
      const bool wild = input.ConsumeIntegralInRange(0, 15) == 0;
      indices[i] = wild ? input.ConsumeIntegral<int32_t>()
                        : input.ConsumeIntegralInRange<int32_t>(0, std::min(dim, 20) - 1);
      uint32_t bits = input.ConsumeIntegral<uint32_t>();
      if (!wild) bits = bits % 0x7f800000;
      std::memcpy(&values[i], &bits, 4);
    }
    starts = Exact<int64_t>(input.ConsumeIntegralInRange<size_t>(1, 4));
    for (int64_t& start : starts) start = input.ConsumeIntegralInRange<int64_t>(0, values.size());
    if (input.ConsumeIntegralInRange(0, 15) != 0) std::sort(starts.begin(), starts.end());
    if (input.ConsumeIntegralInRange(0, 15) != 0) starts[0] = 0;
    rows = {static_cast<int64_t>(starts.size()) - 1,
            dim,
            0,
            starts.data(),
            values.data(),
            indices.data()};
  }

  bool valid() const {
    if (starts[0] != 0 || !std::is_sorted(starts.begin(), starts.end())) return false;
    for (int64_t i = 0; i < rows.n; ++i) {
      std::set<int32_t> used;
      for (int64_t e = starts[i]; e < starts[i + 1]; ++e) {
        if (indices[e] < 0 || indices[e] >= rows.dim) return false;
        if (!(values[e] >= 0 && std::isfinite(values[e]))) return false;
        if (values[e] != 0 && !used.insert(indices[e]).second) return false;
      }
    }
    return true;
  }

  std::vector<QueryEntry> entries(int64_t i) const {
    std::vector<QueryEntry> found;
    for (int64_t e = starts[i]; e < starts[i + 1]; ++e) {
      if (values[e] != 0) found.push_back({values[e], indices[e]});
    }
    return found;
  }

  Exact<float> values;
  Exact<int32_t> indices;
  Exact<int64_t> starts;
  SparseRows rows;
};

// Searches of other kinds, which need not be right but must not fail.
void search_otherwise(FuzzedDataProvider& input, const Index& index, const Queries& queries) {
  SearchOptions options;
  options.top_k = input.ConsumeIntegralInRange<int64_t>(1, 20);
  options.normalize = input.ConsumeBool();
  options.query_k = input.ConsumeIntegralInRange<int64_t>(1, 12);
  options.min_score = input.ConsumeFloatingPoint<float>();
  options.shortlist = input.ConsumeIntegralInRange<int64_t>(0, 40);
  options.kept = input.ConsumeFloatingPointInRange<double>(0, 1);
  options.bound_share = input.ConsumeFloatingPointInRange<double>(0, 1);
  options.strong = input.ConsumeBool();
  options.width = input.ConsumeIntegralInRange<int64_t>(0, 40);
  options.least = input.ConsumeFloatingPointInRange<double>(0, 1);
  const Exact<float> dense(index.view().dim < 100 ? queries.rows.n * index.view().dim : 0, 0.5f);
  if (dense.size() > 0 && input.ConsumeBool()) options.dense = dense.data();
  const Exact<float> scores(queries.rows.n * options.top_k);
  const Exact<int64_t> ids(scores.size());
  csrkern::search({{&index}, {&index}}, queries.rows, options, scores.data(), ids.data());
  search_all({{&index}, {&index}}, queries.rows, options);
}

// Makes one way of a search, or another, the better one.
void choose_costs(FuzzedDataProvider& input) {
  Costs costs;
  const auto& [name, cost] = input.PickValueInArray(kCosts);
  costs.*cost *= input.ConsumeBool() ? 1e-9 : 1e9;
  set_costs(costs);
}

void search(FuzzedDataProvider& input, const IndexView& view) {
  choose_costs(input);
  const Index index(view, false);
  const Queries queries(input, view.dim);
  const int64_t n = queries.rows.n, top_k = input.ConsumeIntegralInRange<int64_t>(1, 20);
  const bool normalize = input.ConsumeBool(), small = view.n_docs <= kMostDocuments;
  const int num_threads = input.ConsumeIntegralInRange(0, 31) == 0 ? 2 : 1;
  const Exact<uint64_t> bits(small ? (view.n_docs + 63) / 64 : 0);
  for (uint64_t& word : bits) word = input.ConsumeIntegral<uint64_t>();
  const uint64_t* allowed = small && input.ConsumeBool() ? bits.data() : nullptr;

  const Exact<float> scores(n * top_k, std::nanf(""));
  const Exact<int64_t> ids(n * top_k, -2);
  bool refused = false;
  try {
    index.search(queries.rows, top_k, normalize, allowed, num_threads, scores.data(), ids.data());
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused || queries.valid());
  if (small && input.ConsumeBool()) return search_otherwise(input, index, queries);
  try {
    index.verify(1);
  } catch (const std::invalid_argument&) {
    return;
  }
  CHECK(refused == !queries.valid());
  if (refused || !small) return;
  const Documents docs(index);
  for (int64_t i = 0; i < n; ++i) {
    const std::vector<Answer> want =
        plain_search(view, docs, queries.entries(i), top_k, normalize, allowed);
    for (int64_t place = 0; place < top_k; ++place) {
      const int64_t at = i * top_k + place;
      CHECK((want[place] == Answer{scores[at], ids[at]}));
    }
  }
}

}  // namespace
}  // namespace csrkern

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace csrkern;
  FuzzedDataProvider input(data, size);
  OwnedIndex index = some_index(input);
  for (int changes = input.ConsumeIntegralInRange(0, 6); changes > 0; --changes) {
    forge(input, index);
  }
  if (!sizes_agree(index)) return 0;
  try {
    if (input.ConsumeBool()) {
      Index(index.view(), false);  // or the lists may lie outside the postings
      index.correct_checksums();
    }
    search(input, index.view());
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
