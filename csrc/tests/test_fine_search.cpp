// Search by fine codes: kernels against plain loops, and searches against a plain scan.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

#include "check.hpp"
#include "csrkern/fine.hpp"
#include "csrkern/float_bits.hpp"
#include "csrkern/isa.hpp"
#include "index/query.hpp"
#include "isa/kernels.hpp"
#include "owned_index.hpp"

namespace csrkern {
namespace {

#ifdef __SANITIZE_THREAD__
constexpr int kThreads[] = {3};  // one thread alone races with nobody
#else
constexpr int kThreads[] = {1, 3};
#endif
constexpr float kInf = std::numeric_limits<float>::infinity();

// Random numbers whose sums are often near their limits, or beyond 255.
struct Numbers {
  Numbers(int64_t books, bool with_scales, uint64_t seed)
      : books(books),
        bytes(books + (with_scales ? 1 : 0)),
        codes(n * bytes),
        numbers(books * kWords * kFineBatch),
        limits(kWords * kFineBatch) {
    Random random(seed);
    for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.below(kWords));
    for (uint8_t& x : numbers) x = static_cast<uint8_t>(random.below(std::min(256l, 600 / books)));
    for (uint8_t& limit : limits) limit = static_cast<uint8_t>(random.below(60));
    for (size_t b = 0; b < limits.size(); b += kFineBatch) {
      limits[b + 1] = 0;
      limits[b + 31] = random.below(9) == 0 ? 255 : 0;
    }
  }

  // Whether a document's sum is below the limit of a query.
  bool below(int64_t doc, int64_t q) const {
    const uint8_t* code = codes.data() + doc * bytes;
    int64_t sum = 0;
    for (int64_t m = 0; m < books; ++m) sum += numbers[(m * kWords + code[m]) * kFineBatch + q];
    const int64_t limit = bytes > books ? code[books] : 0;
    return std::min<int64_t>(sum, 255) < limits[limit * kFineBatch + q];
  }

  static constexpr int64_t n = 200;
  int64_t books, bytes;
  Exact<uint8_t> codes, numbers, limits;  // of whole lines, so that they are aligned
};

void check_find(int64_t books, bool with_scales, uint64_t seed) {
  const Numbers given(books, with_scales, seed);
  const FineLines lines = {given.codes.data(), given.bytes, books, given.numbers.data(),
                           given.limits.data()};
  for (int64_t doc = 0; doc < given.n; ++doc) {
    uint64_t below = 0, want = 0;
    const int64_t next = kernels().fine.find(lines, doc, given.n, &below);
    for (; doc < given.n && want == 0; ++doc) {
      for (int64_t q = 0; q < kFineBatch; ++q) want |= uint64_t{given.below(doc, q)} << q;
    }
    if (want != 0) --doc;
    CHECK(next == doc);
    CHECK(next == given.n || below == want);
  }
}

void check_look_up(int64_t books, bool with_scales, uint64_t seed) {
  if (!looks_up_bytes()) return;
  const Numbers given(books, with_scales, seed);
  const int64_t pitch = 256;
  const Exact<uint8_t> columns(given.bytes * pitch), numbers(books * kWords), limits(kWords);
  for (int64_t doc = 0; doc < given.n; ++doc) {
    for (int64_t b = 0; b < given.bytes; ++b) {
      columns[b * pitch + doc] = given.codes[doc * given.bytes + b];
    }
  }
  for (int64_t q : {0, 1, 31, 63}) {
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = given.numbers[i * kFineBatch + q];
    for (size_t i = 0; i < limits.size(); ++i) limits[i] = given.limits[i * kFineBatch + q];
    for (int64_t n : {int64_t{1}, int64_t{64}, given.n}) {
      const Exact<uint64_t> below((n + 63) / 64);
      kernels().fine.look_up(
          {columns.data(), pitch, books, with_scales, numbers.data(), limits.data()}, n,
          below.data());
      for (int64_t doc = 0; doc < n; ++doc) {
        CHECK((below[doc / 64] >> doc % 64 & 1) == given.below(doc, q));
      }
    }
  }
}

void check_extremes_and_rounding() {
  Random random(4);
  for (float size : {1.0f, 0x1p90f, 0x1p-90f}) {
    const int64_t books = 3;
    const Exact<float> tables(books * kWords), lows(books), highs(books);
    for (float& x : tables) x = size * random.symmetric();
    tables[kWords + 77] = 3 * size;
    tables[2 * kWords] = -5 * size;
    kernels().fine.extremes(tables.data(), books, lows.data(), highs.data());
    for (int64_t m = 0; m < books; ++m) {
      const float* table = tables.data() + m * kWords;
      CHECK(lows[m] == *std::min_element(table, table + kWords));
      CHECK(highs[m] == *std::max_element(table, table + kWords));
      for (float most : {100.0f, 255.0f, 1000.0f}) {
        const float per_step = most / (highs[m] - lows[m]);
        const Exact<uint8_t> numbers(kWords);
        kernels().fine.round(table, highs[m], per_step, numbers.data());
        for (int64_t w = 0; w < kWords; ++w) {
          const double exact = (static_cast<double>(highs[m]) - table[w]) * per_step;
          CHECK(numbers[w] <= exact + 0x1p-10);
          CHECK(numbers[w] == 255 || exact < numbers[w] + 1 + 0x1p-10);
        }
      }
    }
    for (float odd : {std::nanf(""), kInf, -kInf}) {
      for (int64_t w = 0; w < kWords; ++w) {
        const float kept = tables[kWords + w];
        tables[kWords + w] = odd;
        kernels().fine.extremes(tables.data(), books, lows.data(), highs.data());
        CHECK(std::isnan(highs[1]) && std::isfinite(highs[0]) && std::isfinite(highs[2]));
        tables[kWords + w] = kept;
      }
    }
  }
}

void check_turn() {
  Random random(5);
  for (int64_t n : {1, 5, 16, 33, 256}) {
    const int64_t wide = (n + 15) / 16 * 16, pitch = n == 5 ? 90 : kFineBatch;
    const Exact<uint8_t> numbers(kFineBatch * wide), lines(wide * pitch);
    for (uint8_t& x : numbers) x = static_cast<uint8_t>(random.below(256));
    const uint8_t* rows[kFineBatch];
    for (int64_t q = 0; q < kFineBatch; ++q) rows[q] = numbers.data() + (q * 7 % kFineBatch) * wide;
    kernels().fine.turn(rows, n, lines.data(), pitch);
    for (int64_t q = 0; q < kFineBatch; ++q) {
      for (int64_t i = 0; i < n; ++i) CHECK(lines[i * pitch + q] == rows[q][i]);
    }
  }
}

void check_to_columns() {
  if (!looks_up_bytes()) return;
  Random random(12);
  for (int64_t bytes = 1; bytes < 40; ++bytes) {
    const int64_t pitch = bytes % 2 == 0 ? 64 : 100;
    const Exact<uint8_t> codes(64 * bytes + 15), columns((bytes + 15) * pitch);
    for (uint8_t& x : codes) x = static_cast<uint8_t>(random.below(256));
    kernels().fine.to_columns(codes.data(), bytes, columns.data(), pitch);
    for (int64_t j = 0; j < 64; ++j) {
      for (int64_t m = 0; m < bytes; ++m) CHECK(columns[m * pitch + j] == codes[j * bytes + m]);
    }
  }
}

void check_limit() {
  const Exact<float> shares{1, 2, 1e-30f, 1e30f};
  // Just below, at and above whole numbers, and the ends.
  for (float start :
       {0.5f, 1.50001f, 1.49999f, 255.4f, 255.5f, 256.5f, 1e38f, -1e38f, kInf, -kInf}) {
    for (float slope : {0.5f, -0.5f, kInf, -kInf, 1e38f, -1e38f, std::nanf("")}) {
      const Exact<uint8_t> limits(shares.size());
      kernels().fine.limit(start, slope, shares.data(), shares.size(), limits.data());
      for (size_t b = 0; b < shares.size(); ++b) {
        const float limit = start - slope * shares[b];
        const float want = std::isnan(limit) ? 255 : std::floor(std::clamp(limit, 0.0f, 255.0f));
        CHECK(limits[b] == want);
      }
    }
  }
}

// Words by a plain sort, where entries are equal, of either sign of 0, infinite or NaN, too.
void check_choose() {
  Random random(13);
  for (int kind = 0; kind < 6; ++kind) {
    const Exact<float> table(kWords);
    for (float& x : table) x = kind == 1 ? random.below(3) - 1.0f : random.symmetric();
    if (kind == 2) std::fill(table.begin(), table.end(), std::nanf(""));
    if (kind == 3) table[9] = std::nanf(""), table[70] = kInf, table[200] = -kInf;
    if (kind == 4) table[1] = -0.0f, table[2] = 0.0f, table[3] = 1e38f, table[255] = -1e38f;
    for (int64_t w = 0; kind == 5 && w < kWords; ++w) table[w] = w % 2 == 0 ? 0.0f : -0.0f;
    std::vector<int64_t> order(kWords);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return table[a] > table[b] || (table[a] == table[a] && table[b] != table[b]);
    });
    for (int64_t n = 1; n <= kWords; ++n) {
      uint64_t want[kWords / 64] = {}, chosen[kWords / 64];
      for (int64_t i = 0; i < n; ++i) want[order[i] / 64] |= uint64_t{1} << order[i] % 64;
      CHECK(kernels().fine.choose(table.data(), n, chosen) == order[0]);
      CHECK(std::equal(chosen, chosen + kWords / 64, want));
    }
  }
}

// Thresholds that as many keys reach as are wanted, or more only where several are equal.
void check_reached_by() {
  Random random(11);
  for (int64_t n : {1, 2, 17, 256}) {
    for (int kind = 0; kind < 3; ++kind) {
      const Exact<int32_t> keys(n), sorted(n);
      for (int32_t& key : keys)
        key = static_cast<int32_t>(kind == 0 ? random.next() : random.below(3));
      if (kind == 2) keys[0] = std::numeric_limits<int32_t>::min();
      if (kind == 2) keys[n - 1] = std::numeric_limits<int32_t>::max();
      std::copy(keys.begin(), keys.end(), sorted.begin());
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      for (int64_t k = 1; k <= n; ++k) {
        const int32_t bar = reached_by(keys.data(), n, k);
        const auto reached = [&](int32_t key) { return key >= bar; };
        const int64_t count = std::count_if(keys.begin(), keys.end(), reached);
        CHECK(count == k || (count > k && sorted[k - 1] == bar));
      }
    }
  }
}

void check_add() {
  Random random(6);
  for (int64_t n : {0, 1, 7, 8, 9, 40}) {
    for (int64_t books : {1, 3, 17}) {
      const int64_t bytes = books + n % 2;
      const Exact<uint8_t> codes(n * bytes);
      for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.below(kWords));
      const Exact<float> tables(books * kWords), sums(n);
      for (float& x : tables) x = random.symmetric();
      kernels().fine.add(codes.data(), bytes, books, tables.data(), n, sums.data());
      for (int64_t i = 0; i < n; ++i) {
        const uint8_t* code = codes.data() + i * bytes;
        CHECK(fine_score(code, books, tables.data(), 0, nullptr) == sums[i] + 0.0f);
      }
    }
  }
}

// An index of fine codes whose lists are empty.
struct OwnedFine {
  OwnedFine(int64_t n, int64_t bytes, std::vector<int64_t> ids)
      : codes(n * bytes),
        empty{Exact<float>(n), Exact<int32_t>(n), n, 1, 1},
        owned(rows_of(empty), 64, 0, ValueType::float16, true, std::move(ids), 1),
        index(view_of(bytes), true) {}

  IndexView view_of(int64_t bytes) const {
    IndexView view = owned.view();
    view.fine = codes.data();
    view.fine_bytes = bytes;
    return view;
  }

  Exact<uint8_t> codes;
  OwnedCodes empty;
  OwnedIndex owned;
  Index index;
};

std::vector<int64_t> descending(int64_t n, int64_t last) {
  std::vector<int64_t> ids(n);
  for (int64_t i = 0; i < n; ++i) ids[i] = last + 2 * (n - i);
  return ids;
}

// Scores of all documents for all queries, by a plain loop, for any number of searches: [n, docs]
// for each segment.
std::vector<std::vector<float>> plain_scores(const std::vector<Segment>& segments,
                                             const FineQueries& queries) {
  std::vector<std::vector<float>> scores;
  for (const Segment& segment : segments) {
    const IndexView& view = segment.index->view();
    std::vector<float>& own = scores.emplace_back();
    for (int64_t i = 0; i < queries.n; ++i) {
      for (int64_t doc = 0; doc < view.n_docs; ++doc) {
        own.push_back(fine_score(view.fine + doc * view.fine_bytes, queries.books,
                                 queries.tables + i * queries.books * kWords, queries.offsets[i],
                                 queries.scales));
      }
    }
  }
  return scores;
}

struct Asked {
  std::vector<Segment> segments;
  FineQueries queries;

  void check(int threads) const { check(threads, plain_scores(segments, queries)); }

  // Compares with what plain scores say.
  void check(int threads, const std::vector<std::vector<float>>& plain) const {
    const int64_t size = queries.n * queries.top_k;
    const Exact<float> scores(size);
    const Exact<int64_t> ids(size);
    FineQueries own = queries;
    own.num_threads = threads;
    search_fine(segments, own, scores.data(), ids.data());
    for (int64_t i = 0; i < own.n; ++i) {
      std::vector<Hit> want;
      std::vector<uint8_t> is_read(kWords, own.probes == kWords);
      if (own.probes < kWords) {
        const float* first = own.tables + i * own.books * kWords;
        std::vector<int64_t> words(kWords);
        std::iota(words.begin(), words.end(), 0);
        std::stable_sort(words.begin(), words.end(), [&](int64_t a, int64_t b) {
          return first[a] > first[b] || (first[a] == first[a] && first[b] != first[b]);
        });
        for (int64_t j = 0; j < own.probes; ++j) is_read[words[j]] = 1;
      }
      for (size_t g = 0; g < segments.size(); ++g) {
        const Segment& segment = segments[g];
        const IndexView& view = segment.index->view();
        for (int64_t doc = 0; doc < view.n_docs; ++doc) {
          const uint64_t* bits = segment.allowed;
          if (bits != nullptr && (bits[i * segment.allowed_stride + doc / 64] >> doc % 64 & 1) == 0)
            continue;
          if (!is_read[view.fine[doc * view.fine_bytes]]) continue;
          const float score = plain[g][i * view.n_docs + doc];
          if (score >= own.min_score)
            want.push_back({score, view.ids == nullptr ? doc : view.ids[doc], 0});
        }
      }
      const auto hits = std::min<int64_t>(own.top_k, want.size());
      std::partial_sort(want.begin(), want.begin() + hits, want.end(), better);
      want.resize(hits);
      want.resize(own.top_k, {-kInf, -1, 0});
      for (int64_t j = 0; j < own.top_k; ++j) {
        CHECK(ids[i * own.top_k + j] == want[j].id);
        CHECK(bits_of(scores[i * own.top_k + j]) == bits_of(want[j].score));
      }
    }
  }
};

enum class Kind { random, few, equal, ascending };

void fill(const OwnedFine& fine, Kind kind, int64_t first, Random& random) {
  const int64_t n = fine.index.view().n_docs, bytes = fine.index.view().fine_bytes;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t b = 0; b < bytes; ++b) {
      const int64_t chosen = kind == Kind::random  ? random.below(kWords)
                             : kind == Kind::few   ? 255 * random.below(2)
                             : kind == Kind::equal ? 9
                                                   : (first + i) >> std::min<int64_t>(8 * b, 63);
      fine.codes[i * bytes + b] = static_cast<uint8_t>(chosen);
    }
  }
}

// Two segments, one with ids that descend; documents are left out, one mask for each query or one
// for all.
void check_search(int64_t n, int64_t books, bool with_scales, Kind kind, float size, float start,
                  uint64_t seed) {
  Random random(seed);
  const int64_t bytes = books + (with_scales ? 1 : 0), m = 67;
  const OwnedFine first(n, bytes, {}), second(n / 3, bytes, descending(n / 3, n));
  fill(first, kind, 0, random);
  fill(second, kind, n, random);
  const Exact<float> tables(m * books * kWords), offsets(m), scales(kWords);
  for (int64_t e = 0; e < m * books * kWords; ++e) {
    const int64_t word = e % kWords, book = e / kWords % books;
    const auto digit = static_cast<float>(word << std::min<int64_t>(8 * book, 40));
    tables[e] = size * (start + (kind == Kind::ascending ? digit : random.symmetric()));
  }
  for (float& offset : offsets) offset = size * random.symmetric();
  for (int64_t w = 0; w < kWords; ++w) scales[w] = std::exp2(static_cast<float>(w) / 64 - 2);
  const int64_t words = (n + 63) / 64, words_of_second = (n / 3 + 63) / 64;
  const Exact<uint64_t> masks(m * words), mask(words_of_second);
  for (uint64_t& bits : masks) bits = random.next();
  for (uint64_t& bits : mask) bits = random.next() | random.next();
  FineQueries queries{
      m, books, tables.data(), offsets.data(), with_scales ? scales.data() : nullptr, 1};
  const std::vector<std::vector<float>> plain =
      plain_scores({{&first.index}, {&second.index}}, queries);
  for (int64_t top_k : {int64_t{1}, int64_t{10}, n + n / 3 + 5}) {
    queries.top_k = top_k;
    for (int64_t some : {int64_t{0}, int64_t{1}, int64_t{4}, int64_t{45}, m}) {
      if (top_k != 10 && some != 4) continue;  // what is checked takes long, too
      queries.n = some;
      for (int threads : kThreads) {
        Asked{{{&first.index}, {&second.index}}, queries}.check(threads, plain);
        Asked{{{&first.index, masks.data(), words}, {&second.index, mask.data(), 0}}, queries}
            .check(threads, plain);
        FineQueries in_cells = queries;
        in_cells.probes = top_k == 10 ? 20 : 1;
        Asked{{{&first.index, masks.data(), words}, {&second.index}}, in_cells}.check(threads,
                                                                                      plain);
      }
      if (top_k > n) break;  // sorting all for all is slow
    }
  }
  queries.top_k = 10;
  queries.n = m;
  for (float least : {-kInf, -size, 0.0f, size, kInf}) {
    queries.min_score = least;
    queries.probes = kWords;
    Asked{{{&first.index}, {&second.index}}, queries}.check(2, plain);
    queries.probes = 8;
    Asked{{{&first.index}, {&second.index}}, queries}.check(2, plain);
  }
}

void check_searches() {
  uint64_t seed = 10;
  for (int64_t n : {0, 1, 70, 700}) {
    for (int64_t books : {1, 4, 40}) {
      for (bool with_scales : {false, true}) {
        for (Kind kind : {Kind::random, Kind::few, Kind::equal, Kind::ascending}) {
          if (n <= 1 && kind != Kind::random) continue;  // no two documents to differ
          check_search(n, books, with_scales, kind, 1, 0, ++seed);
        }
      }
    }
  }
  // Sizes at which bounds give up, and nearly; words that differ in their last bits.
  for (float size : {0x1p120f, 0x1p98f, 0x1p92f, 0x1p-80f, 0x1p-84f, 0x1p-140f, kInf}) {
    check_search(300, 3, true, Kind::random, size, 0, ++seed);
    check_search(300, 3, false, Kind::random, size, 0, ++seed);
  }
  for (float start : {1e3f, 1e6f, -1e6f})
    check_search(300, 4, true, Kind::random, 1, start, ++seed);
}

// Products with scales that overflow, or that are too small to tell documents apart.
void check_scales() {
  Random random(7);
  const int64_t n = 500, books = 2, m = 8;
  const OwnedFine fine(n, books + 1, descending(n, 0));
  fill(fine, Kind::random, 0, random);
  for (float low : {0x1p-148f, 0x1p-50f, 0x1p60f, kInf}) {
    for (float size : {0x1p80f, 1.0f, 0x1p-60f}) {
      const Exact<float> tables(m * books * kWords), offsets(m), scales(kWords, low);
      for (float& x : tables) x = size * random.symmetric();
      for (int64_t w = 0; w < kWords; w += 2) scales[w] = low * 1.5f;
      FineQueries queries{m, books, tables.data(), offsets.data(), scales.data(), 10};
      Asked{{{&fine.index}}, queries}.check(1);
    }
  }
}

// Words that no float32 is, in some books of some queries.
void check_odd_words() {
  Random random(8);
  const int64_t n = 400, books = 3, m = 6;
  const OwnedFine fine(n, books, {});
  fill(fine, Kind::random, 0, random);
  for (int64_t doc = 20; doc < n; ++doc) fine.codes[doc * books + 1] = 200;
  for (float odd : {std::nanf(""), kInf, -kInf}) {
    const Exact<float> tables(m * books * kWords), offsets(m);
    for (int64_t e = 0; e < m * books * kWords; ++e) tables[e] = random.symmetric();
    for (int64_t i = 0; i < m; i += 2) tables[(i * books + 1) * kWords + 200] = odd;
    offsets[3] = odd;
    FineQueries queries{m, books, tables.data(), offsets.data(), nullptr, 50};
    Asked{{{&fine.index}}, queries}.check(1);
  }
}

// Sums that float32 rounds up, by half for each of eight words of 1.5, to those of words of 2: such
// documents come later and win ties. The offset takes away what the sums are rounded for.
void check_sums_that_round_up() {
  const int64_t n = 300, books = 9, m = 67;
  const OwnedFine fine(n, books, descending(n, 0));
  for (int64_t i = 0; i < n * books; ++i) fine.codes[i] = i / books < n - 40 ? 0 : 1;
  const Exact<float> tables(m * books * kWords), offsets(m, -0x1p24f);
  for (int64_t e = 0; e < m * books * kWords; ++e) {
    const float words[] = {2.0f, 1.5f, -1.0f};
    tables[e] = e / kWords % books == 0 ? 0x1p24f : words[std::min<int64_t>(e % kWords, 2)];
  }
  for (int64_t some : {int64_t{1}, m}) {
    const FineQueries queries{some, books, tables.data(), offsets.data(), nullptr, 10};
    Asked{{{&fine.index}}, queries}.check(1);
  }
}

// As many pairs of queries and documents as are scanned in lines on every processor.
void check_lines() {
  Random random(14);
  const int64_t n = 9000, books = 3, m = kFineBatch, words = (n + 63) / 64;
  const OwnedFine fine(n, books + 1, descending(n, 0));
  fill(fine, Kind::random, 0, random);
  const Exact<float> tables(m * books * kWords), offsets(m), scales(kWords);
  for (float& x : tables) x = random.symmetric();
  for (int64_t w = 0; w < kWords; ++w) scales[w] = std::exp2(static_cast<float>(w) / 64 - 2);
  const Exact<uint64_t> masks(m * words);
  for (uint64_t& bits : masks) bits = random.next();
  const FineQueries queries{m, books, tables.data(), offsets.data(), scales.data(), 10};
  Asked{{{&fine.index}}, queries}.check(1);
  Asked{{{&fine.index, masks.data(), words}}, queries}.check(1);
}

// One query is divided by documents, from several threads that search at once.
void check_division() {
  Random random(9);
  const int64_t n = 40'000, books = 2, m = 40;
  const OwnedFine fine(n, books, {});
  fill(fine, Kind::ascending, 0, random);
  const Exact<float> tables(m * books * kWords), offsets(m);
  for (int64_t e = 0; e < m * books * kWords; ++e) {
    const auto digit = static_cast<float>((e % kWords) << (8 * (e / kWords % books)));
    tables[e] = e / (books * kWords) % 2 == 0 ? digit : -digit;
  }
  std::vector<std::thread> threads;
  for (int64_t some : {int64_t{1}, int64_t{2}, m}) {
    threads.emplace_back([&, some] {
      FineQueries queries{some, books, tables.data(), offsets.data(), nullptr, 10};
      Asked{{{&fine.index}}, queries}.check(2);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  for (int64_t books : {1, 2, 7, 33}) {
    for (bool with_scales : {false, true}) {
      check_find(books, with_scales, 1);
      check_look_up(books, with_scales, 2);
    }
  }
  check_extremes_and_rounding();
  check_turn();
  check_to_columns();
  check_limit();
  check_choose();
  check_reached_by();
  check_add();
  check_searches();
  check_scales();
  check_odd_words();
  check_sums_that_round_up();
  check_lines();
  check_division();
}
