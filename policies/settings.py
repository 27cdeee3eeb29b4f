"""What a fit is asked for, as a frozen, validated value."""

from dataclasses import dataclass
from pathlib import Path

from policies.errors import FitError

DEFAULT_FEATURES = "lexical,static"
FRONTIER_TARGETS = (0.80, 0.85, 0.90, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
MODES = ("strict", "refit")
MEASUREMENTS = ("iid", "grouped", "newest")
ASSUMPTIONS = (*MEASUREMENTS, "strictest")
CANDIDATES = ("joint", "logreg", "sgd", "mlp", "trees")
ENGINES = ("local", "ray", "dask")
AUTO = "auto"
# Share of calls drawn like the traces that the guard may turn away.
DEFAULT_BUDGET = 0.01

_ENCODERS = ("transformer", "endpoint")


@dataclass(frozen=True)
class FitConfig:
    """Settings of one fit; FitError names the setting that is out of range.

    `target_teacher_agreement`: agreement the certificate must promise on handled calls. `confidence`: how sure it is.
    `features`: see `FeatureSpec`; ignored where embeddings are given. `assume`: which measurement of agreement rules:
    random folds (`iid`), folds that keep near-duplicates together (`grouped`), the newest traces held out (`newest`),
    or whichever of them certifies least (`strictest`). `mode`: `strict` serves the average of the fold models, `refit`
    one model learned from everything (more coverage, at the nominal error rate instead of below it).
    `min_deploy_coverage`: certify nothing that handles a smaller share. `guard_budget`: share of calls like the traces
    that the guard may turn away. `seed`: of folds and solver. `surrogates`: the candidates to choose from. `protect`:
    labels that are answered only if certified on their own. `latency_budget_us`: mean microseconds a decision that
    `features="auto"` may spend. `engine`, `jobs`: where the folds are fitted (joblib backend), how many at a time
    (None: one a core). `neighbours`: let the acceptor ask the nearest traces (0.1 ms a decision for 10,000 of them).
    `merge_labels`: take texts that differ by case, white space, quotes or a full stop for one label.
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
    surrogates: tuple[str, ...] = ("joint",)
    protect: tuple[str, ...] = ()
    latency_budget_us: float = 1_000.0
    engine: str = "local"
    jobs: int | None = None
    neighbours: bool = False
    merge_labels: bool = True

    def __post_init__(self) -> None:
        """Validate every field."""
        for name in ("target_teacher_agreement", "confidence"):
            _check_share(name, getattr(self, name), 0.5)
        for value in self.frontier_targets:
            _check_share("frontier_targets", value, 0.5)
        for name in ("min_deploy_coverage", "guard_budget"):
            _check_share(name, getattr(self, name), 0.0)
        _check_word("mode", self.mode, MODES)
        _check_word("assume", self.assume, ASSUMPTIONS)
        _check_word("engine", self.engine, ENGINES)
        for name in self.surrogates:
            _check_word("surrogates", name, CANDIDATES)
        if not self.surrogates or len(set(self.surrogates)) != len(self.surrogates):
            raise FitError(f"surrogates must name each candidate once, got {','.join(self.surrogates)!r}")
        if not self.latency_budget_us > 0:
            raise FitError(f"latency_budget_us must be above 0, got {self.latency_budget_us}")
        if self.seed < 0:
            raise FitError(f"seed must not be negative, got {self.seed}")
        if self.jobs is not None and self.jobs < 1:
            raise FitError(f"jobs must be at least 1, got {self.jobs}")
        FeatureSpec.parse(self.features)


def _check_share(name: str, value: float, lowest: float) -> None:
    if not lowest <= value < 1.0:
        raise FitError(f"{name} must be at least {lowest:g} and below 1, got {value}")


def _check_word(name: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        raise FitError(f"{name} must be one of {', '.join(words)}, got {value!r}")


@dataclass(frozen=True)
class EncoderSpec:
    """`kind` is `transformer` with a folder, or `endpoint` with a URL (and the model's name after `#`)."""

    kind: str
    where: str


@dataclass(frozen=True)
class FeatureSpec:
    """`--features`: blocks by name, with commas between.

    `lexical`; `static`, or `static:FOLDER` for a table of one's own; `transformer:FOLDER` or `endpoint:URL#MODEL`.
    An encoder beside cheap blocks makes a cascade: it is asked only where the cheap blocks leave a call undecided.
    `auto` tries the cheap blocks, and the encoder named beside it, and keeps what earns its latency.
    """

    lexical: bool
    static: bool
    static_folder: Path | None = None
    encoder: EncoderSpec | None = None
    auto: bool = False

    @classmethod
    def parse(cls, text: str) -> "FeatureSpec":
        """Raises FitError where `text` names no known block, or names one twice."""
        blocks: dict[str, str] = {}
        for part in text.split(","):
            kind, _, argument = part.strip().partition(":")
            if kind in blocks or kind not in ("lexical", "static", AUTO, *_ENCODERS):
                raise FitError(_SPEC_HELP.format(text=text))
            if bool(argument) != (kind in _ENCODERS) and kind != "static":
                raise FitError(_SPEC_HELP.format(text=text))
            blocks[kind] = argument
        encoders = [EncoderSpec(kind, blocks[kind]) for kind in _ENCODERS if kind in blocks]
        auto = AUTO in blocks
        if len(encoders) > 1 or (auto and not {AUTO, *_ENCODERS}.issuperset(blocks)):
            raise FitError(_SPEC_HELP.format(text=text))
        folder = Path(blocks["static"]) if blocks.get("static") else None
        return cls("lexical" in blocks, "static" in blocks, folder, encoders[0] if encoders else None, auto)

    def options(self) -> list[str]:
        """The specs that `auto` chooses from, cheapest first; for any other spec, itself."""
        if not self.auto:
            return [str(self)]
        cheap = ["static", DEFAULT_FEATURES]
        return (
            cheap if self.encoder is None else [*cheap, f"{DEFAULT_FEATURES},{self.encoder.kind}:{self.encoder.where}"]
        )

    def __str__(self) -> str:
        names = [AUTO] * self.auto + ["lexical"] * self.lexical
        if self.static:
            names.append("static" if self.static_folder is None else f"static:{self.static_folder}")
        if self.encoder is not None:
            names.append(f"{self.encoder.kind}:{self.encoder.where}")
        return ",".join(names)


_SPEC_HELP = (
    "features {text!r}: write blocks with commas between, such as lexical,static: lexical, static (or static:FOLDER) "
    "and at most one of transformer:FOLDER and endpoint:URL#MODEL; or auto, or auto,transformer:FOLDER"
)
