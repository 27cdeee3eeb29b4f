"""Where folds are fitted: on this machine's cores, or on a cluster through joblib's own backends."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import joblib

from policies.errors import FitError

_INSTALL = {"ray": "ray", "dask": "dask[distributed]"}


@contextmanager
def engine(name: str, jobs: int) -> Iterator[None]:
    """Run joblib's parallel calls on `local` processes, on `ray` or on `dask`.

    Ray and dask attach to the cluster that their own environment variables or configuration name, and start one on this
    machine where there is none. Raises FitError where the package is missing.
    """
    if name == "local":
        with joblib.parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1):
            yield
    elif name == "ray":
        _load("ray", "ray.util.joblib").register_ray()
        with joblib.parallel_config(backend="ray", n_jobs=jobs):
            yield
    else:
        with _load("dask", "distributed").Client(set_as_default=True), joblib.parallel_config(backend="dask"):
            yield


def _load(name: str, module: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - foreign modules without types
    try:
        return import_module(module)
    except ImportError as error:
        raise FitError(f"engine {name!r} needs a package that is missing: pip install '{_INSTALL[name]}'") from error
