// Search by fine codes alone: every document is scored, or those of some cells.
//
// What a document lacks to the best score that there could be is added up first, in whole numbers
// of 8 bits: of one query by looking bytes up in registers, or of a batch at once. Documents that
// may be hits are scored again in float32. A table entry t becomes the number n = (high - t) /
// step, rounded down and at most 255, where high is the largest entry of its book, in float32,
// whose rounding moves n by less than 2^-10 (three roundings of 2^-24 of at most 256):
//
//   t  <=  high - step (n - 2^-10).
//
// The float32 sum of the entries of a document, plus the offset, differs from the exact one by at
// most error = books * 2^-24 (1 + 2^-8) * (sum over the books of the largest |t|, plus |offset|).
// With N the sum of n over the books, or 255 if that is less, a document scores at most
//
//   (sum of high + offset + error - step (N - books * 2^-10)) * scale,
//
// off by 2^-23 of its size, for the product is rounded and scales are. With the score that a hit
// must reach this says what N is at most; the limit is the next whole number, after 2^-10 is added
// for the rounding of these formulas in double. Limits are differences in float32, of which no term
// is off by more than four roundings: 2^-21 of the terms is added, too. Any step is right. The one
// that is taken makes the largest limit 254; as that falls, others are. Sums beyond 2^100, and
// steps below 2^-100, alone or times some scale, are left to a plain scan: there float32 overflows,
// or loses what the bounds rely on. No step is below 2^-30 of the entries, so that double has bits
// to spare.
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <vector>

#include "csrkern/fine.hpp"
#include "csrkern/float_bits.hpp"
#include "csrkern/index.hpp"
#include "csrkern/isa.hpp"
#include "csrkern/parallel.hpp"
#include "index/fine_cells.hpp"
#include "index/scan.hpp"
#include "isa/kernels.hpp"

namespace csrkern {
namespace {

constexpr int kMost = 255;             // a number, and a limit
constexpr double kMargin = 0x1p-20;    // of a product's size
constexpr double kRounding = 0x1p-10;  // of a number
constexpr double kSingle = 0x1p-21;    // of a difference in float32
// Steps that are coarser than they could be by this are taken anew.
constexpr double kCoarser = 1.25;
// To scan queries together, their numbers are turned over first. That pays from so many queries on,
// and from so many pairs of a query and a document, where bytes are looked up and where not.
struct Worth {
  int64_t queries, pairs;
};
constexpr Worth kWorthTurning = {4, 4096}, kWorthTurningLookedUp = {40, 1 << 19};
// Documents that are worth a thread.
constexpr int64_t kWorthSplitting = 16'384;
// Documents after which limits are brought up to date: a query's first ones, and the most.
constexpr int64_t kFirstRound = 64, kLastRound = 2048;
constexpr int64_t kScoredTogether = 256;
// Queries whose cells are read together.
constexpr int64_t kCellQueries = 512;
// Bytes from one column to the next: not a power of two, so that they share the cache.
constexpr int64_t kPitch = kLastRound + 64;

// Fine codes of documents of one segment.
struct Run {
  const Segment& segment;
  const uint8_t* codes;  // [n, fine_bytes]
  int64_t n;
  int64_t first;                  // document, if they follow each other
  const int64_t* docs = nullptr;  // [n] if not

  const IndexView& view() const { return segment.index->view(); }
  const uint8_t* code(int64_t row) const { return codes + row * view().fine_bytes; }
  int64_t doc(int64_t row) const { return docs == nullptr ? first + row : docs[row]; }
};

// The best documents of one query: in order if they are few.
class Best {
 public:
  Best(int64_t wanted, float least) : wanted_(wanted), bar_(least) {
    hits_.reserve(std::min(wanted, kFew) + 1);
  }

  // A score that is no hit unless it reaches this.
  float bar() const { return bar_; }

  void add(float score, int64_t id) {
    const Hit hit = {score, id, 0};
    hits_.push_back(hit);
    if (wanted_ > kFew) {
      if (static_cast<int64_t>(hits_.size()) == settled_ + kRarely) settle();
      return;
    }
    auto at = hits_.end() - 1;
    for (; at != hits_.begin() && better(hit, at[-1]); --at) *at = at[-1];
    *at = hit;
    if (static_cast<int64_t>(hits_.size()) > wanted_) hits_.pop_back();
    if (full()) bar_ = hits_.back().score;
  }

  const std::vector<Hit>& hits() const { return hits_; }
  bool full() const { return static_cast<int64_t>(hits_.size()) >= wanted_; }

 private:
  static constexpr int64_t kFew = 64, kRarely = 256;

  // Drops all but as many as are wanted, and raises the bar.
  void settle() {
    settled_ = std::min<int64_t>(hits_.size(), wanted_);
    if (!full()) return;
    // Unlike a function, this is inlined.
    const auto first = [](const Hit& a, const Hit& b) { return better(a, b); };
    std::nth_element(hits_.begin(), hits_.begin() + (wanted_ - 1), hits_.end(), first);
    hits_.resize(wanted_);
    bar_ = hits_.back().score;
  }

  int64_t wanted_, settled_ = 0;
  float bar_;
  std::vector<Hit> hits_;
};

// The lengths 1 / scale that a document may have.
struct Lengths {
  explicit Lengths(const float* scales) : shares(scales == nullptr ? 1 : kWords, 1.0f) {
    if (scales == nullptr) return;
    const auto [least, most] = std::minmax_element(scales, scales + kWords);
    shortest = 1.0 / *most;
    longest = 1.0 / *least;
    for (int64_t b = 0; b < kWords; ++b) shares[b] = *least / scales[b];
  }
  std::vector<float> shares;  // of the longest
  double shortest = 1, longest = 1;
};

// One query: its tables, numbers and limits, and its hits.
class Query {
 public:
  // What an update changed; with numbers, limits as well.
  enum class Changed { nothing, limits, numbers };

  // numbers: room for [books + 1, kWords], aligned; highs: for [books].
  Query(const FineQueries& all, const Lengths& lengths, int64_t i, int64_t wanted, uint8_t* numbers,
        float* highs)
      : all_(all),
        lengths_(lengths),
        i_(i),
        tables_(all.tables + i * all.books * kWords),
        numbers_(numbers),
        highs_(highs),
        best(wanted, all.min_score) {
    // None is below such a limit.
    std::fill_n(limits(), kWords, uint8_t{0});
    bound();
  }

  // Brings limits up to the score that a hit must reach, and numbers, if they `may` change.
  Changed update(bool may) {
    const double bar = best.bar();
    if (bar < enough_ || !(bounded_ && std::fabs(bar) < 0x1p100)) return Changed::nothing;
    const double least = bar - std::fabs(bar) * kMargin;
    const double longest_reach =
        reach_ - least * (least < 0 ? lengths_.longest : lengths_.shortest);
    const auto books = static_cast<double>(all_.books);
    const double step =
        std::max(longest_reach / (kMost - 2 - books * kRounding), largest_ * 0x1p-30);
    const bool again = (may || !ready_) && !(step_ <= kCoarser * step);
    if (again) {
      step_ = step;
      // NaN fails the comparison, too.
      if (!(step_ * std::min(1.0, 1 / lengths_.longest) > 0x1p-100 && step_ < 0x1p100)) {
        bounded_ = ready_ = false;
        std::fill_n(limits(), kWords, uint8_t{0});
        return Changed::limits;
      }
      const auto per_step = static_cast<float>(1 / step_);
      for (int64_t m = 0; m < all_.books; ++m) {
        kernels().fine.round(tables_ + m * kWords, highs_[m], per_step, numbers_ + m * kWords);
      }
      ready_ = true;
    }
    const double start = reach_ / step_ + (books + 1) * kRounding + 1;
    const double slope = std::clamp(least / step_ * lengths_.longest, -0x1p100, 0x1p100);
    const double margin = (std::fabs(start) + std::fabs(slope)) * kSingle;
    kernels().fine.limit(static_cast<float>(start + margin), static_cast<float>(slope),
                         lengths_.shares.data(), static_cast<int64_t>(lengths_.shares.size()),
                         limits());
    // No limit would fall by a whole number before.
    enough_ = bar + step_ / lengths_.longest;
    return again ? Changed::numbers : Changed::limits;
  }

  // Whether numbers and limits say anything yet.
  bool ready() const { return ready_; }
  const uint8_t* numbers() const { return numbers_; }

  void prefetch() const {
    for (int64_t b = 0; b < (all_.books + 1) * kWords; b += 64) __builtin_prefetch(numbers_ + b);
  }

  // Fetches what a document's score is made of.
  void prefetch(const uint8_t* code) const {
    for (int64_t m = 0; m < all_.books; ++m) __builtin_prefetch(tables_ + m * kWords + code[m]);
  }

  // Scores documents that may be hits: their codes, side by side, are a run of its own.
  void score(const Run& run, const std::vector<int64_t>& rows) {
    if (rows.empty()) return;
    static thread_local std::vector<uint8_t> codes;
    static thread_local std::vector<int64_t> docs;
    codes.clear();
    docs.clear();
    for (const int64_t row : rows) {
      codes.insert(codes.end(), run.code(row), run.code(row + 1));
      docs.push_back(run.doc(row));
    }
    const auto n = static_cast<int64_t>(rows.size());
    scan({run.segment, codes.data(), n, 0, docs.data()}, 0, n);
  }

  // Scores documents [row, end) one after the other.
  void scan(const Run& run, int64_t row, int64_t end) {
    const int64_t bytes = run.view().fine_bytes;
    float sums[kScoredTogether];
    for (; row < end; row += kScoredTogether) {
      const int64_t n = std::min(kScoredTogether, end - row);
      const uint8_t* code = run.code(row);
      kernels().fine.add(code, bytes, all_.books, tables_, n, sums);
      for (int64_t j = 0; j < n; ++j, code += bytes) {
        const float score = finished_score(sums[j], code, all_.books, offset(), all_.scales);
        if (score >= best.bar() && allows(run, row + j)) add(run, row + j, score);
      }
    }
  }

  // Scans documents [row, end), at most kLastRound, whose codes lie in columns, too.
  void look_up(const Run& run, int64_t row, int64_t end, const uint8_t* columns,
               std::vector<int64_t>& noted) {
    uint64_t below[kLastRound / 64];
    while (row < end) {
      const int64_t n = std::min(end - row, std::clamp(seen_, kFirstRound, kLastRound));
      update(true);
      if (ready_) {
        const bool scaled = all_.scales != nullptr;
        kernels().fine.look_up({columns, kPitch, all_.books, scaled, numbers_, limits()}, n, below);
        for (int64_t i = 0; i < n; i += 64) {
          uint64_t bits =
              below[i / 64] & (n - i < 64 ? (uint64_t{1} << (n - i)) - 1 : ~uint64_t{0});
          for (; bits != 0; bits &= bits - 1) {
            noted.push_back(row + i + __builtin_ctzll(bits));
            prefetch(run.code(noted.back()));
          }
        }
        score(run, noted);
        noted.clear();
      } else {
        scan(run, row, row + n);
      }
      row += n;
      columns += n;
      seen_ = round_up(seen_ + n, 64);
    }
  }

  // Calls ask(word, whether it is the best one) for the words whose documents it reads.
  template <class Ask>
  void ask_for_words(const Ask& ask) const {
    uint64_t chosen[kWords / 64];
    const int64_t first = kernels().fine.choose(tables_, all_.probes, chosen);
    for (int64_t w = 0; w < kWords; w += 64) {
      for (uint64_t bits = chosen[w / 64]; bits != 0; bits &= bits - 1) {
        const int64_t word = w + __builtin_ctzll(bits);
        ask(word, word == first);
      }
    }
  }

 private:
  // Finds what bounds its scores. `bounded_` is false if that would say nothing.
  void bound() {
    static thread_local std::vector<float> lows;
    lows.resize(all_.books);
    kernels().fine.extremes(tables_, all_.books, lows.data(), highs_);
    largest_ = std::fabs(offset());
    reach_ = offset();
    for (int64_t m = 0; m < all_.books; ++m) {
      reach_ += highs_[m];
      largest_ += std::max(std::fabs(lows[m]), std::fabs(highs_[m]));
    }
    const auto books = static_cast<double>(all_.books);
    reach_ += books * 0x1.01p-24 * largest_;
    // NaN fails the comparison, too.
    bounded_ = largest_ * std::max(1.0, 1 / lengths_.shortest) < 0x1p100 && books < 10'000;
  }

  bool allows(const Run& run, int64_t row) const {
    const Segment& segment = run.segment;
    if (segment.allowed == nullptr) return true;
    const int64_t doc = run.doc(row);
    return segment.allowed[i_ * segment.allowed_stride + doc / 64] >> (doc % 64) & 1;
  }

  void add(const Run& run, int64_t row, float score) {
    best.add(score, id_of(run.view(), run.doc(row)));
  }

  float offset() const { return all_.offsets[i_]; }
  uint8_t* limits() { return numbers_ + all_.books * kWords; }

  const FineQueries& all_;
  const Lengths& lengths_;
  int64_t i_;
  const float* tables_;
  uint8_t* numbers_;
  float* highs_;            // the largest entry of each book
  double largest_, reach_;  // a sum of entries in size, and the most that it can be
  bool bounded_, ready_ = false;
  double step_ = std::numeric_limits<double>::infinity();
  double enough_ = -std::numeric_limits<double>::infinity();  // a score that is worth an update
  int64_t seen_ = 0;                                          // documents

 public:
  Best best;
};

// What a thread needs, in memory that stays.
struct Lines {
  Lines(int64_t books, int64_t queries) {
    static thread_local Buffer memory;
    const int64_t row = (books + 1) * kWords, wide = round_up(books + 1, 16);
    const int64_t bytes = row * (kFineBatch + 1 + queries) + wide * (kPitch + kFineBatch) + 64;
    if (memory.bytes() < static_cast<size_t>(bytes)) memory = Buffer(bytes);
    numbers = memory.data();
    unused = numbers + row * kFineBatch;
    rows = unused + row;
    columns = rows + row * queries;
    tail = columns + wide * kPitch;
    std::fill_n(unused, row, uint8_t{0});
  }
  uint8_t* numbers;  // [books + 1, kWords, kFineBatch], of a batch; the last are limits
  uint8_t* unused;   // [books + 1, kWords], for columns without a query
  uint8_t* rows;     // [queries, books + 1, kWords]
  uint8_t* columns;  // [books + 1 or up to 15 more, kPitch], of codes
  uint8_t* tail;     // the last codes of a run
};

// Writes the columns of documents [row, end) of a run.
void turn_codes(const Run& run, int64_t row, int64_t end, const Lines& lines) {
  const int64_t bytes = run.view().fine_bytes, all = run.n * bytes;
  for (int64_t first = row; first < end; first += 64) {
    const uint8_t* codes = run.code(first);
    if ((first + 64) * bytes + 16 > all) {  // more would be read than there is
      std::copy(codes, run.codes + all, lines.tail);
      codes = lines.tail;
    }
    kernels().fine.to_columns(codes, bytes, lines.columns + first - row, kPitch);
  }
}

// Scans a run for a batch of at most kFineBatch queries.
void scan_together(const Run& run, const FineQueries& all, const Lines& lines,
                   const std::vector<Query*>& queries, std::vector<int64_t>* noted) {
  const uint8_t* rows[kFineBatch];
  std::fill_n(rows, kFineBatch, lines.unused);
  for (size_t q = 0; q < queries.size(); ++q) rows[q] = queries[q]->numbers();
  const int64_t size = all.books * kWords;
  const uint8_t* limits[kFineBatch];
  for (int64_t q = 0; q < kFineBatch; ++q) limits[q] = rows[q] + size;
  uint8_t* const lines_of_limits = lines.numbers + size * kFineBatch;
  const FineLines read = {run.codes, run.view().fine_bytes, all.books, lines.numbers,
                          lines_of_limits};
  const bool full = std::all_of(queries.begin(), queries.end(),
                                [](const Query* query) { return query->best.full(); });
  int64_t round = full ? kLastRound : kFirstRound;
  int64_t may_from = 0;  // turning numbers over takes a while
  for (int64_t row = 0; row < run.n; round = std::min(2 * round, kLastRound)) {
    const int64_t stop = std::min(run.n, row + round);
    auto changed = row == 0 ? Query::Changed::numbers : Query::Changed::nothing;
    const bool may = row >= may_from;
    if (may) may_from = 2 * row;
    for (Query* query : queries) {
      changed = std::max(changed, query->update(may));
      if (!query->ready()) query->scan(run, row, stop);
    }
    if (changed == Query::Changed::numbers) {
      kernels().fine.turn(rows, size, lines.numbers, kFineBatch);
    }
    if (changed != Query::Changed::nothing) {
      kernels().fine.turn(limits, kWords, lines_of_limits, kFineBatch);
    }
    uint64_t below = 0;
    while ((row = kernels().fine.find(read, row, stop, &below)) < stop) {
      for (; below != 0; below &= below - 1) {
        const int q = __builtin_ctzll(below);
        queries[q]->prefetch(run.code(row));
        noted[q].push_back(row);
      }
      ++row;
    }
    for (size_t q = 0; q < queries.size(); ++q) {
      queries[q]->score(run, noted[q]);
      noted[q].clear();
    }
  }
}

// Queries that a thread searches for.
class Group {
 public:
  Group(const FineQueries& all, const Lengths& lengths, int64_t first, int64_t n, int64_t wanted)
      : all_(all), lines_(all.books, n), looks_up_(looks_up_bytes()), highs_(all.books * n) {
    queries_.reserve(n);
    for (int64_t q = 0; q < n; ++q) {
      uint8_t* const numbers = lines_.rows + q * (all.books + 1) * kWords;
      float* const highs = highs_.data() + all.books * q;
      queries_.emplace_back(all, lengths, first + q, wanted, numbers, highs);
    }
  }

  // Scans a run for some of the queries.
  void scan(const Run& run, const int32_t* chosen, int64_t n) {
    const Worth& worth = looks_up_ ? kWorthTurningLookedUp : kWorthTurning;
    const auto together = [&] {
      return n >= worth.queries && std::min(n, kFineBatch) * run.n >= worth.pairs;
    };
    for (; together(); chosen += std::min(n, kFineBatch), n -= std::min(n, kFineBatch)) {
      together_.clear();
      for (int64_t j = 0; j < std::min(n, kFineBatch); ++j) {
        together_.push_back(&queries_[chosen[j]]);
      }
      scan_together(run, all_, lines_, together_, noted_);
    }
    for (int64_t row = 0; n > 0 && row < run.n; row += kLastRound) {
      const int64_t end = std::min(run.n, row + kLastRound);
      if (looks_up_) turn_codes(run, row, end, lines_);
      for (int64_t j = 0; j < n; ++j) {
        Query& query = queries_[chosen[j]];
        if (j + 1 < n) queries_[chosen[j + 1]].prefetch();
        if (looks_up_) {
          query.look_up(run, row, end, lines_.columns, noted_[0]);
        } else {
          query.scan(run, row, end);
        }
      }
    }
  }

  const std::vector<Query>& queries() const { return queries_; }

 private:
  const FineQueries& all_;
  Lines lines_;
  bool looks_up_;
  std::vector<float> highs_;  // [queries, books]
  std::vector<Query> queries_;
  std::vector<Query*> together_;
  std::vector<int64_t> noted_[kFineBatch];  // rows that may be hits, of each of `together_`
};

// Scans the cells of each query's words; those of its best word first, so that little is scored in
// the others.
void scan_cells(const std::vector<Segment>& segments, Group& group) {
  std::vector<std::vector<int32_t>> asked(2 * kWords);
  for (size_t q = 0; q < group.queries().size(); ++q) {
    group.queries()[q].ask_for_words([&](int64_t word, bool best) {
      asked[(best ? 0 : kWords) + word].push_back(static_cast<int32_t>(q));
    });
  }
  std::vector<int64_t> docs;
  std::vector<uint8_t> codes;
  for (size_t i = 0; i < asked.size(); ++i) {
    const auto n = static_cast<int64_t>(asked[i].size());
    if (n == 0) continue;
    for (const Segment& segment : segments) {
      const Index& index = *segment.index;
      index.cells().read(index.view(), i % kWords, &docs, &codes);
      const auto held = static_cast<int64_t>(docs.size());
      group.scan({segment, codes.data(), held, 0, docs.data()}, asked[i].data(), n);
    }
  }
}

}  // namespace

void search_fine(const std::vector<Segment>& segments, const FineQueries& all, float* scores,
                 int64_t* ids) {
  int64_t n_docs = 0;
  for (const Segment& segment : segments) n_docs += segment.index->view().n_docs;
  const int64_t wanted = std::max<int64_t>(std::min(all.top_k, n_docs), 1);
  const Lengths lengths(all.scales);
  const int64_t threads = all.num_threads;
  const bool in_cells = all.probes < kWords;
  const int64_t most = in_cells ? kCellQueries : kFineBatch;
  const int64_t size = std::clamp<int64_t>((all.n + threads - 1) / threads, 1, most);
  const int64_t n_groups = (all.n + size - 1) / size;
  const int64_t n_ranges = n_groups >= threads || in_cells
                               ? 1
                               : std::clamp<int64_t>(n_docs / kWorthSplitting, 1, threads);
  std::vector<std::vector<Hit>> found(all.n);
  std::vector<std::mutex> guards(n_groups);
  parallel_for(n_groups * n_ranges, 1, static_cast<int>(threads), [&](int64_t t, int64_t, int) {
    const int64_t first = t / n_ranges * size, range = t % n_ranges;
    Group group(all, lengths, first, std::min(size, all.n - first), wanted);
    if (in_cells) {
      scan_cells(segments, group);
    } else {
      std::vector<int32_t> everyone(group.queries().size());
      std::iota(everyone.begin(), everyone.end(), 0);
      for (const Segment& segment : segments) {
        const IndexView& view = segment.index->view();
        const int64_t begin = view.n_docs * range / n_ranges;
        const int64_t end = view.n_docs * (range + 1) / n_ranges;
        group.scan({segment, view.fine + begin * view.fine_bytes, end - begin, begin},
                   everyone.data(), static_cast<int64_t>(everyone.size()));
      }
    }
    const std::lock_guard<std::mutex> lock(guards[t / n_ranges]);
    for (size_t q = 0; q < group.queries().size(); ++q) {
      const std::vector<Hit>& hits = group.queries()[q].best.hits();
      std::vector<Hit>& of_all = found[first + static_cast<int64_t>(q)];
      of_all.insert(of_all.end(), hits.begin(), hits.end());
    }
  });
  for (int64_t i = 0; i < all.n; ++i) {
    std::sort(found[i].begin(), found[i].end(), better);
    write_out(found[i], all.top_k, scores + i * all.top_k, ids + i * all.top_k);
  }
}

}  // namespace csrkern
