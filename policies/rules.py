"""What a project's settings say of promotion, demotion and audits. A leaf.

The gateway writes them into what the store remembers of the project (`states.ProjectState`), so that whoever reads that
knows what the figures are held against.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """What a project's settings say of promotion and demotion.

    `delta` is the chance that a policy below its target is promoted, `alpha` that one on its target is ever demoted by
    the e-process, `run_length` the mean number of audits between false alarms of the detector.
    """

    promotion: str = "shadow"
    delta: float = 0.05
    alpha: float = 0.05
    run_length: float = 20_000.0
    builds: bool = True  # whether another system_fingerprint is another teacher
    watched: bool = True  # whether there is a teacher to compare with


@dataclass(frozen=True, slots=True)
class AuditRules:
    """What a project's settings say of audits; see config.example.yaml."""

    rate: float = 0.02
    first_rate: float = 0.1
    first_hours: float = 6.0
    most_rate: float = 0.5
    daily_calls: int = 2_000
    daily_usd: float | None = None
