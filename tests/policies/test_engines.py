"""Folds come out the same wherever they are fitted, and an engine that is not installed says what to install."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from policies.errors import FitError
from policies.fitting import fit_policy
from policies.settings import FitConfig
from tests.traces_maker import make_traces


def test_processes_and_one_process_give_the_same_policy(tmp_path: Path) -> None:
    """Enough traces that worker processes are started: the same graph, byte by byte."""
    traces = make_traces(4_200)
    one = fit_policy(traces, tmp_path / "one", FitConfig(0.8, jobs=1)).manifest
    two = fit_policy(traces, tmp_path / "two", FitConfig(0.8, jobs=2)).manifest
    assert one.files["model"].sha256 == two.files["model"].sha256


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_a_missing_engine_is_one_clear_error(tmp_path: Path, engine: str, package: str) -> None:
    """It names the package, and no policy is written."""
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed here")
    with pytest.raises(FitError, match="pip install"):
        fit_policy(make_traces(100), tmp_path, FitConfig(0.8, engine=engine))
    assert not (tmp_path / "manifest.json").exists()
