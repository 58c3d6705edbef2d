// Adds up what a token's experts gave it: out[t] = sum over slabs s and choices c of weights[t, c] * parts[s, rows[t, c]].
//
// Sums are fp32 and stay in registers: every row of `parts` is read once and every row of `out` written once.
//
// Shapes: parts [S, R, H], rows and weights [T, k], out [T, H].

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

struct Problem {
  const void* parts;
  const int64_t* rows;
  const float* weights;
  void* out;
  int64_t slabs, part_rows, tokens, top_k, hidden;
  int32_t threads, part_dtype, out_dtype;
};

template <class T, class O>
void combine(const Problem& p) {
  const auto* parts = (const T*)p.parts;
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t t = 0; t < p.tokens; ++t) {
    O* out = (O*)p.out + t * p.hidden;
    for (int64_t i = 0; i < p.hidden; i += W) {
      const int64_t count = std::min(W, p.hidden - i);
      Vec sum = {};
      for (int64_t c = t * p.top_k; c < (t + 1) * p.top_k; ++c)
        for (int64_t s = 0; s < p.slabs; ++s)
          sum += p.weights[c] * load_some(parts + (s * p.part_rows + p.rows[c]) * p.hidden + i, count);
      store_some(out + i, sum, count);
    }
  }
}

template <class T>
void combine_into(const Problem& p) {
  if (p.out_dtype == 0) combine<T, float>(p);
  if (p.out_dtype == 1) combine<T, Bf16>(p);
  if (p.out_dtype == 2) combine<T, Fp16>(p);
}

}  // namespace

// The caller has checked shapes and rows.
extern "C" void combine_experts(const Problem* problem) {
  if (problem->part_dtype == 0) combine_into<float>(*problem);
  if (problem->part_dtype == 1) combine_into<Bf16>(*problem);
  if (problem->part_dtype == 2) combine_into<Fp16>(*problem);
}
