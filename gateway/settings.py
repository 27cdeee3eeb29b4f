"""The YAML file as frozen, validated values. An unknown key is an error that names it and what would be valid.

`config.example.yaml` explains every setting; a test holds the two together.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from gateway.errors import SettingsError
from gateway.headers import ACCOUNT_HEADERS

# Names appear in paths, headers and metric labels.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# `/v1/classify` would be read as a path of the API.
_RESERVED = frozenset({"v1"})
_HEADER = re.compile(r"[A-Za-z0-9-]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
# They sign in with more than a key, or find their own: a key that is given does not keep litellm from looking.
_AMBIENT = (
    *("azure", "bedrock", "chatgpt", "databricks", "gdc", "gigachat", "github_copilot"),
    *("oci", "sagemaker", "sap", "vertex_ai", "watsonx"),
)
# Of the admin API's key: what can be guessed is none, and a header must be able to carry it.
_LEAST_KEY_CHARS = 16
_KEY = re.compile(r"[!-~]+")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# More processes than this on one machine is a slip of the finger.
MOST_WORKERS = 256

Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(_Frozen):
    """The socket and its limits."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1
    max_body_bytes: PositiveInt = 33_554_432
    max_held_bytes: PositiveInt = 268_435_456
    max_input_chars: PositiveInt = 16_384
    max_batch_rows: PositiveInt = 10_000
    max_concurrency: PositiveInt = 1_000
    max_queue: Annotated[int, Field(ge=0)] = 1_000
    queue_timeout: Seconds = 30.0
    request_timeout: Seconds = 60.0
    keep_alive_timeout: PositiveInt = 75
    shutdown_timeout: PositiveInt = 30
    policy_poll_seconds: Seconds = 1.0
    scoring_threads: PositiveInt = 2
    scoring_wait: Seconds = 0.1
    scoring_timeout: Seconds = 1.0
    access_log: bool = False


class AccessSettings(_Frozen):
    """Who may ask. `key_headers` are what an upstream may tell callers apart by; those of the default always count."""

    mode: Literal["none", "passthrough", "keys"] = "none"
    hosts: tuple[str, ...] = ()
    keys_file: Path = Path(".tracer/keys.json")
    key_seconds: Seconds = 300.0
    key_headers: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "authorization",
        "api-key",
        "x-api-key",
        "x-goog-api-key",
        "openai-organization",
        "openai-project",
    )

    @field_validator("key_headers")
    @classmethod
    def _lower_case(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_HEADER.fullmatch(name) for name in value):
            raise ValueError("should be names of headers")
        return tuple(name.lower() for name in value)

    @field_validator("hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_HOST_NAME.fullmatch(name) for name in value):
            raise ValueError("should be names of hosts, without a port")
        return tuple(name.lower() for name in value)

    @property
    def account_headers(self) -> frozenset[bytes]:
        """What says who calls: the only list there is of what is asked for, told apart by, and kept from others."""
        return ACCOUNT_HEADERS | {name.encode("latin-1") for name in self.key_headers}


class StoreSettings(_Frozen):
    """Where traces go."""

    url: str = "sqlite:///.tracer/traces.db"
    spool: Path = Path(".tracer/spool.jsonl")
    queue_size: PositiveInt = 10_000


class FallbackSettings(_Frozen):
    """Who is asked where an upstream does not answer; `model` None asks for the model of the call."""

    upstream: str
    model: Annotated[str, Field(min_length=1)] | None = None


class UpstreamSettings(_Frozen):
    """One place to forward calls to. `base_url` is what one would give an OpenAI client, `/v1` included."""

    provider: str = "openai"
    base_url: str | None = None
    api_key_env: str | None = None
    ambient_credentials: bool = False
    training_allowed: bool = True
    connect_timeout: Seconds = 10.0
    read_timeout: Seconds = 600.0
    write_timeout: Seconds = 60.0
    pool_timeout: Seconds = 10.0
    max_connections: PositiveInt = 1_000
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    max_retry_wait: Seconds = 20.0
    fallbacks: tuple[FallbackSettings, ...] = ()
    breaker_failures: Annotated[int, Field(ge=0)] = 5
    breaker_seconds: Seconds = 10.0

    @field_validator("base_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s?#]+[^\s?#]*$", value):
            raise ValueError("should be http(s)://host[:port]/path, without a query")
        if value is not None and "@" in value.split("/")[2]:
            raise ValueError("should hold no credentials; name the variable that holds the key in api_key_env")
        return value

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.provider == "openai" and self.base_url is None:
            raise ValueError("needs base_url, for example https://api.openai.com/v1")
        if self.provider == "openai" and self.ambient_credentials:
            raise ValueError("ambient_credentials is for litellm's providers: name the key's variable in api_key_env")
        if self.provider.startswith(_AMBIENT) and not self.has_own_credentials:
            raise ValueError(
                f"the provider {self.provider!r} finds credentials in the gateway's environment whoever calls: allow "
                "that with ambient_credentials: true, or name a key's variable in api_key_env"
            )
        return self

    @property
    def has_own_credentials(self) -> bool:
        """Whether it is called with the gateway's credentials, not with the client's key."""
        return self.api_key_env is not None or self.ambient_credentials

    def same_place(self, other: "UpstreamSettings") -> bool:
        """Whether a key for the one is a key for the other: same provider, same host."""
        return (self.provider, _host(self.base_url)) == (other.provider, _host(other.base_url))


class MatchSettings(_Frozen):
    """How a call is recognised by its system prompt."""

    system_prompt: Annotated[str, Field(min_length=1)]
    mode: Literal["exact", "contains", "regex"] = "exact"

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.mode == "regex":
            try:
                re.compile(self.system_prompt)
            except re.error as error:
                raise ValueError(f"system_prompt is not a regular expression: {error}") from error
        return self


class ProofSettings(_Frozen):
    """How sure promotion and demotion are. `false_alarm_audits`: the mean number of audits between false alarms."""

    promotion_risk: Annotated[float, Field(gt=0, lt=1)] = 0.05
    demotion_risk: Annotated[float, Field(gt=0, lt=1)] = 0.05
    false_alarm_audits: Annotated[float, Field(ge=100)] = 20_000.0
    system_fingerprint: bool = True


class AdminSettings(_Frozen):
    """The admin API. `key_env` None: there is none."""

    key_env: str | None = None


class AuditSettings(_Frozen):
    """How many of the handled calls the teacher is asked as well. Rates are shares of calls, prices USD per million.

    `first_rate` holds in the first hours that a policy answers, `most_rate` where evidence against it grows.
    """

    rate: Share = 0.02
    first_rate: Share = 0.10
    first_hours: Annotated[float, Field(ge=0)] = 6.0
    most_rate: Share = 0.5
    daily_calls: Annotated[int, Field(ge=0)] = 2_000
    daily_usd: Annotated[float, Field(ge=0)] | None = None
    price_input: Annotated[float, Field(ge=0)] | None = None
    price_output: Annotated[float, Field(ge=0)] | None = None
    expires: Seconds = 600.0
    timeout: Seconds = 60.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.first_rate < self.rate:
            raise ValueError(f"first_rate ({self.first_rate:g}) should be at least rate ({self.rate:g})")
        if self.most_rate < self.first_rate:
            raise ValueError(f"most_rate ({self.most_rate:g}) should be at least first_rate ({self.first_rate:g})")
        if self.daily_usd is not None and None in (self.price_input, self.price_output):
            raise ValueError("daily_usd needs price_input and price_output, or nobody knows what an audit costs")
        return self


class ProjectSettings(_Frozen):
    """One recurring decision."""

    policy: Path
    upstream: str | None = None
    teacher: str | None = None
    mini: str | None = None
    mini_upstream: str | None = None
    match: MatchSettings | None = None
    multi_turn: Literal["defer", "last_user_message"] = "defer"
    prompt: str | None = None
    responses_default_store: Literal["answer", "forward"] = "answer"
    promotion: Literal["shadow", "immediate", "manual"] = "shadow"
    proof: ProofSettings = ProofSettings()
    audit: AuditSettings = AuditSettings()


class Settings(_Frozen):
    """The whole file."""

    server: ServerSettings = ServerSettings()
    access: AccessSettings = AccessSettings()
    admin: AdminSettings = AdminSettings()
    store: StoreSettings = StoreSettings()
    upstreams: Mapping[str, UpstreamSettings] = {}
    default_upstream: str | None = None
    projects: Mapping[str, ProjectSettings] = {}
    default_project: str | None = None

    @field_validator("upstreams", "projects")
    @classmethod
    def _names(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in value:
            if not NAME.fullmatch(name) or name in _RESERVED:
                raise ValueError(f"{name!r} cannot be a name: use letters, digits, '.', '_' and '-' (and not 'v1')")
        return value

    @model_validator(mode="after")
    def _references(self) -> Self:
        wanted: list[tuple[str, str | None, Mapping[str, Any]]] = [
            ("default_upstream", self.default_upstream, self.upstreams)
        ]
        wanted += [(f"projects.{name}.upstream", p.upstream, self.upstreams) for name, p in self.projects.items()]
        wanted += [
            (f"projects.{name}.mini_upstream", p.mini_upstream, self.upstreams) for name, p in self.projects.items()
        ]
        wanted += [("default_project", self.default_project, self.projects)]
        for key, name, known in wanted:
            if name is not None and name not in known:
                raise ValueError(f"{key}: {name!r} is not configured; known: {_listed(known)}")
        return self

    @model_validator(mode="after")
    def _minis(self) -> Self:
        for name, project in self.projects.items():
            if project.mini_upstream is None:
                continue
            if project.mini is None:
                raise ValueError(f"projects.{name}.mini_upstream: names an upstream without a model: set mini too")
            foreign = project.mini_upstream != self.upstream_of(name)
            if foreign and not self.upstreams[project.mini_upstream].has_own_credentials:
                raise ValueError(
                    f"projects.{name}.mini_upstream: {project.mini_upstream!r} needs an api_key_env of its own: the "
                    "client's key is for another upstream"
                )
        return self

    @model_validator(mode="after")
    def _fallbacks(self) -> Self:
        for name, upstream in self.upstreams.items():
            for index, fallback in enumerate(upstream.fallbacks):
                key = f"upstreams.{name}.fallbacks.{index}"
                if fallback in upstream.fallbacks[:index]:
                    raise ValueError(f"{key}: is there twice")
                if fallback.upstream not in self.upstreams:
                    known = _listed(self.upstreams)
                    raise ValueError(f"{key}.upstream: {fallback.upstream!r} is not configured; known: {known}")
                if fallback.upstream == name and fallback.model is None:
                    raise ValueError(f"{key}: is the upstream itself; name another one, or another model")
                other = self.upstreams[fallback.upstream]
                if not other.has_own_credentials and not upstream.same_place(other):
                    # Or the client's key would have to travel to a place it was not meant for.
                    raise ValueError(
                        f"upstreams.{fallback.upstream}.api_key_env: is required of a fallback of {name!r}"
                    )
        return self

    @model_validator(mode="after")
    def _keys_have_a_judge(self) -> Self:
        if self.access.mode == "passthrough":
            for name, upstream in self.upstreams.items():
                if upstream.provider != "openai":
                    raise ValueError(
                        f"upstreams.{name}.provider: with access.mode passthrough an upstream's answer proves the "
                        f"client's key, and litellm, which speaks to {upstream.provider!r}, also finds keys of the "
                        "gateway's: use access.mode keys"
                    )
                if upstream.api_key_env is not None:
                    raise ValueError(
                        f"upstreams.{name}.api_key_env: with access.mode passthrough the upstream checks the client's "
                        "own key: leave it out, or use access.mode keys"
                    )
            for name in self.projects:
                if self.upstream_of(name) is None:
                    raise ValueError(
                        f"projects.{name}.upstream: with access.mode passthrough an upstream checks the client's key, "
                        "and this project has none: name one, or use access.mode keys"
                    )
        if self.access.mode == "keys":
            for name, upstream in self.upstreams.items():
                if "api_key_env" not in upstream.model_fields_set and not upstream.ambient_credentials:
                    raise ValueError(
                        f"upstreams.{name}.api_key_env: is required with access.mode keys, as no client's key travels: "
                        "name the variable that holds the upstream's key, or say null for an upstream without keys"
                    )
        return self

    def upstream_of(self, project: str | None) -> str | None:
        """The upstream's name for a project's calls, or for everything else (None)."""
        own = self.projects[project].upstream if project is not None else None
        return own or self.default_upstream

    def project_served(self) -> str | None:
        """The project of a call that names none: `default_project`, or the only one there is."""
        if self.default_project is None and len(self.projects) == 1:
            return next(iter(self.projects))
        return self.default_project


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read, expand and validate a YAML file, upstreams' keys as well; raises SettingsError with one line a problem."""
    settings = read_settings(path, environ)
    for name in settings.upstreams:
        api_key(settings, name, environ)
    return settings


def read_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """The same, for who needs no upstream: their keys may be missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    try:
        tree = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from error
    return build_settings({} if tree is None else tree, environ)


def build_settings(tree: Any, environ: Mapping[str, str]) -> Settings:
    """Settings from a tree of plain values; `${NAME}` in a string is replaced by that variable of `environ`."""
    if not isinstance(tree, dict):
        raise SettingsError(f"the configuration should be a mapping of {_listed(Settings.model_fields)}")
    try:
        return Settings.model_validate(_expand(tree, (), environ))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(details) for details in error.errors())) from error


def api_key(settings: Settings, upstream: str, environ: Mapping[str, str]) -> str | None:
    """The key an upstream is to be called with; None where the client's own travels."""
    variable = settings.upstreams[upstream].api_key_env
    if variable is None:
        return None
    if not environ.get(variable):
        raise SettingsError(f"upstreams.{upstream}.api_key_env: the environment has no {variable}")
    return environ[variable]


def admin_key(settings: Settings, environ: Mapping[str, str]) -> str | None:
    """The key of the admin API; None where there is no such API. Raises SettingsError."""
    variable = settings.admin.key_env
    if variable is None:
        return None
    key = environ.get(variable)
    if not key:
        raise SettingsError(f"admin.key_env: the environment has no {variable}")
    if len(key) < _LEAST_KEY_CHARS or not _KEY.fullmatch(key):
        raise SettingsError(
            f"admin.key_env: {variable} should hold at least {_LEAST_KEY_CHARS} letters, digits and signs without "
            "spaces, such as `openssl rand -hex 32` prints"
        )
    return key


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key given twice, which YAML would silently take the last of."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _expand(value: Any, key: tuple[str, ...], environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _expand(item, (*key, str(name)), environ) for name, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, key, environ) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(_looker(key, environ), value)
    return value


def _looker(key: tuple[str, ...], environ: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    def look_up(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise SettingsError(f"{'.'.join(key)}: the environment has no {match[1]}")
        return environ[match[1]]

    return look_up


def _explain(details: ErrorDetails) -> str:
    # Values are left out on purpose: a key pasted into the wrong place must not reach a log.
    location = [str(part) for part in details["loc"]]
    key = ".".join(location)
    if details["type"] == "extra_forbidden":
        valid = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{key}: unknown key; {hint}valid keys: {_listed(valid)}"
    if details["type"] == "missing":
        return f"{key}: is required"
    message = details["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _fields_at(location: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    inside: dict[str, type[BaseModel]] = {
        "server": ServerSettings,
        "access": AccessSettings,
        "store": StoreSettings,
        "upstreams": UpstreamSettings,
        "fallbacks": FallbackSettings,
        "projects": ProjectSettings,
        "match": MatchSettings,
        "proof": ProofSettings,
        "admin": AdminSettings,
        "audit": AuditSettings,
    }
    named = False
    for part in location:
        # An upstream or a project may have the name of a section.
        model = model if named else inside.get(part, model)
        named = part in ("upstreams", "projects") and not named
    return list(model.model_fields)


def _host(url: str | None) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url or "")
    return parts.scheme, parts.hostname, parts.port


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
