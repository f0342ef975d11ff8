// Feature maps between 8-bit convolutions, as int8_convolution.py explains them: the peak of a map,
// its 8-bit steps, and the norm and residual at the end of a block.
//
// A convolution comes as float32 or bfloat16. Steps are unsigned, zero point 128. C channels, last.

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "lanes.h"

namespace {

typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

constexpr float kZero = 128;
constexpr int64_t kBlock = 1 << 14;  // numbers that a thread takes at once

// The largest |x|; NaN where a number is not finite.
template <typename T>
float peak_of(const T* x, int64_t count, int threads) {
  const int64_t blocks = ceil_div(count, kBlock);
  float peak = 0;
  bool finite = true;
#pragma omp parallel for num_threads(threads) reduction(max : peak) reduction(&& : finite)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t end = std::min((block + 1) * kBlock, count);
    Lanes high{}, low{}, wrong{};
    for (int64_t i = block * kBlock; i < end; i += kLanes) {
      const Lanes lanes = load(x + i, end - i);
      high = lanes > high ? lanes : high;
      low = lanes < low ? lanes : low;
      wrong += lanes - lanes;  // NaN of NaN and of infinity
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      peak = std::max({peak, high[i], -low[i]});
      finite = finite && wrong[i] == 0;
    }
  }
  return finite ? peak : NAN;
}

// round(x * inverse) + 128, of which |x * inverse| is at most 127.
template <typename T>
void steps_of(const T* x, uint8_t* out, int64_t count, float inverse, int threads) {
  const int64_t blocks = ceil_div(count, kBlock);
#pragma omp parallel for num_threads(threads)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t end = std::min((block + 1) * kBlock, count);
    for (int64_t i = block * kBlock; i < end; i += kLanes) {
      const Lanes steps = load(x + i, end - i) * inverse + (kZero + 0.5f);
      const Bytes bytes = __builtin_convertvector(__builtin_convertvector(steps, Ints), Bytes);
      std::memcpy(out + i, &bytes, std::min(kLanes, end - i));
    }
  }
}

// out = x + weight * branch / rms(branch) + bias, at each of `count` positions [C].
template <typename T>
void add_normed(const float* x, const T* branch, const float* weight, const float* bias, float* out,
                int64_t count, int64_t channels, float eps, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t j = 0; j < count; ++j) {
    const T* row = branch + j * channels;
    Lanes squares{};
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Lanes lanes = load(row + c, channels - c);
      squares += lanes * lanes;
    }
    float sum = 0;
    for (int64_t i = 0; i < kLanes; ++i) sum += squares[i];
    const float inverse = 1 / std::sqrt(sum / channels + eps);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t at = j * channels + c, left = channels - c;
      const Lanes normal = load(row + c, left) * inverse;
      store(out + at, load(x + at, left) + load(weight + c, left) * normal + load(bias + c, left),
            left);
    }
  }
}

}  // namespace

extern "C" {

#define OF_CONVOLUTIONS(T, SUFFIX)                                                                 \
  float int8_peak##SUFFIX(const T* x, int64_t count, int threads) {                                \
    return peak_of(x, count, threads);                                                             \
  }                                                                                                \
  void int8_steps##SUFFIX(const T* x, uint8_t* out, int64_t count, float inverse, int threads) {   \
    steps_of(x, out, count, inverse, threads);                                                     \
  }                                                                                                \
  void int8_add_normed##SUFFIX(const float* x, const T* branch, const float* weight,               \
                               const float* bias, float* out, int64_t count, int64_t channels,     \
                               float eps, int threads) {                                           \
    add_normed(x, branch, weight, bias, out, count, channels, eps, threads);                       \
  }

OF_CONVOLUTIONS(float, )
OF_CONVOLUTIONS(Bfloat16, _bfloat16)
}
