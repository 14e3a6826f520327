#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "csrkern/index.hpp"
#include "csrkern/index_rows.hpp"
#include "csrkern/memory.hpp"
#include "csrkern/parallel.hpp"
#include "index/query.hpp"
#include "isa/kernels.hpp"

namespace csrkern {

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  if (bytes != 0) data_ = allocate_pages(bytes);
}

Buffer::~Buffer() {
  if (data_ != nullptr) free_pages(data_, bytes_);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

namespace {

// A bitmap of latents may have 512 KB, or up to 128 bytes for each entry.
constexpr int32_t kSmallBitmap = 1 << 22, kLatentsPerEntry = 1024;

// One row at a time in its stored form: latents and values as in the index.
class Stored {
 public:
  Stored(const SparseRows& rows, const IndexView& shape, bool normalize)
      : rows_(rows),
        type_(shape.type),
        unit_(shape.unit()),
        largest_(power_of_two(shape.exponent)),
        exponent_(shape.exponent),
        normalize_(normalize) {}

  // Reads row i. The first of several passes sets `check`.
  void read(int64_t i, bool check) {
    const auto [begin, end] = row_range(rows_, i);
    const int64_t n = end - begin;
    const float* values = rows_.values + begin;
    latents = rows_.indices + begin;
    if (check) check_row(rows_, i, "codes");
    if (normalize_) {
      scaled_.resize(n);
      const double scale = inverse_norm(values, n);
      for (int64_t j = 0; j < n; ++j) scaled_[j] = scaled_value(values[j], scale);
      values = scaled_.data();
    }
    size = n;
    floats_ = values;
    if (type_ == ValueType::float16) {
      shorts_.resize(n);
      kernels().index.to_half(values, n, shorts_.data());
      // A value that would round to 0 becomes the least positive number: a code keeps its latents.
      for (int64_t j = 0; j < n; ++j) shorts_[j] += values[j] > 0 && shorts_[j] == 0;
    }
    if (check) check_size(i);
  }

  bool is_zero(int64_t j) const { return floats_[j] == 0; }

  // Returns the stored values.
  const uint8_t* bytes() {
    if (is_squares(type_)) {
      bytes_.resize(size);
      for (int64_t j = 0; j < size; ++j) {
        bytes_[j] = static_cast<uint8_t>(number_of(floats_[j], unit_));
      }
      return bytes_.data();
    }
    return type_ == ValueType::float32 ? reinterpret_cast<const uint8_t*>(floats_)
                                       : reinterpret_cast<const uint8_t*>(shorts_.data());
  }

  int64_t size = 0;
  const int32_t* latents = nullptr;

 private:
  void check_size(int64_t i) const {
    if (type_ == ValueType::float32) return;
    for (int64_t j = 0; j < size; ++j) {
      const bool half = type_ == ValueType::float16;
      if (half ? (shorts_[j] & 0x7fff) < 0x7c00 : floats_[j] <= largest_) continue;
      throw std::invalid_argument(
          "codes: the value " + shown(floats_[j]) + in_row(rows_, i) +
          (half ? " does not fit in float16; build with dtype='float32'"
                : " exceeds 2^" + std::to_string(exponent_) +
                      ", the largest that the index can hold; build it with largest= what is to "
                      "come, or dtype='float16'"));
    }
  }

  const SparseRows& rows_;
  ValueType type_;
  float unit_, largest_;
  int32_t exponent_;
  bool normalize_;
  std::vector<float> scaled_;
  const float* floats_ = nullptr;
  std::vector<uint16_t> shorts_;  // float16
  std::vector<uint8_t> bytes_;
};

class Builder {
 public:
  Builder(const SparseRows& docs, const IndexView& shape, bool normalize, int threads)
      : docs_(docs),
        shape_(shape),
        window_(shape.window),
        normalize_(normalize),
        threads_(threads),
        n_windows_(shape.n_windows) {}

  BuiltIndex build() {
    find_terms();
    count();
    fill();
    return std::move(built_);
  }

 private:
  // Checks every entry and lists the latents that are used.
  void find_terms() {
    const int64_t entries = docs_.starts == nullptr ? docs_.n * docs_.width : docs_.starts[docs_.n];
    if (docs_.dim <= kSmallBitmap || docs_.dim / kLatentsPerEntry <= entries) {
      mark_terms();
    } else {
      collect_terms();
    }
    finder_ = TermFinder(built_.terms.data(), static_cast<int64_t>(built_.terms.size()), docs_.dim);
  }

  // Checks every entry and calls use(latent, thread) for those that are stored.
  template <class Use>
  void each_latent(const Use& use) {
    parallel_for(docs_.n, 4096, threads_, [&](int64_t begin, int64_t end, int thread) {
      Stored row(docs_, shape_, normalize_);
      for (int64_t i = begin; i < end; ++i) {
        row.read(i, true);
        for (int64_t j = 0; j < row.size; ++j) {
          if (!row.is_zero(j)) use(row.latents[j], thread);
        }
      }
    });
  }

  // With a bitmap of all latents.
  void mark_terms() {
    const size_t words = (static_cast<size_t>(docs_.dim) + 63) / 64;
    Buffer memory(words * sizeof(std::atomic<uint64_t>));  // zeroed when first touched
    auto* bitmap = reinterpret_cast<std::atomic<uint64_t>*>(memory.data());
    each_latent([&](int32_t latent, int) {
      std::atomic<uint64_t>& word = bitmap[latent / 64];
      const uint64_t bit = uint64_t{1} << (latent % 64);
      if (!(word.load(std::memory_order_relaxed) & bit)) word.fetch_or(bit);
    });
    for (size_t w = 0; w < words; ++w) {
      for (uint64_t bits = bitmap[w]; bits != 0; bits &= bits - 1) {
        built_.terms.push_back(static_cast<int32_t>(w * 64 + __builtin_ctzll(bits)));
      }
    }
  }

  // By sorting, for few codes over very many latents.
  void collect_terms() {
    std::vector<std::vector<int32_t>> of_thread(threads_);
    each_latent([&](int32_t latent, int thread) { of_thread[thread].push_back(latent); });
    auto& terms = built_.terms;
    for (const auto& some : of_thread) terms.insert(terms.end(), some.begin(), some.end());
    std::sort(terms.begin(), terms.end());
    terms.erase(std::unique(terms.begin(), terms.end()), terms.end());
  }

  // Calls body(window, row reader) for every window.
  template <class Body>
  void each_window(const Body& body) {
    parallel_for(n_windows_, 1, threads_, [&](int64_t w, int64_t, int) {
      Stored row(docs_, shape_, normalize_);
      body(w, row);
    });
  }

  int64_t window_docs(int64_t w) const { return std::min<int64_t>(window_, docs_.n - w * window_); }

  // Sets the offsets.
  void count() {
    const int64_t n_terms = static_cast<int64_t>(built_.terms.size());
    auto& offsets = built_.offsets;
    offsets.assign(n_terms * n_windows_ + 1, 0);
    each_window([&](int64_t w, Stored& row) {
      std::vector<uint32_t> counts(n_terms);
      std::vector<int32_t> last(n_terms, -1);
      const int64_t n = window_docs(w);
      for (int32_t local = 0; local < n; ++local) {
        row.read(w * window_ + local, false);
        for (int64_t j = 0; j < row.size; ++j) {
          if (row.is_zero(j)) continue;
          const int64_t t = finder_.find(row.latents[j]);
          if (last[t] == local) throw_twice(docs_, w * window_ + local, "codes", row.latents[j]);
          last[t] = local;
          ++counts[t];
        }
      }
      for (int64_t t = 0; t < n_terms; ++t) {
        const bool grouped = is_grouped(shape_.type);
        offsets[t * n_windows_ + w + 1] = grouped ? words_of_postings(counts[t]) : counts[t];
      }
    });
    for (size_t i = 1; i < offsets.size(); ++i) offsets[i] += offsets[i - 1];
  }

  struct Slice {
    uint8_t* ids;
    uint8_t* values;
  };

  void fill() {
    built_.postings = Buffer(built_.offsets.back() * posting_bytes(shape_.type));
    each_window([&](int64_t w, Stored& row) {
      if (is_grouped(shape_.type)) {
        fill_groups(w, row);
      } else {
        fill_slices(w, row);
      }
    });
  }

  void fill_slices(int64_t w, Stored& row) {
    std::vector<Slice> slices(built_.terms.size());
    for (size_t t = 0; t < slices.size(); ++t) {
      const uint64_t* offset = &built_.offsets[t * n_windows_ + w];
      slices[t].ids = built_.postings.data() + offset[0] * posting_bytes(shape_.type);
      slices[t].values = slices[t].ids + (offset[1] - offset[0]) * 2;
    }
    fill(w, row, slices);
  }

  // Fills slices of numbers and values first, which it then puts in groups.
  void fill_groups(int64_t w, Stored& row) {
    const int64_t n_terms = static_cast<int64_t>(built_.terms.size());
    std::vector<uint64_t> starts(n_terms + 1);
    for (int64_t t = 0; t < n_terms; ++t) {
      const uint64_t* offset = &built_.offsets[t * n_windows_ + w];
      starts[t + 1] = starts[t] + postings_of_words(offset[1] - offset[0]);
    }
    std::vector<uint8_t> ids(2 * starts.back()), values(starts.back());
    std::vector<Slice> slices(n_terms);
    for (int64_t t = 0; t < n_terms; ++t) {
      slices[t] = {ids.data() + 2 * starts[t], values.data() + starts[t]};
    }
    fill(w, row, slices);
    for (int64_t t = 0; t < n_terms; ++t) {
      uint8_t* slice = built_.postings.data() + 2 * built_.offsets[t * n_windows_ + w];
      put_in_groups(ids.data() + 2 * starts[t], values.data() + starts[t],
                    starts[t + 1] - starts[t], slice);
    }
  }

  static void put_in_groups(const uint8_t* ids, const uint8_t* numbers, uint64_t n,
                            uint8_t* slice) {
    if (n == 0) return;
    uint16_t counts[kGroups] = {};
    for (uint64_t i = 0; i < n; ++i) ++counts[numbers[i]];
    uint8_t* next[kGroups];
    next[0] = slice + 2 * (words_of_postings(n) - n);
    for (int g = 0; g < kGroups; ++g) {
      if (g > 0) next[g] = next[g - 1] + 2 * counts[g - 1];
      if (n < kShortSlice) {
        slice[g] = static_cast<uint8_t>(counts[g]);
      } else {
        std::memcpy(slice + 2 * g, &counts[g], 2);
      }
    }
    for (uint64_t i = 0; i < n; ++i) {
      uint8_t*& to = next[numbers[i]];
      std::memcpy(to, ids + 2 * i, 2);
      to += 2;
    }
  }

  // Writes the postings of a window, those of term t from slices[t] on.
  void fill(int64_t w, Stored& row, std::vector<Slice>& slices) {
    const int64_t value_size = value_bytes(shape_.type);
    const int64_t n = window_docs(w);
    for (int64_t local = 0; local < n; ++local) {
      row.read(w * window_ + local, false);
      const uint8_t* values = row.bytes();
      const uint16_t id = static_cast<uint16_t>(local);
      for (int64_t j = 0; j < row.size; ++j) {
        if (row.is_zero(j)) continue;
        const Slice& slice = slices[finder_.find(row.latents[j])];
        __builtin_prefetch(slice.ids, 1);
        __builtin_prefetch(slice.values, 1);
      }
      for (int64_t j = 0; j < row.size; ++j) {
        if (row.is_zero(j)) continue;
        Slice& slice = slices[finder_.find(row.latents[j])];
        std::memcpy(slice.ids, &id, 2);
        slice.ids += 2;
        std::memcpy(slice.values, values + j * value_size, value_size);
        slice.values += value_size;
      }
    }
  }

  const SparseRows& docs_;
  const IndexView& shape_;
  int32_t window_;
  bool normalize_;
  int threads_;
  int64_t n_windows_;
  BuiltIndex built_;
  TermFinder finder_;
};

}  // namespace

BuiltIndex build_index(const SparseRows& docs, int32_t window, int32_t block, ValueType type,
                       bool normalize, int num_threads, int32_t exponent) {
  check_starts(docs, "codes");
  if (is_grouped(type) && (block > 0 || window > kMostGrouped)) {
    throw std::invalid_argument("expected no blocks, and windows of at most " +
                                std::to_string(kMostGrouped) + ", for lists in groups");
  }
  IndexView view{};
  view.n_docs = docs.n;
  view.dim = docs.dim;
  view.window = window;
  view.n_windows = (docs.n + window - 1) / window;
  view.type = type;
  view.block = block;
  view.exponent = exponent;
  BuiltIndex built = Builder(docs, view, normalize, num_threads).build();
  const int64_t n_terms = static_cast<int64_t>(built.terms.size());
  view.n_terms = n_terms;
  view.terms = built.terms.data();
  view.offsets = built.offsets.data();
  view.postings = built.postings.data();
  if (block > 0) {
    built.maxima = Buffer(n_terms * view.block_pitch());
    built.scales.resize(n_terms);
    find_maxima(view, built.maxima.data(), built.scales.data(), num_threads);
    view.maxima = built.maxima.data();
    view.scales = built.scales.data();
  }
  built.checksums.resize(n_terms);
  parallel_for(n_terms, 64, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) built.checksums[t] = checksum_of_term(view, t);
  });
  return built;
}

uint32_t checksum_of_term(const IndexView& view, int64_t term) {
  const uint64_t* offsets = view.offsets + term * view.n_windows;
  const uint8_t* list = view.slice(offsets[0]);
  const auto add = kernels().index.crc32c;
  uint32_t sum = add(0, list, (offsets[view.n_windows] - offsets[0]) * posting_bytes(view.type));
  if (view.block == 0) return sum;
  sum = add(sum, view.maxima_of(term), view.block_pitch());
  return add(sum, reinterpret_cast<const uint8_t*>(view.scales + term), sizeof(float));
}

uint32_t crc32c(const void* data, size_t bytes) {
  return kernels().index.crc32c(0, static_cast<const uint8_t*>(data), bytes);
}

}  // namespace csrkern
