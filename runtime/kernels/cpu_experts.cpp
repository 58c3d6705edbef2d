// Experts with few tokens: each weight is read from memory once, for all rows of its expert.
//
// An item is a block of an expert's rows of gate and up (stage 1) or of down (stage 2). Threads take items from one
// counter, stage 1 of all experts first; an item of stage 2 waits until stage 1 of its expert is done, so that there is
// no barrier at which memory would stand idle. A tile is a few weight rows, multiplied with up to kGroup rows of x at a
// time; with more rows it is taken again, from the nearest cache. Sums are fp32. Vectors are GNU vector extensions, so
// the same code runs on any instruction set; intrinsics stand only where these have no word for it.
//
// Shapes: x [T, H], gate_up [2 I, H] and down [H, I] of each expert, out [T k, H] fp32.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "vectors.h"

namespace {

#if defined(__AVX512F__)
constexpr int64_t kTile = 4;  // weight rows of a tile; times kGroup, the accumulators in registers
#else
constexpr int64_t kTile = 2;
#endif
constexpr int64_t kGroup = 4;  // rows of x that share one load of a weight
constexpr int64_t kPadding = 32;  // rows in the scratch are multiples of the widest step
constexpr int64_t kLeastBytes = 32 << 10, kMostBytes = 256 << 10;  // weights of an item
constexpr int64_t kItemsPerThread = 16;  // where the limits above allow it, so that threads end together
constexpr int64_t kLine = 64;
constexpr int64_t kMostRows = 256;  // weight rows of an item

// ---- arithmetic ----

inline Vec silu(Vec x) {
  const Vec zero = {};
  const Vec e = exp_of_negative(x < zero ? x : -x);
  return x * (x < zero ? e : zero + 1.0f) / (e + 1.0f);
}

// The sums of the lanes of a tile's accumulators.
inline void lane_sums(const Vec (&v)[kTile], float* sums) {
#if defined(__AVX512F__)
  const __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
  const __m512d ab = (__m512d)(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
  const __m512d cd = (__m512d)(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
  const __m512 abcd = (__m512)_mm512_unpacklo_pd(ab, cd) + (__m512)_mm512_unpackhi_pd(ab, cd);
  const __m256 folded = _mm512_castps512_ps256(abcd) + (__m256)_mm512_extractf64x4_pd((__m512d)abcd, 1);
  _mm_storeu_ps(sums, _mm256_castps256_ps128(folded) + _mm256_extractf128_ps(folded, 1));
#else
  for (int64_t c = 0; c < kTile; ++c) {
    sums[c] = 0;
    for (int64_t i = 0; i < W; ++i) sums[c] += v[c][i];
  }
#endif
}

// How a row of x or h meets a weight: its type in the scratch, elements of a step, and acc + x * w.
template <class T>
struct Dot {
  using Row = float;
  static constexpr int64_t step = W;
  static Vec weight(const T* from) { return load(from); }
  static Vec add(Vec acc, const Row* row, Vec weight) { return acc + load(row) * weight; }
  static void keep(Row* to, const T* from) { store(to, load(from)); }
};

#if defined(__AVX512BF16__)
// Products of two bf16 are exact in fp32, so this loses nothing against converting both, but for subnormal numbers.
template <>
struct Dot<Bf16> {
  using Row = Bf16;
  static constexpr int64_t step = 2 * W;
  static __m512bh weight(const Bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static Vec add(Vec acc, const Row* row, __m512bh weight) {
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_loadu_si512(row), weight);
  }
  static void keep(Row* to, const Bf16* from) { std::memcpy(to, from, W * sizeof(Bf16)); }
};
#endif

template <class T>
using Row = typename Dot<T>::Row;

// ---- one tile, up to kGroup rows ----

// Weight rows of n elements, and how many elements behind a row that of the next tile lies, which is prefetched (into
// L2: its queue of misses is the longer one).
template <class T>
struct Tile {
  const T* rows[kTile];
  int64_t ahead;
};

// rows [G, stride], zero past n -> sums [G, kTile].
template <class T, int G>
void multiply(const Tile<T>& tile, const Row<T>* rows, int64_t stride, int64_t n, float* sums) {
  constexpr int64_t step = Dot<T>::step;
  Vec acc[G][kTile] = {};
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    for (int c = 0; c < kTile; ++c) {
      __builtin_prefetch(tile.rows[c] + tile.ahead + i, 0, 2);
      const auto weight = Dot<T>::weight(tile.rows[c] + i);
      for (int g = 0; g < G; ++g) acc[g][c] = Dot<T>::add(acc[g][c], rows + g * stride + i, weight);
    }
  }
  if (i < n) {
    for (int c = 0; c < kTile; ++c) {
      T padded[step] = {};
      std::memcpy(padded, tile.rows[c] + i, (n - i) * sizeof(T));
      const auto weight = Dot<T>::weight(padded);
      for (int g = 0; g < G; ++g) acc[g][c] = Dot<T>::add(acc[g][c], rows + g * stride + i, weight);
    }
  }
  for (int g = 0; g < G; ++g) lane_sums(acc[g], sums + g * kTile);
}

// ---- the problem, its items and its scratch ----

struct Problem {
  const void* x;
  const int64_t* pairs;  // [R]
  const int64_t* starts;  // [experts + 1]
  const int64_t* weights;  // [experts, 2] addresses of gate_up and down
  float* out;
  int64_t experts, hidden, intermediate, top_k;
  int32_t threads, dtype;
};

struct Item {
  int64_t expert;
  bool down;  // stage 2
  int64_t first, last;  // rows of gate and of up, or of down
};

int64_t up_to_multiple(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// Kept from call to call, one for each thread that calls: x [R, x_stride], h [R, h_stride] and the threads' sums.
struct Scratch {
  std::vector<char> memory;
  std::vector<Item> items;
  char* of(int64_t bytes) {
    if ((int64_t)memory.size() < bytes + kLine) memory.resize(bytes + kLine);
    return memory.data() + (kLine - (uintptr_t)memory.data() % kLine) % kLine;
  }
};

template <class T>
struct Run {
  const Problem& p;
  const std::vector<Item>& items;
  Row<T>* x;  // [R, x_stride]
  Row<T>* h;  // [R, h_stride]
  float* sums;  // [threads, 2, most rows of an expert, kMostRows]: products with gate and up
  int64_t x_stride, h_stride, most;
  std::atomic<int64_t>* pending;  // [experts] items of stage 1 to be done
  std::atomic<int64_t> next{0};
};

// Weight rows that one step through an item takes: as many of gate as of up, or kTile of down.
int64_t tile_rows(const Item& item) { return item.down ? kTile : kTile / 2; }

// The tile at `row`. Past the item's end rows repeat its last one; their sums are not used.
template <class T>
Tile<T> tile_at(const Run<T>& run, const Item& item, int64_t row) {
  const int64_t n = item.down ? run.p.intermediate : run.p.hidden;
  const auto* weights = (const T*)run.p.weights[2 * item.expert + item.down];
  Tile<T> tile;
  tile.ahead = tile_rows(item) * n;
  for (int64_t c = 0; c < kTile; ++c) {
    const int64_t part = c < tile_rows(item) ? 0 : run.p.intermediate;  // up lies behind gate
    tile.rows[c] = weights + (part + std::min(row + c % tile_rows(item), item.last - 1)) * n;
  }
  return tile;
}

template <class T>
void multiply_rows(const Tile<T>& tile, const Row<T>* rows, int64_t stride, int64_t n, int64_t count, float* sums) {
  constexpr decltype(&multiply<T, 1>) kernels[] = {multiply<T, 1>, multiply<T, 2>, multiply<T, 3>, multiply<T, 4>};
  kernels[count - 1](tile, rows, stride, n, sums);
}

// ---- stage 1: h = silu(x G^T) * (x U^T), rounded as T is ----

// gate, up [count, kMostRows] -> h [count, item's rows].
template <class T>
void write_h(const Run<T>& run, const Item& item, int64_t row, const float* gate, const float* up) {
  const int64_t n = item.last - item.first;
  for (int64_t i = 0; i < n; i += W) {
    T rounded[W];
    Row<T> kept[W];
    store(rounded, silu(load(gate + i)) * load(up + i));
    Dot<T>::keep(kept, rounded);
    std::memcpy(run.h + row * run.h_stride + item.first + i, kept, std::min(W, n - i) * sizeof(Row<T>));
  }
}

template <class T>
void gate_up_item(const Run<T>& run, const Item& item) {
  constexpr int64_t half = kTile / 2;
  const int64_t begin = run.p.starts[item.expert], rows = run.p.starts[item.expert + 1] - begin;
  const int64_t side = run.most * kMostRows;
  float* sums = run.sums + omp_get_thread_num() * 2 * side;
  for (int64_t at = item.first; at < item.last; at += half) {
    const Tile<T> tile = tile_at(run, item, at);
    for (int64_t r = 0; r < rows; r += kGroup) {
      const int64_t count = std::min(kGroup, rows - r);
      float tile_sums[kGroup * kTile];
      multiply_rows(tile, run.x + (begin + r) * run.x_stride, run.x_stride, run.p.hidden, count, tile_sums);
      for (int64_t g = 0; g < count; ++g)
        for (int64_t c = 0; c < kTile; ++c)
          sums[c / half * side + (r + g) * kMostRows + at - item.first + c % half] = tile_sums[g * kTile + c];
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    write_h(run, item, begin + r, sums + r * kMostRows, sums + side + r * kMostRows);
}

// ---- stage 2: out = h D^T ----

template <class T>
void down_item(const Run<T>& run, const Item& item) {
  const int64_t begin = run.p.starts[item.expert], end = run.p.starts[item.expert + 1];
  for (int64_t at = item.first; at < item.last; at += kTile) {
    const Tile<T> tile = tile_at(run, item, at);
    const int64_t columns = std::min(kTile, item.last - at);
    for (int64_t r = begin; r < end; r += kGroup) {
      const int64_t count = std::min(kGroup, end - r);
      float sums[kGroup * kTile];
      multiply_rows(tile, run.h + r * run.h_stride, run.h_stride, run.p.intermediate, count, sums);
      for (int64_t g = 0; g < count; ++g)
        std::copy_n(sums + g * kTile, columns, run.p.out + run.p.pairs[r + g] * run.p.hidden + at);
    }
  }
}

// ---- all items ----

template <class T>
void do_item(const Run<T>& run, const Item& item) {
  if (item.down) {
    while (run.pending[item.expert].load(std::memory_order_acquire) > 0) std::this_thread::yield();
    down_item(run, item);
  } else {
    gate_up_item(run, item);
    run.pending[item.expert].fetch_sub(1, std::memory_order_release);
  }
}

template <class T>
void do_items(Run<T>& run) {
  const int64_t items = run.items.size();
  for (int64_t index = run.next++; index < items; index = run.next++) do_item(run, run.items[index]);
}

// Appends the items of one stage of one expert: `rows` weight rows, row_bytes each. Returns how many.
int64_t add_items(std::vector<Item>& items, int64_t expert, bool down, int64_t rows, int64_t row_bytes, int64_t bytes) {
  const int64_t block = std::clamp(up_to_multiple(bytes / row_bytes, kTile), kTile, kMostRows);
  for (int64_t first = 0; first < rows; first += block)
    items.push_back({expert, down, first, std::min(rows, first + block)});
  return (rows + block - 1) / block;
}

void make_items(const Problem& p, int64_t itemsize, std::vector<Item>& items, std::atomic<int64_t>* pending) {
  items.clear();
  const auto used = [&](int64_t e) { return p.starts[e + 1] > p.starts[e]; };
  int64_t total = 0;
  for (int64_t e = 0; e < p.experts; ++e) total += used(e) ? 3 * p.intermediate * p.hidden * itemsize : 0;
  const int64_t bytes = std::clamp(total / (p.threads * kItemsPerThread), kLeastBytes, kMostBytes);
  for (int64_t e = 0; e < p.experts; ++e)
    if (used(e)) pending[e] = add_items(items, e, false, p.intermediate, 2 * p.hidden * itemsize, bytes);
  for (int64_t e = 0; e < p.experts; ++e)
    if (used(e)) add_items(items, e, true, p.hidden, p.intermediate * itemsize, bytes);
}

// x [T, H] -> one row for each pair [R, x_stride], zero past H; h is zero past I.
template <class T>
void gather(const Run<T>& run) {
  const Problem& p = run.p;
  for (int64_t r = p.starts[0]; r < p.starts[p.experts]; ++r) {
    const T* from = (const T*)p.x + p.pairs[r] / p.top_k * p.hidden;
    Row<T>* to = run.x + r * run.x_stride;
    int64_t i = 0;
    for (; i + W <= p.hidden; i += W) Dot<T>::keep(to + i, from + i);
    std::fill(to + i, to + run.x_stride, Row<T>{});
    if (i < p.hidden) {
      T padded[W] = {};
      std::memcpy(padded, from + i, (p.hidden - i) * sizeof(T));
      Dot<T>::keep(to + i, padded);
    }
    std::fill(run.h + r * run.h_stride + p.intermediate, run.h + (r + 1) * run.h_stride, Row<T>{});
  }
}

template <class T>
void run(const Problem& p) {
  thread_local Scratch scratch;
  const int64_t rows = p.starts[p.experts];
  const int64_t x_stride = up_to_multiple(p.hidden, kPadding), h_stride = up_to_multiple(p.intermediate, kPadding);
  int64_t most = 0;
  for (int64_t e = 0; e < p.experts; ++e) most = std::max(most, p.starts[e + 1] - p.starts[e]);
  std::unique_ptr<std::atomic<int64_t>[]> pending(new std::atomic<int64_t>[p.experts]());
  make_items(p, sizeof(T), scratch.items, pending.get());
  const int64_t threads = std::min<int64_t>(p.threads, scratch.items.size());
  const int64_t row_bytes = rows * (x_stride + h_stride) * sizeof(Row<T>);
  char* memory = scratch.of(row_bytes + threads * 2 * most * kMostRows * sizeof(float));
  auto* x = (Row<T>*)memory;
  auto* sums = (float*)(memory + row_bytes);
  Run<T> all{p, scratch.items, x, x + rows * x_stride, sums, x_stride, h_stride, most, pending.get()};
  gather(all);
#pragma omp parallel num_threads(threads)
  do_items(all);
}

// ---- listed experts of tokens that chose others too ----

struct Listed {
  const void* x;  // [T, H]
  const void* gates;  // [T, k]
  const int64_t* experts;  // [T, k]
  const int64_t* listed;  // [E']
  const int64_t* weights;  // [E, 2] of all experts
  float* each;  // [T k, H], to work in
  void* out;  // [T, H]
  uint32_t *sure, *done;  // where `signal` is written once nothing can fail, and once out is there; or null
  int64_t count, all, tokens, hidden, intermediate, top_k, most_rows;
  int32_t threads, dtype, gate_dtype;
  uint32_t signal;
};

void tell(uint32_t* word, uint32_t value) {
  if (word) __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

// Kept from call to call, one for each thread that calls.
struct ListedScratch {
  std::vector<int64_t> place, starts, pairs, weights;
};

// Pairs of the listed experts, expert after expert. Returns how many the busiest has.
int64_t list_pairs(const Listed& p, ListedScratch& s) {
  const int64_t size = p.tokens * p.top_k;
  s.place.assign(p.all, -1);
  for (int64_t i = 0; i < p.count; ++i) s.place[p.listed[i]] = i;
  s.starts.assign(p.count + 1, 0);
  for (int64_t pair = 0; pair < size; ++pair)
    if (const int64_t i = s.place[p.experts[pair]]; i >= 0) ++s.starts[i + 1];
  const int64_t most = p.count ? *std::max_element(s.starts.begin(), s.starts.end()) : 0;
  for (int64_t i = 0; i < p.count; ++i) s.starts[i + 1] += s.starts[i];
  std::vector<int64_t> next(s.starts.begin(), s.starts.end() - 1);
  s.pairs.resize(s.starts.back());
  for (int64_t pair = 0; pair < size; ++pair)
    if (const int64_t i = s.place[p.experts[pair]]; i >= 0) s.pairs[next[i]++] = pair;
  s.weights.resize(2 * p.count);
  for (int64_t i = 0; i < p.count; ++i)
    std::copy_n(p.weights + 2 * p.listed[i], 2, s.weights.data() + 2 * i);
  return most;
}

float gate_of(const Listed& p, int64_t pair) {
  if (p.gate_dtype == 0) return ((const float*)p.gates)[pair];
  return (p.gate_dtype == 1 ? load_some((const Bf16*)p.gates + pair, 1) : load_some((const Fp16*)p.gates + pair, 1))[0];
}

// out[t] = sum over listed choices of gate * each[pair]; few rows, so one thread is through before others are awake.
template <class T>
void add_up(const Listed& p, const ListedScratch& s) {
  std::vector<float> sum(up_to_multiple(p.hidden, W));
  for (int64_t t = 0; t < p.tokens; ++t) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t pair = t * p.top_k; pair < (t + 1) * p.top_k; ++pair) {
      if (s.place[p.experts[pair]] < 0) continue;
      const float gate = gate_of(p, pair), *row = p.each + pair * p.hidden;
      for (int64_t i = 0; i < p.hidden; ++i) sum[i] += gate * row[i];
    }
    T* to = (T*)p.out + t * p.hidden;
    for (int64_t i = 0; i < p.hidden; i += W) store_some(to + i, load(sum.data() + i), std::min(W, p.hidden - i));
  }
}

template <class T>
int64_t run_listed(const Listed& p) {
  thread_local ListedScratch scratch;
  const int64_t most = list_pairs(p, scratch);
  if (most > p.most_rows) return most;
  const int64_t* weights = scratch.weights.data();
  tell(p.sure, p.signal);
  if (most) run<T>({p.x, scratch.pairs.data(), scratch.starts.data(), weights, p.each, p.count, p.hidden,
                    p.intermediate, p.top_k, p.threads, p.dtype});
  add_up<T>(p, scratch);
  tell(p.done, p.signal);
  return 0;
}

}  // namespace

// Returns 0; -1 where the scratch could not be allocated; or, having done nothing, the rows of the busiest expert, where
// these are more than most_rows. The caller has checked shapes and experts.
extern "C" int64_t listed_experts(const Listed* problem) {
  try {
    if (problem->dtype == 0) return run_listed<float>(*problem);
    if (problem->dtype == 1) return run_listed<Bf16>(*problem);
    return run_listed<Fp16>(*problem);
  } catch (const std::bad_alloc&) {
    tell(problem->done, problem->signal);  // whoever waits would wait for ever; the caller ends the pass
    return -1;
  }
}

// Returns 0, or 1 where the scratch could not be allocated. The caller has checked shapes, pairs and starts.
extern "C" int few_token_experts(const Problem* problem) {
  if (problem->starts[problem->experts] == problem->starts[0]) return 0;
  try {
    if (problem->dtype == 0) run<float>(*problem);
    if (problem->dtype == 1) run<Bf16>(*problem);
    if (problem->dtype == 2) run<Fp16>(*problem);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
