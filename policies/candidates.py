"""The candidate surrogates by name: one way to fit each, and one way to make one model of a fold's models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from policies.blocks import Features, Floats
from policies.errors import FitError
from policies.forest import ForestModel, fit_forest, merge_forests
from policies.linear_candidates import fit_logreg, fit_sgd
from policies.mlp import MlpModel, fit_mlp, merge_mlps
from policies.neighbours import choose_neighbours
from policies.surrogates import Labels, SoftmaxModel, average, fit_softmax

Surrogate = SoftmaxModel | MlpModel | ForestModel

_FIT: Mapping[str, Callable[[Features, Labels, int, int], Surrogate]] = {
    "joint": lambda features, labels, n_labels, seed: fit_softmax(features, labels, n_labels, seed=seed),
    "logreg": fit_logreg,
    "sgd": fit_sgd,
    "mlp": fit_mlp,
    "trees": fit_forest,
}
_DENSE_ONLY = ("mlp", "trees")


def fit_candidate(
    name: str, features: Features, labels: Labels, n_labels: int, seed: int, neighbours: bool = False
) -> Surrogate:
    """A model of the named kind, fitted on rows whose labels are 0..n_labels - 1; not every label need have a row.

    With `neighbours` it remembers them for the acceptor. Raises FitError where the model cannot read any of the blocks,
    or has no neighbours to remember.
    """
    if name in _DENSE_ONLY and not sum(features.widths):
        raise FitError(
            f"surrogate {name!r} reads dense blocks alone and there is none: add static or an encoder to features"
        )
    model = _FIT[name](features, labels, n_labels, seed)
    if not neighbours:
        return model
    if not sum(features.widths) or not isinstance(model, SoftmaxModel):
        raise FitError(f"neighbours need a dense block and a linear surrogate, not {name!r} alone on these features")
    return replace(model, neighbours=choose_neighbours(features.dense, labels, seed))


def merge_models(models: Sequence[Surrogate]) -> Surrogate:
    """One model that says what the fold models, all of a kind, say on average."""
    linear = [model for model in models if isinstance(model, SoftmaxModel)]
    if len(models) == 1 or len(linear) == len(models):
        return models[0] if len(models) == 1 else average(linear)
    centroids = _mean_directions([model.centroids for model in models])
    wide = [model for model in models if isinstance(model, MlpModel)]
    if wide:
        return merge_mlps(wide, centroids)
    return merge_forests([model for model in models if isinstance(model, ForestModel)], centroids)


def _mean_directions(centroids: Sequence[Floats]) -> Floats:
    """Unit rows along the mean of the fold models' centroids, (K, d)."""
    mean = np.mean(centroids, axis=0)
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9), np.float32)
