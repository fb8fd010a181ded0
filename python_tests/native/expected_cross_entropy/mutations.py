"""Broken copies of the kernels of expected cross-entropy."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation(
        "draws to spare count",
        "if (int64_t(part) * D + d >= p.draws)",
        "if (int64_t(part) * D + d > p.draws)",
        "teams",
    ),
    Mutation(
        "the labelled class is one as the others",
        "share -= c == label ? labelled[d] : A(0);",
        "",
        "teams",
    ),
    Mutation(
        "a pair of draws is the same twice",
        "logit[d] = kAntithetic && d % 2 ? mean - o : mean + o;",
        "logit[d] = mean + o;",
        "teams",
    ),
    Mutation(
        "a row of the triangle lacks its diagonal",
        "for (int i = triangular ? 0 : c; i <= c; i++) {",
        "for (int i = triangular ? 0 : c; i <= c - triangular; i++) {",
        "teams",
    ),
    Mutation(
        "threads of a team have the same numbers",
        "part * (N / 4) + k / 4, seed, words);",
        "k / 4, seed, words);",
        "teams",
    ),
    Mutation(
        "pixels beyond the last are written",
        "const bool inside = at < walk.count;",
        "const bool inside = at <= walk.count;",
        "teams",
    ),
    Mutation(
        "every thread of a team counts the loss",
        "if (part == 0) { sum",
        "if (part >= 0) { sum",
        "teams",
    ),
    Mutation(
        "an infinite logit has a softmax",
        "total[d] + (maximum[d] - maximum[d])",
        "total[d]",
        "extremes",
    ),
    Mutation(
        "kept numbers of threads overlap",
        "return dynamic_shared<Vector<A, N>>() + thread();",
        "return dynamic_shared<Vector<A, N>>() + thread() / 2;",
        "teams",
    ),
)

HARMLESS = {
    "common/device/block.h: block_sum, barrier 1": "it lets a kernel sum again, but each sums once "
    "(test_host_execution.py sums thrice)",
}
