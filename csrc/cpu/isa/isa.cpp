#include "csrkern/isa.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace csrkern {
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports of clang 14 does not know these two.
bool has_f16c_and_lzcnt() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) &&
         __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & bit_LZCNT);
}
#elif defined(__aarch64__)
// All of Armv8-A have NEON, and all from Armv8.1-A on crc32c, which earlier ones may lack.
bool has_crc32() {
#ifdef __linux__
  return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#else
  return true;
#endif
}
#endif

// Returns the instruction sets of this processor, the best last.
std::vector<Isa> supported() {
  std::vector<Isa> found{Isa::portable};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt") && has_f16c_and_lzcnt();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  if (avx2) found.push_back(Isa::avx2);
  if (avx512) found.push_back(Isa::avx512);
#elif defined(__aarch64__)
  if (has_crc32()) found.push_back(Isa::neon);
#endif
  return found;
}

Isa choose() {
  const std::vector<Isa> known = supported();
  const char* asked = std::getenv("CSRKERN_ISA");
  if (asked == nullptr || *asked == '\0') return known.back();
  std::string names;
  for (Isa isa : known) {
    if (std::string(asked) == isa_name(isa)) return isa;
    names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::runtime_error(std::string("CSRKERN_ISA=") + asked +
                           ": expected one that this processor has: " + names);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::neon:
      return "neon";
    default:
      return "portable";
  }
}

bool multiplies_bfloat16() {
#ifdef __x86_64__
  unsigned a, b, c, d;
  if (supported().back() != Isa::avx512) return false;
  const bool amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
  const bool avx512 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  return amx || avx512;
#else
  return false;
#endif
}

bool looks_up_bytes() {
#ifdef __x86_64__
  return isa() == Isa::avx512 && __builtin_cpu_supports("avx512vbmi");
#else
  return isa() == Isa::neon;
#endif
}

}  // namespace csrkern
