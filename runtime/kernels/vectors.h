// Vectors of W fp32 lanes for the kernels of this folder: loads and stores of fp32, bf16 and fp16, and exp.
//
// Vectors are GNU vector extensions, so the same code runs on any instruction set; intrinsics stand only where these have
// no word for it.

#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t W = 16;  // fp32 lanes of a vector
#else
constexpr int64_t W = 8;
#endif

typedef float Vec __attribute__((vector_size(W * 4)));
typedef int32_t Int __attribute__((vector_size(W * 4)));
typedef uint32_t Bits __attribute__((vector_size(W * 4)));
typedef uint16_t Half __attribute__((vector_size(W * 2)));

struct Bf16 { uint16_t bits; };
struct Fp16 { uint16_t bits; };

// ---- loads and stores, W elements at a time ----

inline Vec load(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Vec load(const Bf16* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
  Half half;
  std::memcpy(&half, from, sizeof half);
  return (Vec)(__builtin_convertvector(half, Bits) << 16);
#endif
}

inline Vec load(const Fp16* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__) && defined(__AVX__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  _Float16 half[W];
  std::memcpy(half, from, sizeof half);
  Vec value;
  for (int64_t i = 0; i < W; ++i) value[i] = (float)half[i];
  return value;
#endif
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

inline void store(Bf16* to, Vec value) {
  const Bits bits = (Bits)value;
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Half half = __builtin_convertvector(value == value ? rounded : (bits >> 16) | 0x40, Half);  // NaN stays NaN
  std::memcpy(to, &half, sizeof half);
}

inline void store(Fp16* to, Vec value) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__) && defined(__AVX__)
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  _Float16 half[W];
  for (int64_t i = 0; i < W; ++i) half[i] = (_Float16)value[i];
  std::memcpy(to, half, sizeof half);
#endif
}

// ---- the first `count` elements, 1 to W; zero behind them ----

template <class T>
inline Vec load_some(const T* from, int64_t count) {
  if (count == W) return load(from);
  T padded[W] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}

template <class T>
inline void store_some(T* to, Vec value, int64_t count) {
  T rounded[W];
  store(rounded, value);
  std::memcpy(to, rounded, count * sizeof(T));
}

// exp of values <= 0, relative error about 1e-7; below exp(-87) it stays there. NaN stays NaN.
inline Vec exp_of_negative(Vec x) {
  const Vec zero = {};
  const Vec lowest = zero - 87.0f;
  const Vec bounded = x < lowest ? lowest : x;
  const Vec to_integer = zero + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (bounded * 1.44269504f + to_integer) - to_integer;
  const Vec r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
  Vec p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * (Vec)((__builtin_convertvector(n, Int) + 127) << 23);
}

}  // namespace
