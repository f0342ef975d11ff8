// What lies between the 8-bit products of a block, as int8_block.py explains it: one pass from the
// numbers of a product to the 8-bit rows of the next.
//
// A product comes as float32 or bfloat16 without its tokens' scales. Rows are unsigned with zero
// point 128, each with a scale. C channels, K channels inside the Mix-FFN, D of a head.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.h"

namespace {

typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

constexpr float kRounding = 12582912;  // 1.5 * 2^23: adding it leaves whole numbers
constexpr float kLevels = 127, kFiner = 2 * kLevels, kZero = 128, kLeastScale = 1e-30f, kEpsilon = 1e-15f;
constexpr int64_t kTaps = 9, kTogether = 4;  // tokens that share what is loaded of a state

inline float widened(float x) { return x; }

inline float widened(Bfloat16 x) { return as<float>(static_cast<uint32_t>(x.bits) << 16); }

inline Lanes largest(Lanes a, Lanes b) { return a > b ? a : b; }

inline float sum(Lanes lanes) {
  float total = 0;
  for (int64_t i = 0; i < kLanes; ++i) total += lanes[i];
  return total;
}

// e^x by 2^n e^r, |r| <= ln 2 / 2, and a polynomial (Cephes); 2e-7 of the value. n lies in the
// lowest bits of `shifted`.
inline Lanes exponential(Lanes x) {
  const Lanes high = Lanes{} + 88.0f, low = Lanes{} - 87.0f;
  x = x > high ? high : x < low ? low : x;
  const Lanes shifted = x * 1.44269504f + kRounding, n = shifted - kRounding;
  const Lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return as<Lanes>(as<Bits>(p) + (as<Bits>(shifted) << 23));
}

inline Lanes silu(Lanes x) { return x / (1.0f + exponential(-x)); }

// Steps from a row's zero point, at lanes of x, in 8 bits.
inline void store_steps(Lanes steps, uint8_t* row, int64_t count) {
  const Ints whole = __builtin_convertvector(steps + (kZero + 0.5f), Ints);
  const Bytes bytes = __builtin_convertvector(whole, Bytes);
  if (count >= kLanes) std::memcpy(row, &bytes, sizeof bytes);
  else std::memcpy(row, &bytes, count);
}

// One token [count] to its 8-bit row; returns the row's scale. With `rest`, the row of what the
// first leaves over, in finer steps.
float quantise(const float* x, int64_t count, uint8_t* row, uint8_t* rest = nullptr) {
  Lanes peaks{};
  for (int64_t c = 0; c < count; c += kLanes) {
    const Lanes lanes = load(x + c, count - c);
    peaks = largest(peaks, largest(lanes, -lanes));
  }
  float peak = 0;
  for (int64_t i = 0; i < kLanes; ++i) peak = std::max(peak, peaks[i]);
  const float scale = std::max(peak / kLevels, kLeastScale), inverse = 1 / scale;
  for (int64_t c = 0; c < count; c += kLanes) {
    const Lanes steps = load(x + c, count - c) * inverse;
    const Lanes whole = (steps + kRounding) - kRounding;
    store_steps(whole, row + c, count - c);
    if (rest) store_steps((steps - whole) * kFiner, rest + c, count - c);
  }
  return scale;
}

// Layer norm of one token, times `multiply`, plus `add`, to y.
void modulate(const float* x, const float* multiply, const float* add, int64_t channels, float eps,
              float* y) {
  Lanes sums{}, squares{};
  for (int64_t c = 0; c < channels; c += kLanes) sums += load(x + c, channels - c);
  const float mean = sum(sums) / channels;
  for (int64_t c = 0; c < channels; ++c) y[c] = x[c] - mean;
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Lanes off = load(y + c, channels - c);
    squares += off * off;
  }
  const float inverse = 1 / std::sqrt(sum(squares) / channels + eps);
  for (int64_t c = 0; c < channels; ++c) y[c] = y[c] * inverse * multiply[c] + add[c];
}

// What a token's queries or keys are multiplied by: its scale, normed over all channels if asked.
template <typename T>
float factor(const T* x, int64_t channels, float scale, bool normed, float eps) {
  if (!normed) return scale;
  Lanes squares{};
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Lanes lanes = load(x + c, channels - c) * scale;
    squares += lanes * lanes;
  }
  return scale / std::sqrt(sum(squares) / channels + eps);
}

template <typename T>
struct Attention {
  const T *q, *k, *v;                     // [B, N, C]
  const float* scale;                     // [B, N]
  const float *q_weight, *k_weight;       // [C] of a norm, or null
  int64_t batch, tokens, heads, size;     // C = heads * size
  float eps;

  int64_t channels = heads * size, width = ceil_div(size, kLanes) * kLanes + kLanes;

  // relu(x) of one number; the last lanes of a state's row hold its sum over keys.
  static float relu(T x, float factor, const float* weight, int64_t c) {
    const float value = widened(x) * factor * (weight ? weight[c] : 1);
    return std::max(value, 0.0f);
  }

  // S and z of one head: state [D, width], z in the first of the last lanes.
  void read(int64_t image, int64_t head, const float* factors, float* state) const {
    std::fill(state, state + size * width, 0.0f);
    for (int64_t d = 0; d < size; d += kTogether) {
      const int64_t rows = std::min(kTogether, size - d);
      for (int64_t e = 0; e < size; e += 2 * kLanes) {
        Lanes left[kTogether] = {}, right[kTogether] = {};
        float keys[kTogether] = {};
        for (int64_t j = image * tokens; j < (image + 1) * tokens; ++j) {
          const int64_t first = j * channels + head * size;
          const Lanes v0 = load(v + first + e, size - e) * scale[j];
          const Lanes v1 = e + kLanes < size ? load(v + first + e + kLanes, size - e - kLanes) *
                                                   scale[j]
                                             : Lanes{};
          for (int64_t r = 0; r < rows; ++r) {
            const float key = relu(k[first + d + r], factors[j], k_weight, head * size + d + r);
            left[r] += key * v0;
            right[r] += key * v1;
            keys[r] += key;
          }
        }
        for (int64_t r = 0; r < rows; ++r) {
          float* row = state + (d + r) * width;
          store(row + e, left[r]);
          if (e + kLanes < size) store(row + e + kLanes, right[r]);
          row[width - kLanes] = keys[r];
        }
      }
    }
  }

  // What one token reads of one head's state, [D].
  void attend(const T* query, const float* state, float factor, const float* weight,
              float* out) const {
    for (int64_t e = 0; e < size; e += 2 * kLanes) {
      Lanes left{}, right{};
      float keys = 0;
      for (int64_t d = 0; d < size; ++d) {
        const float* row = state + d * width;
        const float value = relu(query[d], factor, weight, d);
        left += value * load(row + e);
        right += value * load(row + e + kLanes);
        keys += value * row[width - kLanes];
      }
      const float inverse = 1 / (keys + kEpsilon);
      store(out + e, left * inverse, size - e);
      store(out + e + kLanes, right * inverse, size - e - kLanes);
    }
  }

  void run(uint8_t* rows, float* row_scales, int threads) const {
    const int64_t all = batch * tokens;
    std::vector<float> factors(2 * all), states(batch * heads * size * width + kLanes);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
      for (int64_t j = 0; j < all; ++j) {
        factors[j] = factor(q + j * channels, channels, scale[j], q_weight != nullptr, eps);
        factors[all + j] = factor(k + j * channels, channels, scale[j], k_weight != nullptr, eps);
      }
#pragma omp for
      for (int64_t h = 0; h < batch * heads; ++h) {
        read(h / heads, h % heads, factors.data() + all, states.data() + h * size * width);
      }
      std::vector<float> out(channels);
#pragma omp for
      for (int64_t j = 0; j < all; ++j) {
        for (int64_t head = 0; head < heads; ++head) {
          const float* state = states.data() + (j / tokens * heads + head) * size * width;
          const int64_t c = head * size;
          attend(q + j * channels + c, state, factors[j], q_weight ? q_weight + c : nullptr,
                 out.data() + c);
        }
        row_scales[j] = quantise(out.data(), channels, rows + j * channels);
      }
    }
  }
};

template <typename T>
struct Mix {
  const T* product;        // [B, H, W, 2K]
  const float* scale;      // [B, H, W]
  const float* bias;       // [2K] or null
  const float* taps;       // [9, 2K]
  const float* tap_bias;   // [2K]
  int64_t batch, height, width, hidden;

  int64_t wide = 2 * hidden, line = width * wide, pixels = batch * height * width;

  // SiLU of one row of the map, [W, 2K].
  void activate(int64_t row, float* out) const {
    for (int64_t x = 0; x < width; ++x) {
      const int64_t place = row * width + x;
      for (int64_t c = 0; c < wide; c += kLanes) {
        const Lanes value = load(product + place * wide + c, wide - c) * scale[place];
        store(out + x * wide + c, silu(bias ? value + load(bias + c, wide - c) : value), wide - c);
      }
    }
  }

  // The depthwise convolution at kLanes channels; `near` are the 9 neighbours.
  Lanes convolve(const float* const* near, int64_t c, int64_t count) const {
    Lanes sum = load(tap_bias + c, count);
    for (int64_t t = 0; t < kTaps; ++t) sum += load(near[t] + c, count) * load(taps + t * wide + c, count);
    return sum;
  }

  void run(uint8_t* rows, float* row_scales, int threads) const {
    const int64_t bands = ceil_div(threads, batch), step = ceil_div(height, bands);
#pragma omp parallel num_threads(threads)
    {
      std::vector<float> ring(3 * line), zeros(wide), out(hidden);
#pragma omp for
      for (int64_t job = 0; job < batch * bands; ++job) {
        const int64_t image = job / bands, first = job % bands * step;
        const int64_t last = std::min(first + step, height);
        auto kept = [&](int64_t y) { return ring.data() + (y + 3) % 3 * line; };
        auto fetch = [&](int64_t y) {
          if (y >= 0 && y < height) activate(image * height + y, kept(y));
        };
        if (first < last) fetch(first - 1), fetch(first);
        for (int64_t y = first; y < last; ++y) {
          fetch(y + 1);
          for (int64_t x = 0; x < width; ++x) {
            const float* near[kTaps];
            for (int64_t t = 0; t < kTaps; ++t) {
              const int64_t i = y + t / 3 - 1, j = x + t % 3 - 1;
              const bool inside = i >= 0 && i < height && j >= 0 && j < width;
              near[t] = inside ? kept(i) + j * wide : zeros.data();
            }
            for (int64_t c = 0; c < hidden; c += kLanes) {
              const Lanes value = convolve(near, c, hidden - c);
              const Lanes gate = convolve(near, hidden + c, hidden - c);
              store(out.data() + c, value * silu(gate), hidden - c);
            }
            const int64_t place = (image * height + y) * width + x;
            uint8_t* const row = rows + place * hidden;
            row_scales[place] = quantise(out.data(), hidden, row, row + pixels * hidden);
          }
        }
      }
    }
  }
};

template <typename T>
void add(const float* tokens, const T* product, const float* scale, const float* bias,
         const float* gate, float* out, int64_t batch, int64_t count, int64_t channels,
         int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t j = 0; j < batch * count; ++j) {
    const float* factor = gate + j / count * channels;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t at = j * channels + c, left = channels - c;
      Lanes value = load(product + at, left) * scale[j];
      if (bias) value += load(bias + c, left);
      store(out + at, load(tokens + at, left) + load(factor + c, left) * value, left);
    }
  }
}

}  // namespace

extern "C" {

// `multiply` and `add` are [B, C].
void int8_modulated(const float* tokens, const float* multiply, const float* add, uint8_t* rows,
                    float* scales, int64_t batch, int64_t count, int64_t channels, float eps,
                    int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> out(channels);
#pragma omp for
    for (int64_t j = 0; j < batch * count; ++j) {
      const int64_t image = j / count * channels;
      modulate(tokens + j * channels, multiply + image, add + image, channels, eps, out.data());
      scales[j] = quantise(out.data(), channels, rows + j * channels);
    }
  }
}

void int8_quantised(const float* tokens, uint8_t* rows, float* scales, int64_t count,
                    int64_t channels, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t j = 0; j < count; ++j) {
    scales[j] = quantise(tokens + j * channels, channels, rows + j * channels);
  }
}

#define OF_PRODUCTS(T, SUFFIX)                                                                     \
  void int8_attended##SUFFIX(const T* q, const T* k, const T* v, const float* scale,               \
                             const float* q_weight, const float* k_weight, uint8_t* rows,          \
                             float* scales, int64_t batch, int64_t tokens, int64_t heads,          \
                             int64_t size, float eps, int threads) {                               \
    Attention<T>{q, k, v, scale, q_weight, k_weight, batch, tokens, heads, size, eps}.run(         \
        rows, scales, threads);                                                                    \
  }                                                                                                \
  void int8_mixed##SUFFIX(const T* product, const float* scale, const float* bias,                 \
                          const float* taps, const float* tap_bias, uint8_t* rows, float* scales,  \
                          int64_t batch, int64_t height, int64_t width, int64_t hidden,            \
                          int threads) {                                                           \
    Mix<T>{product, scale, bias, taps, tap_bias, batch, height, width, hidden}.run(rows, scales,   \
                                                                                   threads);       \
  }                                                                                                \
  void int8_added##SUFFIX(const float* tokens, const T* product, const float* scale,               \
                          const float* bias, const float* gate, float* out, int64_t batch,         \
                          int64_t count, int64_t channels, int threads) {                          \
    add(tokens, product, scale, bias, gate, out, batch, count, channels, threads);                 \
  }

OF_PRODUCTS(float, )
OF_PRODUCTS(Bfloat16, _bfloat16)
}
