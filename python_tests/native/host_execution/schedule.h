// Who runs next: a seeded choice among the fibers that can run.
#pragma once
#include <array>
#include <cstdint>
#include <numeric>
#include <utility>

namespace segunc::host {

// xorshift64*: the quality of the draws hardly matters here, their price does.
class Random {
 public:
  explicit Random(uint64_t seed = 1) : state_(seed | 1) {
    for (int i = 0; i < 4; i++) (*this)();
  }
  uint64_t operator()() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545f4914f6cdd1dull;
  }
  unsigned below(unsigned n) { return unsigned(((*this)() >> 32) * n >> 32); }
  bool one_in(unsigned n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

// Numbers in [0, Capacity) in a bit set that finds the next one quickly.
template <unsigned Capacity>
class BitSet {
 public:
  static_assert(Capacity % 64 == 0);
  void clear() {
    words_.fill(0);
    count_ = 0;
  }
  void insert(unsigned i) {
    words_[i / 64] |= uint64_t(1) << i % 64;
    count_++;
  }
  void erase(unsigned i) {
    words_[i / 64] &= ~(uint64_t(1) << i % 64);
    count_--;
  }
  bool empty() const { return count_ == 0; }
  // The first member at or after i, cyclically. The set is not empty.
  unsigned next(unsigned i) const {
    unsigned word = i / 64;
    uint64_t bits = words_[word] & ~uint64_t(0) << i % 64;
    while (bits == 0) {
      word = (word + 1) % (Capacity / 64);
      bits = words_[word];
    }
    return word * 64 + unsigned(__builtin_ctzll(bits));
  }

 private:
  std::array<uint64_t, Capacity / 64> words_{};
  unsigned count_ = 0;
};

// forward, backward, priority: a fixed order of all fibers, of which the first that can run does;
// an occasional random pick keeps the last two from starving one that others wait for.
enum class Policy { forward, backward, priority, uniform };

// The visiting order of blocks: i -> first + i * step modulo count, step coprime with count.
class BlockOrder {
 public:
  BlockOrder(unsigned count, Policy policy, Random& random) : count_(count) {
    if (policy == Policy::forward) return;
    first_ = random() % count;
    step_ = random() % count;
    while (std::gcd(step_, uint64_t(count)) != 1) step_++;
  }
  unsigned operator()(uint64_t i) const { return unsigned((first_ + i % count_ * step_) % count_); }

 private:
  uint64_t count_, first_ = 0, step_ = 1;
};

}  // namespace segunc::host
