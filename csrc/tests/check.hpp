// What every native test needs: a check, and numbers that are the same in each run.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                 \
    }                                                                               \
  } while (0)

#define CHECK_THROWS(statement, Error)                                                 \
  do {                                                                                 \
    bool thrown = false;                                                               \
    try {                                                                              \
      statement;                                                                       \
    } catch (const Error&) {                                                           \
      thrown = true;                                                                   \
    }                                                                                  \
    if (!thrown) {                                                                     \
      std::fprintf(stderr, "%s:%d: expected %s from %s\n", __FILE__, __LINE__, #Error, \
                   #statement);                                                        \
      std::abort();                                                                    \
    }                                                                                  \
  } while (0)

namespace csrkern {

inline bool close(double got, double want, double relative, double absolute = 1e-30) {
  return got == want || std::abs(got - want) <= relative * std::abs(want) + absolute;
}

// splitmix64
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  // Uniform in (0, 1].
  float positive() { return static_cast<float>(next() % (1 << 24) + 1) * 0x1p-24f; }
  // Uniform in (-1, 1].
  float symmetric() { return 2 * positive() - 1; }

 private:
  uint64_t state_;
};

}  // namespace csrkern
