"""Everything the policies half raises on purpose. A leaf.

PolicyError
├── TraceError             a trace file or its contents cannot be used
├── ArtifactError          a policy folder cannot be used
│   ├── PolicyMissing      there is no policy at that path
│   └── PolicyDamaged      a file is missing, altered, or of another schema version
│       └── PolicyChanged  the files are right, but what they decide is not what was certified
├── FitError               a fit cannot start (bad settings, mismatched embeddings)
├── ExportError            the ONNX graph decides differently from the fitted model
├── LifecycleError         a policy cannot be moved so
│   └── UnknownPolicy      there is no such policy, or no such project
└── StoreError             the trace store cannot be reached or refuses
    └── DocumentDamaged    what it holds of a project cannot be read
"""


class PolicyError(Exception):
    """Base of every error raised by `policies`."""


class TraceError(PolicyError):
    """A trace file or its contents cannot be used; the message starts with `file:line:` where a line is at fault."""


class ArtifactError(PolicyError):
    """A policy folder cannot be used."""


class PolicyMissing(ArtifactError):  # noqa: N818 - reads as the state it names
    """There is no policy at that path."""


class PolicyDamaged(ArtifactError):  # noqa: N818
    """A file of the policy is missing, altered, or of another schema version."""


class PolicyChanged(PolicyDamaged):
    """The policy no longer decides as it did when it was certified: tokenizer, encoder or runtime are others."""


class FitError(PolicyError):
    """A fit cannot start: bad settings, unknown features, mismatched embeddings."""


class ExportError(PolicyError):
    """The exported ONNX graph decides differently from the fitted model."""


class LifecycleError(PolicyError):
    """A policy cannot be moved so: it is not there, was refused, or stands there already. Nothing has changed."""


class UnknownPolicy(LifecycleError):  # noqa: N818
    """There is no such policy, or no such project."""


class StoreError(PolicyError):
    """The trace store cannot be reached or refuses a write."""


class DocumentDamaged(StoreError):  # noqa: N818
    """What the store holds of a project cannot be read, or was written by a newer program."""
