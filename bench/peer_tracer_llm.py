"""One fit of the PyPI package `tracer-llm` and its router on traffic; runs in that package's own environment.

PEER_ENV/bin/python -I bench/peer_tracer_llm.py --traces T.jsonl --embeddings T.npy --traffic C.jsonl
    --traffic-embeddings C.npy --policy FOLDER [--target 0.95] [--seed 0]
    [--out-of-scope O.jsonl --out-of-scope-embeddings O.npy] [--plain]

Driven as its documentation shows: `tracer.fit(path, folder, embeddings, FitConfig)`, `tracer.load_router(folder)`. All
of its settings stay at their defaults, its confidence (0.90, fixed in its code) and whole zoo of candidates included,
but for `frontier_targets`: by default it also fits 0.85, 0.90 and 0.95 whatever the target, which changes nothing in
the policy it deploys and would triple its seconds.

For each of its three methods the package trains the same zoo on the same rows with the same seeds. Unless --plain is
given, that sweep is run once and its result used again, and the seconds it took are counted every time that it was:
the policy is the same, `seconds` is what the package would have taken, and the bench is over in a third of the time.
Knows nothing of this repository; prints one JSON object.
"""

import argparse
import hashlib
import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

TIMED = 1_000  # single decisions that are timed; one takes milliseconds


def main() -> None:
    """Fit, judge, print."""
    arguments = _arguments()
    peer = importlib.import_module("tracer")
    vectors = np.load(arguments.embeddings, allow_pickle=False)
    config = peer.FitConfig(
        target_teacher_agreement=arguments.target,
        frontier_targets=(arguments.target,),
        seed=arguments.seed,
        verbose=False,
    )
    fit = peer.fit  # loads the package's learning half, which its seconds should not hold
    pipeline: Any = importlib.import_module("tracer.fit.pipeline")
    sweep = Sweep(pipeline.search_best_surrogate)
    if not arguments.plain:
        pipeline.search_best_surrogate = sweep
    started = perf_counter()
    result = fit(arguments.traces, arguments.policy, vectors, config)
    seconds = perf_counter() - started
    manifest = result.manifest
    found: dict[str, Any] = {"peer": version("tracer-llm"), "packages": _packages()}
    found["fit"] = {
        "refused": manifest.selected_method is None,
        "reason": None if manifest.selected_method else result.notes[-1],
        "method": manifest.selected_method,
        "coverage": manifest.coverage_cal,
        "seconds": round(seconds + sweep.saved, 2),
        "seconds_saved": round(sweep.saved, 2),
    }
    if manifest.selected_method is not None:
        router = peer.load_router(arguments.policy)
        found["live"] = judge(router, np.load(arguments.traffic_embeddings), labels(arguments.traffic))
        if arguments.out_of_scope is not None:
            strange = router.predict_batch(np.load(arguments.out_of_scope_embeddings))["handled"]
            found["out_of_scope"] = {"n": len(strange), "handled": int(np.sum(strange))}
    json.dump(found, sys.stdout)


class Sweep:
    """The package's search through its zoo, run once for equal rows; `saved` is the seconds of runs not repeated."""

    def __init__(self, search: Any) -> None:
        self._search = search
        self._known: dict[bytes, tuple[Any, float]] = {}
        self.saved = 0.0

    def __call__(self, *rows: Any, **options: Any) -> Any:
        """What the search gives for `rows`: training and validation features and labels. `options` never vary."""
        key = hashlib.sha256(b"".join(repr(part.shape).encode() + part.tobytes() for part in rows)).digest()
        if key in self._known:
            found, seconds = self._known[key]
            self.saved += seconds
            return found
        started = perf_counter()
        found = self._search(*rows, **options)
        self._known[key] = found, perf_counter() - started
        return found


def judge(router: Any, vectors: Any, teacher: list[str]) -> dict[str, Any]:
    """Decisions on all traffic by `predict_batch`; the first `TIMED` again by `predict`, one by one, timed.

    `differing` counts single decisions that are not the batch's.
    """
    batch = router.predict_batch(vectors)
    handled = np.asarray(batch["handled"], bool)
    agreed = sum(label == truth for label, truth in zip(batch["labels"], teacher, strict=True) if label is not None)
    times, differing = [], 0
    for i, vector in enumerate(vectors[:TIMED]):
        started = perf_counter_ns()
        decision = router.predict(vector)
        times.append((perf_counter_ns() - started) / 1e3)
        differing += (decision["decision"] == "handled") != bool(handled[i])
    n_handled = int(handled.sum())
    return {
        "n": len(vectors),
        "coverage": n_handled / len(vectors),
        "teacher_agreement": agreed / n_handled if n_handled else None,
        "n_handled": n_handled,
        "decide_us_p50": round(float(np.percentile(times, 50)), 1),
        "decide_us_p99": round(float(np.percentile(times, 99)), 1),
        "differing": differing,
    }


def labels(path: Path) -> list[str]:
    """The teacher's label of every line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["teacher"] for line in lines]


def _packages() -> dict[str, str]:
    return {name: version(name) for name in ("numpy", "scikit-learn", "scipy")}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("traces", "embeddings", "traffic", "traffic-embeddings", "policy"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("out-of-scope", "out-of-scope-embeddings"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--plain", action="store_true", help="let the package repeat its sweep")
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
