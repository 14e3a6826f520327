// Prints the best instruction set of this machine: the runs of the other tests go by it.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "check.hpp"
#include "csrkern/isa.hpp"

int main() try {
  using csrkern::isa;
  const char* asked = std::getenv("CSRKERN_ISA");
  const std::string wanted = asked != nullptr ? asked : "";
#ifdef __x86_64__
  const char* foreign = "neon";
#else
  const char* foreign = "avx2";
#endif
  for (const char* unknown : {"sse9", foreign}) {
    setenv("CSRKERN_ISA", unknown, 1);
    CHECK_THROWS(isa(), std::runtime_error);
  }
  setenv("CSRKERN_ISA", wanted.c_str(), 1);
  const std::string name = csrkern::isa_name(isa());
  CHECK(wanted.empty() || name == wanted);
  setenv("CSRKERN_ISA", "portable", 1);
  CHECK(csrkern::isa_name(isa()) == name);  // chosen once
  std::puts(name.c_str());
} catch (const std::runtime_error& error) {  // for a processor that lacks what is asked
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
