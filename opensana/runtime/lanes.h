// Float32 numbers side by side in a register, as wide as the processor has them; read from
// bfloat16 too.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a shorter rest the other lanes are zero, and not stored.
inline Lanes load(const float* from, int64_t count = kLanes) {
  Lanes lanes{};
  if (count >= kLanes) std::memcpy(&lanes, from, sizeof lanes);
  else if (count > 0) std::memcpy(&lanes, from, count * sizeof(float));
  return lanes;
}

typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));

struct Bfloat16 {
  uint16_t bits;
};

// The same bits as another type.
template <typename To, typename From>
inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline Lanes load(const Bfloat16* from, int64_t count = kLanes) {
  Halves halves{};
  if (count >= kLanes) std::memcpy(&halves, from, sizeof halves);
  else if (count > 0) std::memcpy(&halves, from, count * sizeof(Bfloat16));
  return as<Lanes>(__builtin_convertvector(halves, Bits) << 16);
}

inline void store(float* to, Lanes lanes, int64_t count = kLanes) {
  if (count >= kLanes) std::memcpy(to, &lanes, sizeof lanes);
  else if (count > 0) std::memcpy(to, &lanes, count * sizeof(float));
}
