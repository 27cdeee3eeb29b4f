"""A policy folder with two versions, of which it serves one or the other."""

import shutil
from pathlib import Path

from policies.artifact import MANIFEST, read_version
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from tests.traces_maker import make_traces


class Versions:
    """`folder` serves `first` until `serve` says otherwise. `text` is answered by both as its teacher would."""

    def __init__(self, folder: Path, policy: Path) -> None:
        """`policy` is the folder of the first version."""
        self.folder = folder
        shutil.copytree(policy, folder)
        self.first = self._keep()
        fit_policy(make_traces(900), folder, FitConfig(target_teacher_agreement=0.85))
        self.second = self._keep()
        both = [Policy.load(folder, version) for version in (self.first, self.second)]
        self.text = next(
            trace.input
            for trace in make_traces(300, seed=1)
            if all(policy.decide(trace.input).label == trace.teacher for policy in both)
        )
        self.serve(self.first)

    def serve(self, version: str) -> None:
        """As a fit does it: one rename."""
        copy = shutil.copy(self._kept(version), self.folder / "next.json")
        Path(copy).replace(self.folder / MANIFEST)

    def _keep(self) -> str:
        version = read_version(self.folder)
        assert version is not None
        shutil.copy(self.folder / MANIFEST, self._kept(version))
        return version

    def _kept(self, version: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{version}.json")
