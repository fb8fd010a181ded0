// Pixels along the lanes of a warp, a pixel's classes spread over warps: whatever the layout of the
// logits, neighbouring lanes read the same or neighbouring ones.
#pragma once
#include <algorithm>
#include <optional>

#include "softmax.h"
#include "work.h"

namespace segunc::device {

// Of a launch: `team` neighbouring warps of a block share kWarpSize pixels.
struct WarpTeams {
  static constexpr int kMaxWarps = 8;     // of a block
  static constexpr int kMaxClasses = 32;  // of a thread

  int classes, classes_of_warp;
  int team, teams;  // warps of a team, teams of a block

  unsigned threads() const { return unsigned(team * teams) * kWarpSize; }
  int pixels() const { return teams * int(kWarpSize); }  // of a block
};

// Nothing where the classes are too many.
inline std::optional<WarpTeams> make_warp_teams(int64_t classes) {
  // More than 24 leave fewer threads resident: for single warps and for the most classes alone.
  constexpr int kClassesOfTeams = 24, kWarps = 4;  // tuning
  if (classes > WarpTeams::kMaxWarps * WarpTeams::kMaxClasses) return std::nullopt;
  WarpTeams teams{};
  teams.classes = int(classes);
  teams.team = 1;
  if (classes > WarpTeams::kMaxClasses) {
    teams.team = std::min(int(divide_up(classes, kClassesOfTeams)), WarpTeams::kMaxWarps);
  }
  teams.classes_of_warp = int(divide_up(classes, teams.team));
  teams.teams = std::max(1, kWarps / teams.team);
  return teams;
}

// Calls launch_bucket(bucket, work, teams) for a launch over the pixels of p's results whose teams
// take them; false where the classes are too many.
template <class Params, class Buckets, class Launch>
bool with_warp_teams(const Params& p, Buckets buckets, int64_t max_blocks, Launch launch_bucket) {
  const std::optional<WarpTeams> teams = make_warp_teams(p.map.classes);
  if (!teams) return false;
  const Work work =
      make_work(p.map.images, result_pixels(p.map, p.interpolation), teams->pixels(), max_blocks);
  return with_bucket(teams->classes_of_warp, buckets,
                     [&](auto bucket) { launch_bucket(bucket, work, *teams); });
}

// Register i of a thread of warp `part` of a team is class first + i. The reductions need the whole
// block and give all threads of a pixel the same bits.
struct WarpTeam {
  // Of a block, in shared memory: what threads tell each other, in turns, so that a barrier between
  // writing and reading is enough.
  using Words = uint32_t[2][WarpTeams::kMaxWarps][kWarpSize];

  int size, part, group, first, owned;

  SEGUNC_DEVICE WarpTeam(const WarpTeams& teams, Words& words)
      : size(teams.team),
        part(int(warp()) % teams.team),
        group(int(warp()) / teams.team),
        first(part * teams.classes_of_warp),
        owned(teams.classes - first < teams.classes_of_warp ? teams.classes - first
                                                            : teams.classes_of_warp),
        words_(words) {}
  SEGUNC_DEVICE bool leads() const { return part == 0; }
  SEGUNC_DEVICE int pixel() const { return group * int(kWarpSize) + int(lane()); }  // of the tile
  SEGUNC_DEVICE int class_of(int i) const { return first + i; }

  // Tells the team a value; `of` reads it until the next but one is told.
  template <class A>
  SEGUNC_DEVICE void tell(A value) const {
    turn_ ^= 1;
    words_[turn_][warp()][lane()] = bit_cast<uint32_t>(value);
    barrier();
  }
  template <class A>
  SEGUNC_DEVICE A of(int part_of_team) const {
    return bit_cast<A>(words_[turn_][group * size + part_of_team][lane()]);
  }
  // In the order of the parts.
  template <class A, class Combine>
  SEGUNC_DEVICE A reduce(A value, Combine combine) const {
    if (size == 1) return value;
    tell(value);
    value = of<A>(0);
    for (int i = 1; i < size; i++) value = combine(value, of<A>(i));
    return value;
  }
  template <class A>
  SEGUNC_DEVICE A sum(A value) const {
    return reduce(value, [](A a, A b) { return a + b; });
  }
  template <class A>
  SEGUNC_DEVICE A maximum(A value) const {
    return reduce(value, [](A a, A b) { return larger(a, b); });
  }

 private:
  Words& words_;
  mutable int turn_ = 0;
};

}  // namespace segunc::device
