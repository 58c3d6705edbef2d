// Decode attention over a paged KV cache. Each element of K and V is read from memory once, for all query heads of its
// group.
//
// A work item is one sequence and one KV head. Its scores over all tokens are kept in a small scratch (pass over K),
// turned into probabilities, and multiplied with V (pass over V); all arithmetic is fp32. Vectors are GNU vector
// extensions, so the same code runs on any instruction set; intrinsics stand only where these have no word for it.
//
// Shapes: qkv [B, N + 2 K, D], kv [blocks, 2, K, block, D], block_table [B, width], lengths [B], out [B, N, D].

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "vectors.h"

namespace {

#if defined(__AVX512F__)
constexpr int64_t kColumns = 4;  // vectors of V held in registers, times kHeads accumulators
#else
constexpr int64_t kColumns = 2;
#endif
constexpr int64_t kHeads = 4;  // query heads that share one load of K or V
constexpr int64_t kLine = 64;
constexpr int64_t kAhead = 8192;  // bytes of K and V between what is read and what is prefetched
constexpr int64_t kPadding = 32;  // scratch rows are multiples of the widest step

template <class T>
inline Vec load_part(const T* from, int64_t n) {
  T padded[W] = {};
  std::memcpy(padded, from, n * sizeof(T));
  return load(padded);
}

// ---- arithmetic ----

// Sums of the lanes of four vectors.
inline void lane_sums(const Vec (&v)[kHeads], float (&sums)[kHeads]) {
#if defined(__AVX512F__)
  const __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
  const __m512d ab = (__m512d)(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
  const __m512d cd = (__m512d)(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
  const __m512 abcd = (__m512)_mm512_unpacklo_pd(ab, cd) + (__m512)_mm512_unpackhi_pd(ab, cd);
  const __m256 folded = _mm512_castps512_ps256(abcd) + (__m256)_mm512_extractf64x4_pd((__m512d)abcd, 1);
  _mm_storeu_ps(sums, _mm256_castps256_ps128(folded) + _mm256_extractf128_ps(folded, 1));
#elif defined(__AVX2__)
  const __m256 ab = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]), cd = _mm256_hadd_ps((__m256)v[2], (__m256)v[3]);
  const __m256 abcd = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(sums, _mm256_castps256_ps128(abcd) + _mm256_extractf128_ps(abcd, 1));
#else
  for (int64_t g = 0; g < kHeads; ++g) {
    sums[g] = 0;
    for (int64_t i = 0; i < W; ++i) sums[g] += v[g][i];
  }
#endif
}

// How a query meets a key: type of the query in the scratch, elements a step takes, and acc + q * k.
template <class T>
struct Dot {
  using Query = float;
  static constexpr int64_t step = W;
  static Vec key(const T* from) { return load(from); }
  static Vec add(Vec acc, const Query* query, Vec key) { return acc + load(query) * key; }
  static void keep(Query* to, const T* from, int64_t n) { store(to, load_part(from, n)); }
};

#if defined(__AVX512BF16__)
// Products of two bf16 are exact in fp32, so this loses nothing against converting both.
template <>
struct Dot<Bf16> {
  using Query = Bf16;
  static constexpr int64_t step = 2 * W;
  static __m512bh key(const Bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static Vec add(Vec acc, const Query* query, __m512bh key) {
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_loadu_si512(query), key);
  }
  static void keep(Query* to, const Bf16* from, int64_t n) { std::memcpy(to, from, n * sizeof(Bf16)); }
};
#endif

// ---- prefetch ----

// Memory read later, spread evenly over the steps of what is read now; into L2, whose queue of misses is the longer one.
class Prefetch {
 public:
  Prefetch(const void* from, int64_t bytes, int64_t steps)
      : at_((const char*)from), end_(at_ + bytes), lines_(((bytes + kLine - 1) / kLine + steps - 1) / steps) {}
  void step() {
    for (int64_t i = 0; i < lines_ && at_ < end_; ++i, at_ += kLine) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char* at_;
  const char* end_;
  int64_t lines_;
};

// ---- one block of tokens, up to kHeads query heads ----

template <class T, int G>
void add_scores(const typename Dot<T>::Query* query, int64_t query_stride, const T* keys, int64_t tokens, int64_t D,
                float scale, float* scores, int64_t scores_stride, Prefetch& ahead) {
  constexpr int64_t step = Dot<T>::step;
  Prefetch local = ahead;  // in registers
  for (int64_t t = 0; t < tokens; ++t) {
    const T* row = keys + t * D;
    Vec acc[kHeads] = {};
    int64_t d = 0;
    for (; d + step <= D; d += step) {
      const auto key = Dot<T>::key(row + d);
      for (int g = 0; g < G; ++g) acc[g] = Dot<T>::add(acc[g], query + g * query_stride + d, key);
    }
    if (d < D) {
      T padded[step] = {};
      std::memcpy(padded, row + d, (D - d) * sizeof(T));
      const auto key = Dot<T>::key(padded);
      for (int g = 0; g < G; ++g) acc[g] = Dot<T>::add(acc[g], query + g * query_stride + d, key);
    }
    float sums[kHeads];
    lane_sums(acc, sums);
    for (int g = 0; g < G; ++g) scores[g * scores_stride + t] = sums[g] * scale;
    local.step();
  }
  ahead = local;
}

template <int G, int C, class Load>
void add_columns(const float* weights, int64_t weights_stride, int64_t tokens, float* sums, int64_t sums_stride,
                 Prefetch& ahead, Load value) {
  Prefetch local = ahead;
  Vec acc[G][C];
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < C; ++c) acc[g][c] = load(sums + g * sums_stride + c * W);
  for (int64_t t = 0; t < tokens; ++t) {
    Vec v[C];
    for (int c = 0; c < C; ++c) v[c] = value(t, c);
    for (int g = 0; g < G; ++g)
      for (int c = 0; c < C; ++c) acc[g][c] += weights[g * weights_stride + t] * v[c];
    local.step();
  }
  ahead = local;
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < C; ++c) store(sums + g * sums_stride + c * W, acc[g][c]);
}

template <class T, int G>
void add_values(const float* weights, int64_t weights_stride, const T* values, int64_t tokens, int64_t D, float* sums,
                int64_t sums_stride, Prefetch& ahead) {
  int64_t d = 0;
  for (; d + kColumns * W <= D; d += kColumns * W) {
    const auto value = [=](int64_t t, int c) { return load(values + t * D + d + c * W); };
    add_columns<G, kColumns>(weights, weights_stride, tokens, sums + d, sums_stride, ahead, value);
  }
  for (; d + W <= D; d += W) {
    const auto value = [=](int64_t t, int) { return load(values + t * D + d); };
    add_columns<G, 1>(weights, weights_stride, tokens, sums + d, sums_stride, ahead, value);
  }
  if (d < D) {
    const auto value = [=](int64_t t, int) { return load_part(values + t * D + d, D - d); };
    add_columns<G, 1>(weights, weights_stride, tokens, sums + d, sums_stride, ahead, value);
  }
}

// Scores [tokens] become probabilities. The row has room for whole vectors; what is past its end is overwritten.
void softmax(float* scores, int64_t tokens) {
  const int64_t padded = (tokens + W - 1) / W * W;
  std::fill(scores + tokens, scores + padded, -std::numeric_limits<float>::infinity());
  Vec top = load(scores);
  for (int64_t t = W; t < padded; t += W) top = load(scores + t) > top ? load(scores + t) : top;
  float largest = top[0];
  for (int64_t i = 1; i < W; ++i) largest = std::max(largest, top[i]);
  Vec sum = {};
  for (int64_t t = 0; t < padded; t += W) {
    const Vec weight = exp_of_negative(load(scores + t) - largest);
    store(scores + t, weight);
    sum += weight;
  }
  float total = 0;
  for (int64_t i = 0; i < W; ++i) total += sum[i];
  for (int64_t t = 0; t < padded; t += W) store(scores + t, load(scores + t) / total);
}

// ---- one work item, and all of them ----

struct Problem {
  const void* qkv;
  void* kv;
  const int32_t* block_table;
  const int32_t* lengths;
  void* out;
  int64_t sequences, query_heads, kv_heads, head_dim, block_tokens, table_width, cache_blocks;
  float scale;
  int32_t threads, dtype;
};

// What one thread needs: queries [G, row], weighted sums of V [G, row], scores [G, scores_row], G heads of a group.
struct Scratch {
  int64_t row, scores_row, group;
  float* memory;
  float* query() const { return memory; }
  float* sums() const { return memory + group * row; }
  float* scores() const { return memory + 2 * group * row; }
  int64_t floats() const { return group * (2 * row + scores_row); }
};

template <class T>
struct Item {
  const Problem& p;
  int64_t sequence, head, length, blocks, group;

  Item(const Problem& problem, int64_t index)
      : p(problem), sequence(index / p.kv_heads), head(index % p.kv_heads), length(p.lengths[sequence]),
        blocks((length + p.block_tokens - 1) / p.block_tokens), group(p.query_heads / p.kv_heads) {}

  // [block, D] of block i of this sequence, all K and then all V: `blocks` more than that of K is that of V
  T* block(int64_t i) const {
    const int64_t side = i >= blocks;
    const int64_t page = p.block_table[sequence * p.table_width + i - side * blocks];
    return (T*)p.kv + ((page * 2 + side) * p.kv_heads + head) * p.block_tokens * p.head_dim;
  }
  int64_t tokens(int64_t i) const { return std::min(p.block_tokens, length - i % blocks * p.block_tokens); }
  Prefetch prefetch(int64_t i, int64_t steps) const {
    return Prefetch(block(i), tokens(i) * p.head_dim * sizeof(T), steps);
  }
  const T* current(int64_t row) const {
    return (const T*)p.qkv + (sequence * (p.query_heads + 2 * p.kv_heads) + row) * p.head_dim;
  }
};

template <class T>
void write_current(const Item<T>& item) {
  const Problem& p = item.p;
  const int64_t at = (item.length - 1) % p.block_tokens * p.head_dim;
  for (int64_t side = 0; side < 2; ++side) {
    const T* row = item.current(p.query_heads + side * p.kv_heads + item.head);
    std::memcpy(item.block((side + 1) * item.blocks - 1) + at, row, p.head_dim * sizeof(T));
  }
}

template <class T>
void load_queries(const Item<T>& item, const Scratch& s) {
  auto* query = (typename Dot<T>::Query*)s.query();
  std::memset(s.query(), 0, 2 * item.group * s.row * sizeof(float));  // queries and sums
  for (int64_t g = 0; g < item.group; ++g)
    for (int64_t d = 0; d < item.p.head_dim; d += W)
      Dot<T>::keep(query + g * s.row + d, item.current(item.head * item.group + g) + d,
                   std::min(W, item.p.head_dim - d));
}

template <class T>
void score_block(const Item<T>& item, const Scratch& s, int64_t i, Prefetch& ahead) {
  constexpr decltype(&add_scores<T, 1>) kernels[] = {add_scores<T, 1>, add_scores<T, 2>, add_scores<T, 3>,
                                                     add_scores<T, 4>};
  const auto* query = (const typename Dot<T>::Query*)s.query();
  const T* keys = item.block(i);
  for (int64_t g = 0; g < item.group; g += kHeads)
    kernels[std::min(kHeads, item.group - g) - 1](query + g * s.row, s.row, keys, item.tokens(i), item.p.head_dim,
                                                  item.p.scale, s.scores() + g * s.scores_row + i * item.p.block_tokens,
                                                  s.scores_row, ahead);
}

template <class T>
void value_block(const Item<T>& item, const Scratch& s, int64_t i, Prefetch& ahead) {
  constexpr decltype(&add_values<T, 1>) kernels[] = {add_values<T, 1>, add_values<T, 2>, add_values<T, 3>,
                                                     add_values<T, 4>};
  const T* values = item.block(item.blocks + i);
  for (int64_t g = 0; g < item.group; g += kHeads)
    kernels[std::min(kHeads, item.group - g) - 1](s.scores() + g * s.scores_row + i * item.p.block_tokens,
                                                  s.scores_row, values, item.tokens(i), item.p.head_dim,
                                                  s.sums() + g * s.row, s.row, ahead);
}

template <class T>
void store_output(const Item<T>& item, const Scratch& s) {
  const int64_t D = item.p.head_dim;
  T* out = (T*)item.p.out + (item.sequence * item.p.query_heads + item.head * item.group) * D;
  for (int64_t g = 0; g < item.group; ++g)
    for (int64_t d = 0; d < D; d += W) {
      T padded[W];
      store(padded, load(s.sums() + g * s.row + d));
      std::memcpy(out + g * D + d, padded, std::min(W, D - d) * sizeof(T));
    }
}

// What to prefetch while block i is read in `steps` steps. following: the item that this thread takes next, or null.
template <class T>
Prefetch ahead_of(const Item<T>& item, const Item<T>* following, int64_t i, int64_t steps) {
  const int64_t block_bytes = item.p.block_tokens * item.p.head_dim * sizeof(T);
  i += std::max<int64_t>(1, kAhead / block_bytes);
  if (i < 2 * item.blocks) return item.prefetch(i, steps);
  i -= 2 * item.blocks;
  return following && i < 2 * following->blocks ? following->prefetch(i, steps) : Prefetch(nullptr, 0, 1);
}

template <class T>
void attend(const Item<T>& item, const Scratch& s, const Item<T>* following) {
  const int64_t D = item.p.head_dim;
  const int64_t tiles = (item.group + kHeads - 1) / kHeads;
  const int64_t column_tiles = D / (kColumns * W) + (D % (kColumns * W) + W - 1) / W;
  write_current(item);
  load_queries(item, s);
  for (int64_t i = 0; i < item.blocks; ++i) {
    Prefetch ahead = ahead_of(item, following, i, item.tokens(i) * tiles);
    score_block(item, s, i, ahead);
  }
  for (int64_t g = 0; g < item.group; ++g) softmax(s.scores() + g * s.scores_row, item.length);
  for (int64_t i = 0; i < item.blocks; ++i) {
    Prefetch ahead = ahead_of(item, following, item.blocks + i, item.tokens(i) * tiles * column_tiles);
    value_block(item, s, i, ahead);
  }
  store_output(item, s);
}

// Threads take items from one counter. Each claims its next item early, to prefetch it, except near the end, where
// that would leave threads idle.
template <class T>
void run_items(const Problem& p, const Scratch& s, std::atomic<int64_t>& counter) {
  const int64_t items = p.sequences * p.kv_heads;
  int64_t index = counter++;
  while (index < items) {
    const bool early = index + 4 * p.threads < items;
    const int64_t claimed = early ? counter++ : items;
    const Item<T> following(p, std::min(claimed, items - 1));
    attend(Item<T>(p, index), s, claimed < items ? &following : nullptr);
    index = early ? claimed : counter++;
  }
}

// Lengths fit the table, and the entries in use are blocks of the cache.
bool in_range(const Problem& p) {
  for (int64_t b = 0; b < p.sequences; ++b) {
    const int64_t blocks = (p.lengths[b] + p.block_tokens - 1) / p.block_tokens;
    if (p.lengths[b] < 1 || blocks > p.table_width) return false;
    const int32_t* row = p.block_table + b * p.table_width;
    if (std::any_of(row, row + blocks, [&](int32_t page) { return page < 0 || page >= p.cache_blocks; })) return false;
  }
  return true;
}

template <class T>
int run(const Problem& p) {
  const int64_t longest = *std::max_element(p.lengths, p.lengths + p.sequences);
  Scratch s{};
  s.group = p.query_heads / p.kv_heads;
  s.row = (p.head_dim + kPadding - 1) / kPadding * kPadding;
  s.scores_row = (longest + kPadding - 1) / kPadding * kPadding;
  const int64_t bytes = (s.floats() * sizeof(float) + 4095) / 4096 * 4096;  // threads share no page
  char* memory = (char*)std::aligned_alloc(4096, bytes * p.threads);
  if (memory == nullptr) return 1;
  std::atomic<int64_t> counter{0};
  const int threads = (int)std::min<int64_t>(p.threads, p.sequences * p.kv_heads);
#pragma omp parallel num_threads(threads)
  {
    Scratch mine = s;
    mine.memory = (float*)(memory + bytes * omp_get_thread_num());
    run_items<T>(p, mine, counter);
  }
  std::free(memory);
  return 0;
}

}  // namespace

// Returns 0, 1 where the scratch could not be allocated, 2 where lengths or block numbers are out of range (nothing is
// read or written then). The caller has checked shapes.
extern "C" int decode_attention(const Problem* problem) {
  if (problem->sequences == 0) return 0;
  if (!in_range(*problem)) return 2;
  if (problem->dtype == 0) return run<float>(*problem);
  if (problem->dtype == 1) return run<Bf16>(*problem);
  return run<Fp16>(*problem);
}
