"""What a fit is asked for, as a frozen, validated value."""

from dataclasses import dataclass
from pathlib import Path

from policies.errors import FitError
from policies.guard import DEFAULT_BUDGET

DEFAULT_FEATURES = "lexical,static"
FRONTIER_TARGETS = (0.80, 0.85, 0.90, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
MODES = ("strict", "refit")
ASSUMPTIONS = ("iid",)


@dataclass(frozen=True)
class FitConfig:
    """Settings of one fit; FitError names the setting that is out of range.

    `target_teacher_agreement`: agreement the certificate must promise on handled calls. `confidence`: how sure it is.
    `features`: see `FeatureSpec`; ignored where embeddings are given. `mode`: `strict` serves the average of the fold
    models, `refit` one model learned from everything (more coverage, at the nominal error rate instead of below it).
    `assume`: which measurement of agreement rules. `min_deploy_coverage`: certify nothing that handles a smaller share.
    `guard_budget`: share of calls like the traces that the guard may turn away. `seed`: of folds and solver.
    """

    target_teacher_agreement: float = 0.95
    confidence: float = 0.90
    features: str = DEFAULT_FEATURES
    assume: str = "iid"
    mode: str = "strict"
    seed: int = 0
    frontier_targets: tuple[float, ...] = FRONTIER_TARGETS
    min_deploy_coverage: float = 0.01
    guard_budget: float = DEFAULT_BUDGET

    def __post_init__(self) -> None:
        """Validate every field."""
        for name in ("target_teacher_agreement", "confidence"):
            value = getattr(self, name)
            if not 0.5 <= value < 1.0:
                raise FitError(f"{name} must be at least 0.5 and below 1, got {value}")
        for value in self.frontier_targets:
            if not 0.5 <= value < 1.0:
                raise FitError(f"frontier_targets must be at least 0.5 and below 1, got {value}")
        for name in ("min_deploy_coverage", "guard_budget"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise FitError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.mode not in MODES:
            raise FitError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.assume not in ASSUMPTIONS:
            raise FitError(f"assume must be one of {', '.join(ASSUMPTIONS)}, got {self.assume!r}")
        FeatureSpec.parse(self.features)


@dataclass(frozen=True)
class FeatureSpec:
    """`--features`: `lexical,static` (default), `static`, or either with a table of one's own as `static:FOLDER`."""

    lexical: bool
    static_folder: Path | None

    @classmethod
    def parse(cls, text: str) -> "FeatureSpec":
        """Raises FitError where `text` names no known block, or names one twice."""
        names = [part.strip() for part in text.split(",")]
        kinds = [name.split(":", 1)[0] for name in names]
        if len(set(kinds)) != len(kinds) or not {"lexical", "static"}.issuperset(kinds) or "static" not in kinds:
            raise FitError(f"features {text!r}: write lexical,static or static, or static:FOLDER for another table")
        static = names[kinds.index("static")]
        folder = Path(static.split(":", 1)[1]) if ":" in static else None
        return cls("lexical" in kinds, folder)
