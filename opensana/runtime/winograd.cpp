// 3x3 convolution by Winograd's F(4x4, 3x3), as winograd.py explains it, for channels-last float32.
//
// A band of tiles is transformed once for all outputs. Then each thread takes a panel of outputs:
// it transforms their weights, multiplies place by place and turns a block of products, which is
// still in its cache, into pixels. Of a map enlarged to twice its size, row 2 of B^T d is zero, and
// likewise column 2: 25 of the 36 places are left.

#include <omp.h>

#include <algorithm>
#include <cstdlib>

#include "lanes.h"

namespace {

constexpr int64_t kRows = kLanes == 8 ? 6 : 12;  // with their sums, what registers hold
constexpr int64_t kTile = 4, kReach = 6, kPlaces = 36, kTaps = 9;
constexpr int64_t kPanel = 2 * kLanes;        // outputs that a thread works on
constexpr int64_t kBlock = 8 * kRows;         // tiles whose products stay in the cache
constexpr int64_t kBandFloats = 1 << 21;      // transformed inputs, which all threads read
constexpr int64_t kLeastBlocks = 2;           // of a band, as weights are transformed once for each
constexpr int64_t kSkew = 16;  // floats between places, lest all 36 meet in one set of the cache
constexpr int64_t kAlignment = 64;

// One dimension of B^T d, six values to six; d and out have their values `step` apart.
inline void input_transform(const Lanes* d, Lanes* out, int64_t step) {
  const Lanes d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
  const Lanes even = d4 - 4 * d2, odd = d3 - 4 * d1, far = d4 - d2, near = 2 * (d3 - d1);
  out[0] = 4 * (d0 - d2) + far;
  out[step] = even + odd;
  out[2 * step] = even - odd;
  out[3 * step] = far + near;
  out[4 * step] = far - near;
  out[5 * step] = 4 * (d1 - d3) - d3 + d[5 * step];
}

// One dimension of G w, three values to six.
inline void weight_transform(Lanes w0, Lanes w1, Lanes w2, Lanes* out, int64_t step) {
  constexpr float sixth = 1.0f / 6;
  const Lanes ends = -sixth * (w0 + w2), middle = sixth * w1;
  const Lanes wide = sixth * (0.25f * w0 + w2), half = 0.5f * middle;
  out[0] = 0.25f * w0;
  out[step] = ends - middle;
  out[2 * step] = ends + middle;
  out[3 * step] = wide + half;
  out[4 * step] = wide - half;
  out[5 * step] = w2;
}

// One dimension of A^T m, six values to four.
inline void output_transform(const Lanes* m, int64_t step, Lanes* out, int64_t out_step) {
  const Lanes m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
  const Lanes sum = m1 + m2, difference = m1 - m2, far = m3 + m4, near = m3 - m4;
  out[0] = m[0] + sum + far;
  out[out_step] = difference + 2 * near;
  out[2 * out_step] = sum + 4 * far;
  out[3 * out_step] = difference + 8 * near + m[5 * step];
}

// kRows tiles by kPanel outputs: a [chunks, kRows, kLanes] and b [chunks * kLanes, kPanel] to
// out [kRows, kPanel]. The sums stay in registers.
void product(const float* a, const float* b, int64_t chunks, float* out) {
  Lanes left[kRows] = {}, right[kRows] = {};
  for (; chunks > 0; --chunks, a += kRows * kLanes) {
    for (int64_t c = 0; c < kLanes; ++c, b += kPanel) {
      const Lanes b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 12
      for (int64_t r = 0; r < kRows; ++r) {
        left[r] += a[r * kLanes + c] * b0;
        right[r] += a[r * kLanes + c] * b1;
      }
    }
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < kRows; ++r) {
    store(out + r * kPanel, left[r]);
    store(out + r * kPanel + kLanes, right[r]);
  }
}

struct Convolution {
  const float* x;     // [B, H, W, C], or half of H and W where doubled is 1
  const float* taps;  // [panels, C, 9, kPanel], zero where there is no output
  const float* bias;  // [O] or null
  float* out;         // [B, H, W, O]
  int64_t batch, height, width, channels, outs, doubled;

  int64_t rows = ceil_div(height, kTile), columns = ceil_div(width, kTile);
  int64_t tiles = batch * rows * columns, chunks = ceil_div(channels, kLanes);
  int64_t panels = ceil_div(outs, kPanel);
  int64_t group = chunks * kRows * kLanes;  // floats of kRows tiles at a place
  int64_t fitting = std::max(kLeastBlocks, kBandFloats / (kPlaces * group * kBlock / kRows));
  int64_t band = std::min(fitting, ceil_div(tiles, kBlock)) * kBlock;  // tiles
  // Floats from one place to the next.
  int64_t input_place = band / kRows * group + kSkew, product_place = kBlock * kPanel + kSkew;
  int64_t kernel_place = chunks * kLanes * kPanel + kSkew;

  bool skipped(int64_t place) const {
    return doubled && (place / kReach == 2 || place % kReach == 2);
  }

  struct Corner {
    int64_t image, row, column;
  };

  Corner corner(int64_t tile) const {
    const int64_t place = tile % (rows * columns);
    return {tile / (rows * columns), place / columns * kTile, place % columns * kTile};
  }

  // B^T d B of one tile to inputs [36, groups, chunks, kRows, kLanes].
  void read(int64_t tile, int64_t slot, float* inputs) const {
    const auto [image, row, column] = corner(tile);
    const int64_t line = width >> doubled;
    const float* map = x + image * (height >> doubled) * line * channels;
    const float* pixels[kPlaces];
    for (int64_t p = 0; p < kPlaces; ++p) {
      const int64_t i = row + p / kReach - 1, j = column + p % kReach - 1;
      const bool inside = i >= 0 && i < height && j >= 0 && j < width;
      pixels[p] = inside ? map + ((i >> doubled) * line + (j >> doubled)) * channels : nullptr;
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = chunk * kLanes, left = channels - first;
      Lanes d[kPlaces], half[kPlaces];
      for (int64_t p = 0; p < kPlaces; ++p) {
        d[p] = pixels[p] ? load(pixels[p] + first, left) : Lanes{};
      }
      for (int64_t j = 0; j < kReach; ++j) input_transform(d + j, half + j, kReach);
      for (int64_t i = 0; i < kReach; ++i) input_transform(half + i * kReach, d + i * kReach, 1);
      float* to = inputs + slot / kRows * group + (chunk * kRows + slot % kRows) * kLanes;
      for (int64_t p = 0; p < kPlaces; ++p) {
        if (!skipped(p)) store(to + p * input_place, d[p]);
      }
    }
  }

  // G w G^T of one panel to kernel [36, chunks * kLanes, kPanel].
  void transform_weights(int64_t panel, float* kernel) const {
    for (int64_t c = 0; c < chunks * kLanes; ++c) {
      for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
        const float* from = taps + (panel * channels + c) * kTaps * kPanel + lane;
        Lanes w[kTaps], half[kReach * 3], u[kPlaces];
        for (int64_t t = 0; t < kTaps; ++t) {
          w[t] = c < channels ? load(from + t * kPanel) : Lanes{};
        }
        for (int64_t j = 0; j < 3; ++j) weight_transform(w[j], w[3 + j], w[6 + j], half + j, 3);
        for (int64_t i = 0; i < kReach; ++i) {
          weight_transform(half[3 * i], half[3 * i + 1], half[3 * i + 2], u + i * kReach, 1);
        }
        for (int64_t p = 0; p < kPlaces; ++p) {
          if (!skipped(p)) store(kernel + p * kernel_place + c * kPanel + lane, u[p]);
        }
      }
    }
  }

  // Products [36, kBlock, kPanel] of the slots begin to end of the band.
  void multiply(const float* inputs, const float* kernel, int64_t begin, int64_t end,
                float* products) const {
    for (int64_t p = 0; p < kPlaces; ++p) {
      if (skipped(p)) continue;
      for (int64_t slot = begin; slot < end; slot += kRows) {
        product(inputs + p * input_place + slot / kRows * group, kernel + p * kernel_place, chunks,
                products + p * product_place + (slot - begin) * kPanel);
      }
    }
  }

  // A^T m A of one tile of a block, and the bias, to the picture, cut at its border.
  void write(const float* products, int64_t slot, int64_t tile, int64_t panel) const {
    const auto [image, row, column] = corner(tile);
    const int64_t high = std::min(kTile, height - row), wide = std::min(kTile, width - column);
    for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
      const int64_t o = panel * kPanel + lane, left = outs - o;
      Lanes m[kPlaces], half[kTile * kReach], y[kTile * kTile];
      for (int64_t p = 0; p < kPlaces; ++p) {
        m[p] = skipped(p) ? Lanes{} : load(products + p * product_place + slot * kPanel + lane);
      }
      for (int64_t j = 0; j < kReach; ++j) output_transform(m + j, kReach, half + j, kReach);
      for (int64_t i = 0; i < kTile; ++i) {
        output_transform(half + i * kReach, 1, y + i * kTile, 1);
      }
      const Lanes offset = bias ? load(bias + o, left) : Lanes{};
      for (int64_t i = 0; i < high; ++i) {
        float* to = out + (((image * height + row + i) * width + column) * outs) + o;
        for (int64_t j = 0; j < wide; ++j) store(to + j * outs, y[i * kTile + j] + offset, left);
      }
    }
  }

  // false where there is no memory for the band and for what each thread keeps.
  bool run(int threads) const {
    const int64_t shared = kPlaces * input_place, kernel_size = kPlaces * kernel_place;
    const int64_t own = kernel_size + kPlaces * product_place;
    const int64_t bytes = (shared + threads * own) * sizeof(float);
    float* const memory = static_cast<float*>(std::aligned_alloc(kAlignment, bytes));
    if (memory == nullptr) return false;
    for (int64_t first = 0; first < tiles; first += band) {
      const int64_t count = std::min(band, tiles - first), blocks = ceil_div(count, kBlock);
      const int64_t parts = std::min(ceil_div(threads, panels), blocks);
#pragma omp parallel num_threads(threads)
      {
#pragma omp for schedule(static)
        for (int64_t slot = 0; slot < count; ++slot) read(first + slot, slot, memory);
        float* const kernel = memory + shared + omp_get_thread_num() * own;
        float* const products = kernel + kernel_size;
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < panels * parts; ++job) {
          const int64_t panel = job / parts, part = job % parts;
          transform_weights(panel, kernel);
          for (int64_t block = part; block < blocks; block += parts) {
            const int64_t begin = block * kBlock, end = std::min(begin + kBlock, count);
            multiply(memory, kernel, begin, end, products);
            for (int64_t slot = begin; slot < end; ++slot) {
              write(products, slot - begin, first + slot, panel);
            }
          }
        }
      }
    }
    std::free(memory);
    return true;
  }
};

}  // namespace

// Outputs of a panel, for those who bring weights into the order of `taps`.
extern "C" int64_t winograd_panel() { return kPanel; }

// 0, or 1 where memory ran out; width and height are those of the output.
extern "C" int winograd_conv3x3(const float* x, const float* taps, const float* bias, float* out,
                                int64_t batch, int64_t height, int64_t width, int64_t channels,
                                int64_t outs, int doubled, int threads) {
  const Convolution convolution{x,     taps,     bias, out,    batch, height,
                                width, channels, outs, doubled};
  return convolution.run(threads) ? 0 : 1;
}
