#include "csrkern/costs.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <ctime>
#include <limits>
#include <list>
#include <mutex>
#include <optional>

#include "csrkern/fork_mutex.hpp"
#include "index/dense_lists.hpp"
#include "index/directory.hpp"
#include "index/forward.hpp"
#include "index/rounded.hpp"
#include "index/scan.hpp"

namespace csrkern {
namespace {

// The lowest bar, which every document and block reaches, and the highest, which none does.
constexpr uint32_t kLowest = 1, kHighest = 0x7f800000;

// Returns a time of this thread; where the system does not tell it, of the clock.
double now_ns() {
#ifdef CLOCK_THREAD_CPUTIME_ID
  timespec now;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0) {
    return 1e9 * static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec);
  }
#endif
  const auto now_of_clock = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::nano>(now_of_clock).count();
}

// Returns the least time of a few runs, each after `prepare`.
template <class Prepare, class Body>
double least_ns(const Prepare& prepare, const Body& body) {
  double least = std::numeric_limits<double>::infinity();
  for (int run = 0; run < 5; ++run) {
    prepare();
    const double begin = now_ns();
    body();
    least = std::min(least, now_ns() - begin);
  }
  return least;
}

template <class Body>
double least_ns(const Body& body) {
  return least_ns([] {}, body);
}

}  // namespace

// Times the parts of searches of one drawn index.
class CostMeter {
 public:
  Costs measure();

 private:
  // Codes as clusters have them: the documents of a block choose among 16 terms for each entry, and
  // every eighth block has the same ones.
  static constexpr int64_t kDocs = 65'536, kWindow = 32'768, kBlock = 256, kEntries = 16;
  static constexpr int64_t kKinds = 8, kChoices = 16, kTerms = kEntries * kKinds * kChoices;
  static constexpr int64_t kQueryTerms = 32;

  static BuiltIndex build();
  IndexView view() const;
  // Returns a query of n terms of the first kind of blocks.
  std::vector<QueryTerm> query(int64_t n) const;
  // Moves the index out of the caches: those that deserve a choice are larger than these.
  void forget() { std::memset(elsewhere_.data(), ++times_forgotten_, elsewhere_.bytes()); }

  double ns_of_scan(int64_t n_terms);
  double ns_of_window();
  double ns_of_dense();
  double ns_of_rows(const ForwardIndex& forward);
  double ns_of_blocks(const Directory* directory);
  double ns_of_bounds();
  static double ns_of_batch_entry(int log_terms);

  const BuiltIndex built_ = build();
  const Index index_{view(), true};
  Buffer elsewhere_{64 << 20};
  int times_forgotten_ = 0;
  Scratch s_;
};

BuiltIndex CostMeter::build() {
  std::vector<float> values;
  std::vector<int32_t> latents;
  uint32_t random = 1;
  for (int64_t i = 0; i < kDocs * kEntries; ++i) {
    random = random * 1'664'525 + 1'013'904'223;
    const int64_t kind = i / (kBlock * kEntries) % kKinds, choice = random >> 28;
    latents.push_back(
        static_cast<int32_t>((i % kEntries * kKinds + kind) * kChoices + choice % kChoices));
    values.push_back(0.5f + static_cast<float>(random >> 8 & 255) / 256);
  }
  const SparseRows rows = {kDocs, kTerms, kEntries, nullptr, values.data(), latents.data()};
  return build_index(rows, kWindow, kBlock, ValueType::float16, false, 1);
}

IndexView CostMeter::view() const {
  IndexView view = {};
  view.n_docs = kDocs;
  view.dim = kTerms;
  view.window = kWindow;
  view.n_windows = kDocs / kWindow;
  view.n_terms = static_cast<int64_t>(built_.terms.size());
  view.type = ValueType::float16;
  view.terms = built_.terms.data();
  view.offsets = built_.offsets.data();
  view.postings = built_.postings.data();
  view.checksums = built_.checksums.data();
  view.block = kBlock;
  view.maxima = built_.maxima.data();
  view.scales = built_.scales.data();
  return view;
}

std::vector<QueryTerm> CostMeter::query(int64_t n) const {
  std::vector<QueryTerm> terms;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t term = i % kEntries * kKinds * kChoices + i / kEntries;
    terms.push_back({index_.view().offsets + term * index_.view().n_windows, 1.0f, term});
  }
  return terms;
}

double CostMeter::ns_of_scan(int64_t n_terms) {
  const SegmentSearch search(index_, query(n_terms), nullptr, 0);
  TopHits best(10, true, std::numeric_limits<float>::max());
  best.raise(kHighest);
  return least_ns([&] { forget(); },
                  [&] {
                    for (int64_t w = 0; w < index_.view().n_windows; ++w) search.scan(w, best, s_);
                  });
}

double CostMeter::ns_of_window() {
  auto* scores = reinterpret_cast<float*>(s_.scores.data());
  return least_ns([&] {
           kernels().index.take(scores, kWindow, kHighest, s_.ids.data(), s_.taken.data());
         }) /
         kWindow;
}

double CostMeter::ns_of_dense() {
  const Buffer values(kDocs * kEntries * 2);
  std::memset(values.data(), 0x3c, values.bytes());
  const auto add = kernels().index.of[static_cast<int>(ValueType::float16)].add_dense;
  auto* scores = reinterpret_cast<float*>(s_.scores.data());
  const double ns = least_ns([&] { forget(); },
                             [&] {
                               for (int64_t i = 0; i < kDocs * kEntries; i += kWindow) {
                                 add(values.data() + 2 * i, kWindow, 1, scores);
                               }
                             });
  std::memset(scores, 0, s_.scores.bytes());
  return ns / (kDocs * kEntries);
}

double CostMeter::ns_of_rows(const ForwardIndex& forward) {
  constexpr int64_t kEvery = 16;
  const std::vector<uint64_t> allowed(kDocs / 64, 0x0001000100010001);
  static_assert(kEvery * 4 == 64);
  const SegmentSearch search(index_, query(kQueryTerms), allowed.data(), 0);
  const double ns = least_ns([&] { forget(); },
                             [&] {
                               TopHits best(10, true, std::numeric_limits<float>::max());
                               search.score_listed(forward, best, s_);
                             });
  return ns / (kDocs / kEvery);
}

double CostMeter::ns_of_blocks(const Directory* directory) {
  SegmentSearch search(index_, query(kQueryTerms), nullptr, 0);
  search.directory_ = directory;
  s_.bounds.compute(index_.view(), search.terms_, 1);
  std::vector<int32_t> blocks;
  for (int32_t block = 0; block < index_.view().n_blocks(); block += kKinds) {
    blocks.push_back(block);
  }
  const double ns =
      least_ns([&] { forget(); },
               [&] {
                 TopHits best(10, true, std::numeric_limits<float>::max());
                 best.raise(kLowest);
                 search.score_blocks(blocks.data(), blocks.data() + blocks.size(), best, s_);
               });
  return ns / static_cast<double>(kQueryTerms * blocks.size());
}

double CostMeter::ns_of_bounds() {
  constexpr int kTimes = 16;
  const std::vector<QueryTerm> terms = query(kQueryTerms);
  const double ns = least_ns([&] {
    for (int i = 0; i < kTimes; ++i) s_.bounds.compute(index_.view(), terms, 1);
  });
  return ns / static_cast<double>(kTimes * kQueryTerms * index_.view().n_blocks());
}

double CostMeter::ns_of_batch_entry(int log_terms) {
  constexpr int64_t kRows = 256, kRowEntries = 64;
  std::vector<uint64_t> starts;
  std::vector<uint16_t> terms;
  for (int64_t row = 0; row <= kRows; ++row) starts.push_back(row * kRowEntries);
  for (uint32_t i = 0; i < kRows * kRowEntries; ++i) {
    terms.push_back(static_cast<uint16_t>(i * 2'654'435'761u >> (32 - log_terms)));
  }
  const std::vector<uint8_t> numbers(terms.size() + 1, 1);
  Buffer lines(static_cast<size_t>(kBatch) << log_terms);
  std::memset(lines.data(), 1, lines.bytes());
  const ByteRows rows = {starts.data(), reinterpret_cast<const uint8_t*>(terms.data()), 2,
                         numbers.data()};
  const auto* queries = reinterpret_cast<const int8_t*>(lines.data());
  int16_t bars[kBatch], sums[kBatch];
  uint64_t reached;
  std::fill_n(bars, kBatch, static_cast<int16_t>(kMostSum));
  const double ns =
      least_ns([&] { kernels().index.find_row(rows, queries, bars, 0, kRows, sums, &reached); });
  return ns / (kRows * kRowEntries);
}

Costs CostMeter::measure() {
  s_.reserve(kWindow);
  const auto n_postings = static_cast<double>(kDocs * kEntries);
  Costs costs;
  constexpr int64_t kFew = 4 * kEntries, kMany = kChoices * kEntries;
  costs.posting = (ns_of_scan(kMany) - ns_of_scan(kFew)) / ((kMany - kFew) * n_postings / kTerms);
  costs.document = ns_of_window();
  costs.dense = ns_of_dense();
  costs.bound = ns_of_bounds();
  costs.block_term = ns_of_blocks(nullptr);
  std::optional<Directory> directory;
  costs.directory_posting = least_ns([&] { directory.emplace(view(), 1); }) / n_postings;
  costs.directory_term = ns_of_blocks(&*directory);
  std::optional<ForwardIndex> forward;
  costs.forward_posting = least_ns([&] { forward.emplace(view(), 1); }) / n_postings;
  costs.rounded_posting = least_ns([&] { RoundedRows(*forward, kDocs, 1); }) / n_postings;
  const double share = ns_of_rows(*forward) / (costs.row + costs.entry * kEntries);
  costs.row *= share;
  costs.entry *= share;
  costs.batch_entry_of_1024 = ns_of_batch_entry(10);
  costs.batch_entry_of_4096 = ns_of_batch_entry(12);
  costs.batch_entry = ns_of_batch_entry(14);
  return costs;
}

Costs measure_costs() {
  Costs measured = CostMeter().measure();
  for (const auto& [name, cost] : kCosts) {
    const double usual = kUsualCosts.*cost;
    measured.*cost = std::clamp(measured.*cost, usual / 8, usual * 8);
  }
  return measured;
}

namespace {

std::atomic<const Costs*> in_force{nullptr};
std::atomic<bool> measured{false};
ForkMutex changing;
// All that were ever in force. Leaked on purpose: searches may read them until the process ends.
std::list<Costs>& kept = *new std::list<Costs>;

}  // namespace

const Costs& costs() {
  if (const Costs* found = in_force.load(std::memory_order_acquire)) return *found;
  const std::lock_guard<ForkMutex> lock(changing);
  if (in_force.load() == nullptr) {
    kept.push_back(measure_costs());
    in_force.store(&kept.back(), std::memory_order_release);
    measured.store(true);
  }
  return *in_force.load();
}

bool costs_were_measured() { return measured.load(); }

void set_costs(const Costs& costs) {
  const auto same = [&](const Costs& other) {
    return std::all_of(std::begin(kCosts), std::end(kCosts), [&](const NamedCost& named) {
      return costs.*named.cost == other.*named.cost;
    });
  };
  const std::lock_guard<ForkMutex> lock(changing);
  auto found = std::find_if(kept.begin(), kept.end(), same);
  if (found == kept.end()) found = kept.insert(found, costs);
  in_force.store(&*found, std::memory_order_release);
}

}  // namespace csrkern
