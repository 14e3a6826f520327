#include <algorithm>
#include <cstring>

#include "csrkern/index.hpp"
#include "csrkern/index_rows.hpp"
#include "csrkern/parallel.hpp"

namespace csrkern {
namespace {

// Leaders: about one in 128 rows, so that a leader's followers fill half a block.
constexpr int64_t kRowsPerLeader = 128;
constexpr int64_t kMostLeaders = 16'384;
constexpr int64_t kLeadersPerGroup = 32;
// The largest entries decide where a row belongs; all 32 cost four times as much.
constexpr int64_t kEntriesCompared = 8;
constexpr size_t kRowsTried = 1000;

uint64_t scramble(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Returns `count` rows: a random one from each of `count` equal ranges.
std::vector<int64_t> sample(int64_t n, int64_t count) {
  std::vector<int64_t> rows(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = n * i / count, end = n * (i + 1) / count;
    rows[i] = begin + static_cast<int64_t>(scramble(i) % static_cast<uint64_t>(end - begin));
  }
  return rows;
}

// The largest entries of each row.
struct Strongest {
  Strongest(const SparseRows& rows, int num_threads)
      : values(rows.n * kEntriesCompared), indices(rows.n * kEntriesCompared) {
    parallel_for(rows.n, 4096, num_threads, [&](int64_t first, int64_t last, int) {
      std::vector<Entry> entries;
      for (int64_t i = first; i < last; ++i) {
        check_row(rows, i, "codes");
        const auto [begin, end] = row_range(rows, i);
        entries.clear();
        for (int64_t j = begin; j < end; ++j) entries.push_back({rows.indices[j], rows.values[j]});
        const int64_t kept = std::min<int64_t>(kEntriesCompared, entries.size());
        std::partial_sort(entries.begin(), entries.begin() + kept, entries.end(),
                          [](const Entry& a, const Entry& b) {
                            return a.value > b.value || (a.value == b.value && a.latent < b.latent);
                          });
        for (int64_t j = 0; j < kept; ++j) {
          const auto same = [&](const Entry& e) { return e.latent == entries[j].latent; };
          const bool twice = std::any_of(entries.begin(), entries.begin() + j, same);
          if (twice && entries[j].value > 0) throw_twice(rows, i, "codes", entries[j].latent);
          values[i * kEntriesCompared + j] = entries[j].value;
          indices[i * kEntriesCompared + j] = entries[j].latent;
        }
      }
    });
  }

  std::vector<float> values;
  std::vector<int32_t> indices;
};

struct Nearest {
  std::vector<int64_t> leader;  // number among the leaders, or -1
  std::vector<float> score;     // with the leader at norm 1
};

// For each row the most similar one of `leaders` (rows of `of`).
Nearest nearest(const SparseRows& rows, const SparseRows& of, const std::vector<int64_t>& leaders,
                int num_threads) {
  SparseRows chosen = of;
  chosen.n = static_cast<int64_t>(leaders.size());
  chosen.order = leaders.data();
  const int32_t window = static_cast<int32_t>((chosen.n + 63) / 64 * 64);
  const BuiltIndex built =
      build_index(chosen, window, 0, ValueType::float16, /*normalize=*/true, num_threads);
  const Index index({chosen.n, chosen.dim, window, 1, static_cast<int64_t>(built.terms.size()),
                     ValueType::float16, built.terms.data(), built.offsets.data(),
                     built.postings.data(), built.checksums.data(), nullptr},
                    /*trusted=*/true);
  Nearest found{std::vector<int64_t>(rows.n), std::vector<float>(rows.n)};
  index.search(rows, 1, false, nullptr, num_threads, found.score.data(), found.leader.data());
  return found;
}

// Returns the mean cosine between some rows that are not leaders and their nearest leaders.
double similarity_to_leaders(const SparseRows& rows, const SparseRows& of,
                             const std::vector<int64_t>& leaders, int num_threads) {
  std::vector<int64_t> chosen;
  const size_t step = std::max<size_t>(1, leaders.size() / kRowsTried);
  for (size_t i = 0; i + 1 < leaders.size(); i += step) {
    const int64_t row = leaders[i] + 1;
    if (row != leaders[i + 1]) chosen.push_back(row);
  }
  SparseRows tried = rows;
  tried.n = static_cast<int64_t>(chosen.size());
  tried.order = chosen.data();
  const Nearest found = nearest(tried, of, leaders, num_threads);
  double sum = 0;
  for (int64_t i = 0; i < tried.n; ++i) {
    const auto [begin, end] = row_range(tried, i);
    if (found.leader[i] < 0) continue;
    sum += found.score[i] * inverse_norm(tried.values + begin, end - begin);
  }
  return sum / std::max<int64_t>(tried.n, 1);
}

}  // namespace

std::vector<int64_t> cluster_order(const SparseRows& docs, double least_similarity,
                                   int num_threads) {
  check_starts(docs, "codes");
  const int64_t n = docs.n;
  std::vector<int64_t> order(n);
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  const int64_t n_leaders = std::min(kMostLeaders, n / kRowsPerLeader);
  if (n_leaders < 2) return order;

  const Strongest strongest(docs, num_threads);
  const SparseRows short_docs{
      n, docs.dim, kEntriesCompared, nullptr, strongest.values.data(), strongest.indices.data()};
  const std::vector<int64_t> leaders = sample(n, n_leaders);
  if (least_similarity > 0 &&
      similarity_to_leaders(short_docs, docs, leaders, num_threads) < least_similarity) {
    return {};
  }
  const std::vector<int64_t> leader_of = nearest(short_docs, docs, leaders, num_threads).leader;

  // Leaders with the same nearest leader of leaders are placed together.
  std::vector<int64_t> chiefs;
  for (int64_t i : sample(n_leaders, std::max<int64_t>(1, n_leaders / kLeadersPerGroup))) {
    chiefs.push_back(leaders[i]);
  }
  SparseRows leader_rows = short_docs;
  leader_rows.n = n_leaders;
  leader_rows.order = leaders.data();
  const std::vector<int64_t> chief_of = nearest(leader_rows, docs, chiefs, num_threads).leader;
  std::vector<int64_t> by_chief(n_leaders);
  for (int64_t i = 0; i < n_leaders; ++i) by_chief[i] = i;
  std::stable_sort(by_chief.begin(), by_chief.end(),
                   [&](int64_t a, int64_t b) { return chief_of[a] < chief_of[b]; });
  std::vector<int64_t> place(n_leaders);
  for (int64_t i = 0; i < n_leaders; ++i) place[by_chief[i]] = i;

  // A counting sort of the rows by the place of their leader; rows without a leader come last.
  const auto place_of = [&](int64_t i) {
    return leader_of[i] < 0 ? n_leaders : place[leader_of[i]];
  };
  std::vector<int64_t> next(n_leaders + 2);
  for (int64_t i = 0; i < n; ++i) ++next[place_of(i) + 1];
  for (int64_t p = 0; p <= n_leaders; ++p) next[p + 1] += next[p];
  for (int64_t i = 0; i < n; ++i) order[next[place_of(i)]++] = i;
  return order;
}

}  // namespace csrkern
