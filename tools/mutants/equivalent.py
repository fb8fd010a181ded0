"""Mutants that change no result, and why: nobody can notice them.

They are known by their file and by the line that the change leads to, so they follow it wherever it
moves, and have to be judged anew when it changes.
"""

from __future__ import annotations

from .sources import Mutant

_MORE_SHARED_MEMORY = "a byte of shared memory that nobody uses"

# By file: changed lines, white space aside, with the reason.
EQUIVALENT: dict[str, dict[str, str]] = {
    "common/device/reduction.cu": {
        "const int64_t vectors = reinterpret_cast<uintptr_t>(target) / 16 == 0 ? p.count / kVector "
        ": 0;": "no vectors: slower",
        "launch(finish_kernel<Result>, 1, kFinishThreads, 1, stream, partial, count, normalizer, "
        "result);": _MORE_SHARED_MEMORY,
    },
    "scale/cuda/scale.cu": {
        "for (int64_t i = first; i <= vectors; i += kBatch * threads) {": "a thread more enters, "
        "and none of its vectors is one",
        "launch(scale_vectors_kernel<T, N>, blocks, kThreads, 1, stream, static_cast<T*>(p.data), "
        "p.factor,": _MORE_SHARED_MEMORY,
        "launch_scale_vectors<T, 16 * sizeof(T)>(p, stream);": "longer vectors move as words of 16 "
        "bytes, too: slower, which the budget of instructions in `make cuda` notices",
    },
}


def reason_of(mutant: Mutant) -> str | None:
    return EQUIVALENT.get(mutant.file, {}).get(mutant.mutated)
