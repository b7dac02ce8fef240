import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_STATE_UNSPECIFIED: _ClassVar[VersionState]
    VERSION_STATE_PREPARING: _ClassVar[VersionState]
    VERSION_STATE_READY: _ClassVar[VersionState]
    VERSION_STATE_FAILED: _ClassVar[VersionState]

class InstanceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INSTANCE_STATE_UNSPECIFIED: _ClassVar[InstanceState]
    INSTANCE_STATE_CREATING: _ClassVar[InstanceState]
    INSTANCE_STATE_STANDBY: _ClassVar[InstanceState]
    INSTANCE_STATE_STARTING: _ClassVar[InstanceState]
    INSTANCE_STATE_INITIALIZING: _ClassVar[InstanceState]
    INSTANCE_STATE_READY: _ClassVar[InstanceState]
    INSTANCE_STATE_FROZEN: _ClassVar[InstanceState]
    INSTANCE_STATE_DRAINING: _ClassVar[InstanceState]
    INSTANCE_STATE_STOPPING: _ClassVar[InstanceState]
    INSTANCE_STATE_STOPPED: _ClassVar[InstanceState]
    INSTANCE_STATE_FAILED: _ClassVar[InstanceState]

class CallState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALL_STATE_UNSPECIFIED: _ClassVar[CallState]
    CALL_STATE_ENQUEUED: _ClassVar[CallState]
    CALL_STATE_RUNNING: _ClassVar[CallState]
    CALL_STATE_SUCCEEDED: _ClassVar[CallState]
    CALL_STATE_FAILED: _ClassVar[CallState]
    CALL_STATE_STOPPED: _ClassVar[CallState]
    CALL_STATE_EXPIRED: _ClassVar[CallState]
    CALL_STATE_RETRYING: _ClassVar[CallState]

class LogStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_STREAM_UNSPECIFIED: _ClassVar[LogStream]
    LOG_STREAM_STDOUT: _ClassVar[LogStream]
    LOG_STREAM_STDERR: _ClassVar[LogStream]
    LOG_STREAM_PLATFORM: _ClassVar[LogStream]

class ReloadState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RELOAD_STATE_UNSPECIFIED: _ClassVar[ReloadState]
    RELOAD_STATE_RUNNING: _ClassVar[ReloadState]
    RELOAD_STATE_DONE: _ClassVar[ReloadState]
    RELOAD_STATE_FAILED: _ClassVar[ReloadState]
VERSION_STATE_UNSPECIFIED: VersionState
VERSION_STATE_PREPARING: VersionState
VERSION_STATE_READY: VersionState
VERSION_STATE_FAILED: VersionState
INSTANCE_STATE_UNSPECIFIED: InstanceState
INSTANCE_STATE_CREATING: InstanceState
INSTANCE_STATE_STANDBY: InstanceState
INSTANCE_STATE_STARTING: InstanceState
INSTANCE_STATE_INITIALIZING: InstanceState
INSTANCE_STATE_READY: InstanceState
INSTANCE_STATE_FROZEN: InstanceState
INSTANCE_STATE_DRAINING: InstanceState
INSTANCE_STATE_STOPPING: InstanceState
INSTANCE_STATE_STOPPED: InstanceState
INSTANCE_STATE_FAILED: InstanceState
CALL_STATE_UNSPECIFIED: CallState
CALL_STATE_ENQUEUED: CallState
CALL_STATE_RUNNING: CallState
CALL_STATE_SUCCEEDED: CallState
CALL_STATE_FAILED: CallState
CALL_STATE_STOPPED: CallState
CALL_STATE_EXPIRED: CallState
CALL_STATE_RETRYING: CallState
LOG_STREAM_UNSPECIFIED: LogStream
LOG_STREAM_STDOUT: LogStream
LOG_STREAM_STDERR: LogStream
LOG_STREAM_PLATFORM: LogStream
RELOAD_STATE_UNSPECIFIED: ReloadState
RELOAD_STATE_RUNNING: ReloadState
RELOAD_STATE_DONE: ReloadState
RELOAD_STATE_FAILED: ReloadState

class FunctionSpec(_message.Message):
    __slots__ = ("name", "version", "image", "contract", "kind", "command", "args", "env", "secrets", "mounts", "port", "user", "memory_mb", "cpu_millis", "pids", "disk_mb", "timeout_s", "startup_timeout_s", "concurrency", "max_queue", "queue_timeout_s", "environment", "scaling", "hooks", "health_check", "egress", "acceleration", "registry", "async_calls", "on_client_cancel", "labels", "wait_for_image", "init", "pull")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLIS_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    DISK_MB_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    STARTUP_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    HOOKS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_CHECK_FIELD_NUMBER: _ClassVar[int]
    EGRESS_FIELD_NUMBER: _ClassVar[int]
    ACCELERATION_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    ASYNC_CALLS_FIELD_NUMBER: _ClassVar[int]
    ON_CLIENT_CANCEL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FOR_IMAGE_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    image: str
    contract: str
    kind: str
    command: _containers.RepeatedScalarFieldContainer[str]
    args: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.ScalarMap[str, str]
    secrets: _containers.RepeatedCompositeFieldContainer[Secret]
    mounts: _containers.RepeatedCompositeFieldContainer[VolumeMount]
    port: int
    user: str
    memory_mb: int
    cpu_millis: int
    pids: int
    disk_mb: int
    timeout_s: float
    startup_timeout_s: float
    concurrency: int
    max_queue: int
    queue_timeout_s: float
    environment: str
    scaling: Scaling
    hooks: Hooks
    health_check: HealthCheck
    egress: _containers.RepeatedScalarFieldContainer[str]
    acceleration: str
    registry: Registry
    async_calls: AsyncCalls
    on_client_cancel: str
    labels: _containers.ScalarMap[str, str]
    wait_for_image: bool
    init: str
    pull: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., image: _Optional[str] = ..., contract: _Optional[str] = ..., kind: _Optional[str] = ..., command: _Optional[_Iterable[str]] = ..., args: _Optional[_Iterable[str]] = ..., env: _Optional[_Mapping[str, str]] = ..., secrets: _Optional[_Iterable[_Union[Secret, _Mapping]]] = ..., mounts: _Optional[_Iterable[_Union[VolumeMount, _Mapping]]] = ..., port: _Optional[int] = ..., user: _Optional[str] = ..., memory_mb: _Optional[int] = ..., cpu_millis: _Optional[int] = ..., pids: _Optional[int] = ..., disk_mb: _Optional[int] = ..., timeout_s: _Optional[float] = ..., startup_timeout_s: _Optional[float] = ..., concurrency: _Optional[int] = ..., max_queue: _Optional[int] = ..., queue_timeout_s: _Optional[float] = ..., environment: _Optional[str] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ..., hooks: _Optional[_Union[Hooks, _Mapping]] = ..., health_check: _Optional[_Union[HealthCheck, _Mapping]] = ..., egress: _Optional[_Iterable[str]] = ..., acceleration: _Optional[str] = ..., registry: _Optional[_Union[Registry, _Mapping]] = ..., async_calls: _Optional[_Union[AsyncCalls, _Mapping]] = ..., on_client_cancel: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., wait_for_image: _Optional[bool] = ..., init: _Optional[str] = ..., pull: _Optional[str] = ...) -> None: ...

class Secret(_message.Message):
    __slots__ = ("name", "value", "file")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    file: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ..., file: _Optional[str] = ...) -> None: ...

class VolumeMount(_message.Message):
    __slots__ = ("volume", "target", "read_only")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    volume: str
    target: str
    read_only: bool
    def __init__(self, volume: _Optional[str] = ..., target: _Optional[str] = ..., read_only: _Optional[bool] = ...) -> None: ...

class Scaling(_message.Message):
    __slots__ = ("min", "max", "standby", "idle_s", "freeze_after_ms", "never_freeze")
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    STANDBY_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    FREEZE_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    NEVER_FREEZE_FIELD_NUMBER: _ClassVar[int]
    min: int
    max: int
    standby: int
    idle_s: float
    freeze_after_ms: int
    never_freeze: bool
    def __init__(self, min: _Optional[int] = ..., max: _Optional[int] = ..., standby: _Optional[int] = ..., idle_s: _Optional[float] = ..., freeze_after_ms: _Optional[int] = ..., never_freeze: _Optional[bool] = ...) -> None: ...

class Hooks(_message.Message):
    __slots__ = ("initialize", "pre_stop", "pre_freeze")
    INITIALIZE_FIELD_NUMBER: _ClassVar[int]
    PRE_STOP_FIELD_NUMBER: _ClassVar[int]
    PRE_FREEZE_FIELD_NUMBER: _ClassVar[int]
    initialize: Hook
    pre_stop: Hook
    pre_freeze: Hook
    def __init__(self, initialize: _Optional[_Union[Hook, _Mapping]] = ..., pre_stop: _Optional[_Union[Hook, _Mapping]] = ..., pre_freeze: _Optional[_Union[Hook, _Mapping]] = ...) -> None: ...

class Hook(_message.Message):
    __slots__ = ("path", "timeout_s")
    PATH_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    path: str
    timeout_s: float
    def __init__(self, path: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class HealthCheck(_message.Message):
    __slots__ = ("path", "initial_delay_s", "period_s", "timeout_s", "failure_threshold", "success_threshold")
    PATH_FIELD_NUMBER: _ClassVar[int]
    INITIAL_DELAY_S_FIELD_NUMBER: _ClassVar[int]
    PERIOD_S_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    FAILURE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    path: str
    initial_delay_s: float
    period_s: float
    timeout_s: float
    failure_threshold: int
    success_threshold: int
    def __init__(self, path: _Optional[str] = ..., initial_delay_s: _Optional[float] = ..., period_s: _Optional[float] = ..., timeout_s: _Optional[float] = ..., failure_threshold: _Optional[int] = ..., success_threshold: _Optional[int] = ...) -> None: ...

class Registry(_message.Message):
    __slots__ = ("username", "password", "identity_token", "ca_pem", "credential_command")
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CA_PEM_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_COMMAND_FIELD_NUMBER: _ClassVar[int]
    username: str
    password: str
    identity_token: str
    ca_pem: str
    credential_command: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, username: _Optional[str] = ..., password: _Optional[str] = ..., identity_token: _Optional[str] = ..., ca_pem: _Optional[str] = ..., credential_command: _Optional[_Iterable[str]] = ...) -> None: ...

class AsyncCalls(_message.Message):
    __slots__ = ("max_retries", "max_age_s", "on_success", "on_failure")
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_S_FIELD_NUMBER: _ClassVar[int]
    ON_SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ON_FAILURE_FIELD_NUMBER: _ClassVar[int]
    max_retries: int
    max_age_s: float
    on_success: str
    on_failure: str
    def __init__(self, max_retries: _Optional[int] = ..., max_age_s: _Optional[float] = ..., on_success: _Optional[str] = ..., on_failure: _Optional[str] = ...) -> None: ...

class GroupSpec(_message.Message):
    __slots__ = ("name", "services", "rewrites")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    REWRITES_FIELD_NUMBER: _ClassVar[int]
    name: str
    services: _containers.RepeatedCompositeFieldContainer[FunctionSpec]
    rewrites: _containers.RepeatedCompositeFieldContainer[Rewrite]
    def __init__(self, name: _Optional[str] = ..., services: _Optional[_Iterable[_Union[FunctionSpec, _Mapping]]] = ..., rewrites: _Optional[_Iterable[_Union[Rewrite, _Mapping]]] = ...) -> None: ...

class Rewrite(_message.Message):
    __slots__ = ("source", "destination")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    source: str
    destination: str
    def __init__(self, source: _Optional[str] = ..., destination: _Optional[str] = ...) -> None: ...

class FunctionVersion(_message.Message):
    __slots__ = ("name", "version", "spec", "state", "reason", "image_digest", "created_at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    spec: FunctionSpec
    state: VersionState
    reason: str
    image_digest: str
    created_at: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., spec: _Optional[_Union[FunctionSpec, _Mapping]] = ..., state: _Optional[_Union[VersionState, str]] = ..., reason: _Optional[str] = ..., image_digest: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Function(_message.Message):
    __slots__ = ("name", "latest", "versions", "instances")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    name: str
    latest: FunctionVersion
    versions: _containers.RepeatedCompositeFieldContainer[FunctionVersion]
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    def __init__(self, name: _Optional[str] = ..., latest: _Optional[_Union[FunctionVersion, _Mapping]] = ..., versions: _Optional[_Iterable[_Union[FunctionVersion, _Mapping]]] = ..., instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ...) -> None: ...

class Instance(_message.Message):
    __slots__ = ("id", "function", "version", "state", "inflight", "created_at", "cold_start")
    ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    COLD_START_FIELD_NUMBER: _ClassVar[int]
    id: str
    function: str
    version: int
    state: InstanceState
    inflight: int
    created_at: _timestamp_pb2.Timestamp
    cold_start: ColdStart
    def __init__(self, id: _Optional[str] = ..., function: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[InstanceState, str]] = ..., inflight: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cold_start: _Optional[_Union[ColdStart, _Mapping]] = ...) -> None: ...

class ColdStart(_message.Message):
    __slots__ = ("total", "phases", "bytes_pulled", "cached", "bytes_cached", "pull")
    class Phases(_message.Message):
        __slots__ = ("queue", "image", "slots", "create", "start", "listen", "init")
        QUEUE_FIELD_NUMBER: _ClassVar[int]
        IMAGE_FIELD_NUMBER: _ClassVar[int]
        SLOTS_FIELD_NUMBER: _ClassVar[int]
        CREATE_FIELD_NUMBER: _ClassVar[int]
        START_FIELD_NUMBER: _ClassVar[int]
        LISTEN_FIELD_NUMBER: _ClassVar[int]
        INIT_FIELD_NUMBER: _ClassVar[int]
        queue: _duration_pb2.Duration
        image: _duration_pb2.Duration
        slots: _duration_pb2.Duration
        create: _duration_pb2.Duration
        start: _duration_pb2.Duration
        listen: _duration_pb2.Duration
        init: _duration_pb2.Duration
        def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., image: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., slots: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., create: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., start: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., listen: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., init: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PULLED_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    BYTES_CACHED_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    total: _duration_pb2.Duration
    phases: ColdStart.Phases
    bytes_pulled: int
    cached: _containers.RepeatedScalarFieldContainer[str]
    bytes_cached: int
    pull: _duration_pb2.Duration
    def __init__(self, total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., phases: _Optional[_Union[ColdStart.Phases, _Mapping]] = ..., bytes_pulled: _Optional[int] = ..., cached: _Optional[_Iterable[str]] = ..., bytes_cached: _Optional[int] = ..., pull: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Meters(_message.Message):
    __slots__ = ("wall", "billed", "memory_gb_s", "cpu", "cpu_exact", "peak_memory_bytes", "pull", "pull_gb_s")
    WALL_FIELD_NUMBER: _ClassVar[int]
    BILLED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_GB_S_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    CPU_EXACT_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    PULL_GB_S_FIELD_NUMBER: _ClassVar[int]
    wall: _duration_pb2.Duration
    billed: _duration_pb2.Duration
    memory_gb_s: float
    cpu: _duration_pb2.Duration
    cpu_exact: bool
    peak_memory_bytes: int
    pull: _duration_pb2.Duration
    pull_gb_s: float
    def __init__(self, wall: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., billed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., memory_gb_s: _Optional[float] = ..., cpu: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cpu_exact: _Optional[bool] = ..., peak_memory_bytes: _Optional[int] = ..., pull: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., pull_gb_s: _Optional[float] = ...) -> None: ...

class DeployRequest(_message.Message):
    __slots__ = ("spec", "group", "wait")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    spec: FunctionSpec
    group: GroupSpec
    wait: bool
    def __init__(self, spec: _Optional[_Union[FunctionSpec, _Mapping]] = ..., group: _Optional[_Union[GroupSpec, _Mapping]] = ..., wait: _Optional[bool] = ...) -> None: ...

class DeployResponse(_message.Message):
    __slots__ = ("version", "created", "warnings", "services")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    version: FunctionVersion
    created: bool
    warnings: _containers.RepeatedScalarFieldContainer[str]
    services: _containers.RepeatedCompositeFieldContainer[FunctionVersion]
    def __init__(self, version: _Optional[_Union[FunctionVersion, _Mapping]] = ..., created: _Optional[bool] = ..., warnings: _Optional[_Iterable[str]] = ..., services: _Optional[_Iterable[_Union[FunctionVersion, _Mapping]]] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("name", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("name", "qualifier")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUALIFIER_FIELD_NUMBER: _ClassVar[int]
    name: str
    qualifier: str
    def __init__(self, name: _Optional[str] = ..., qualifier: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("functions", "next_page_token")
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    functions: _containers.RepeatedCompositeFieldContainer[Function]
    next_page_token: str
    def __init__(self, functions: _Optional[_Iterable[_Union[Function, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListInstancesRequest(_message.Message):
    __slots__ = ("function",)
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    function: str
    def __init__(self, function: _Optional[str] = ...) -> None: ...

class ListInstancesResponse(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    def __init__(self, instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ...) -> None: ...

class SetScalingRequest(_message.Message):
    __slots__ = ("name", "qualifier", "scaling")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUALIFIER_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    name: str
    qualifier: str
    scaling: Scaling
    def __init__(self, name: _Optional[str] = ..., qualifier: _Optional[str] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ...) -> None: ...

class SetCredentialsRequest(_message.Message):
    __slots__ = ("function", "registry", "expires_at")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    function: FunctionCredentials
    registry: RegistryCredentials
    expires_at: _timestamp_pb2.Timestamp
    def __init__(self, function: _Optional[_Union[FunctionCredentials, _Mapping]] = ..., registry: _Optional[_Union[RegistryCredentials, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class FunctionCredentials(_message.Message):
    __slots__ = ("name", "access_key_id", "access_key_secret", "security_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACCESS_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ACCESS_KEY_SECRET_FIELD_NUMBER: _ClassVar[int]
    SECURITY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    access_key_id: str
    access_key_secret: str
    security_token: str
    def __init__(self, name: _Optional[str] = ..., access_key_id: _Optional[str] = ..., access_key_secret: _Optional[str] = ..., security_token: _Optional[str] = ...) -> None: ...

class RegistryCredentials(_message.Message):
    __slots__ = ("host", "username", "password", "identity_token")
    HOST_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    host: str
    username: str
    password: str
    identity_token: str
    def __init__(self, host: _Optional[str] = ..., username: _Optional[str] = ..., password: _Optional[str] = ..., identity_token: _Optional[str] = ...) -> None: ...

class SetCredentialsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PrepareImageRequest(_message.Message):
    __slots__ = ("image", "acceleration", "registry")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ACCELERATION_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    image: str
    acceleration: str
    registry: Registry
    def __init__(self, image: _Optional[str] = ..., acceleration: _Optional[str] = ..., registry: _Optional[_Union[Registry, _Mapping]] = ...) -> None: ...

class ImageProgress(_message.Message):
    __slots__ = ("phase", "name", "bytes", "total_bytes", "done", "image_bytes", "image_total_bytes", "layers_done", "layers", "eta", "warnings")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_DONE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    name: str
    bytes: int
    total_bytes: int
    done: Image
    image_bytes: int
    image_total_bytes: int
    layers_done: int
    layers: int
    eta: _duration_pb2.Duration
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, phase: _Optional[str] = ..., name: _Optional[str] = ..., bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., done: _Optional[_Union[Image, _Mapping]] = ..., image_bytes: _Optional[int] = ..., image_total_bytes: _Optional[int] = ..., layers_done: _Optional[int] = ..., layers: _Optional[int] = ..., eta: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ImportImageRequest(_message.Message):
    __slots__ = ("header", "chunk")
    class ImportHeader(_message.Message):
        __slots__ = ("name", "size_bytes", "all")
        NAME_FIELD_NUMBER: _ClassVar[int]
        SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
        ALL_FIELD_NUMBER: _ClassVar[int]
        name: str
        size_bytes: int
        all: bool
        def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., all: _Optional[bool] = ...) -> None: ...
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ImportImageRequest.ImportHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ImportImageRequest.ImportHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ImportImageResponse(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("name", "digest", "size_bytes", "created_at", "used_by", "unpacked_bytes", "form", "used_at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    USED_BY_FIELD_NUMBER: _ClassVar[int]
    UNPACKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    USED_AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    size_bytes: int
    created_at: _timestamp_pb2.Timestamp
    used_by: _containers.RepeatedScalarFieldContainer[str]
    unpacked_bytes: int
    form: str
    used_at: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., used_by: _Optional[_Iterable[str]] = ..., unpacked_bytes: _Optional[int] = ..., form: _Optional[str] = ..., used_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListImagesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListImagesResponse(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class InspectImageRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ImageDetail(_message.Message):
    __slots__ = ("image", "media_type", "config_digest", "config", "layers")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    image: Image
    media_type: str
    config_digest: str
    config: str
    layers: _containers.RepeatedCompositeFieldContainer[ImageLayer]
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., media_type: _Optional[str] = ..., config_digest: _Optional[str] = ..., config: _Optional[str] = ..., layers: _Optional[_Iterable[_Union[ImageLayer, _Mapping]]] = ...) -> None: ...

class ImageLayer(_message.Message):
    __slots__ = ("digest", "media_type", "size_bytes", "unpacked_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNPACKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    media_type: str
    size_bytes: int
    unpacked_bytes: int
    def __init__(self, digest: _Optional[str] = ..., media_type: _Optional[str] = ..., size_bytes: _Optional[int] = ..., unpacked_bytes: _Optional[int] = ...) -> None: ...

class CollectGarbageRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: _Optional[bool] = ...) -> None: ...

class CollectGarbageResponse(_message.Message):
    __slots__ = ("removed", "freed_bytes", "freed_files", "used_bytes", "used_files", "max_bytes", "max_files")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREED_FILES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_FILES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FILES_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedCompositeFieldContainer[Garbage]
    freed_bytes: int
    freed_files: int
    used_bytes: int
    used_files: int
    max_bytes: int
    max_files: int
    def __init__(self, removed: _Optional[_Iterable[_Union[Garbage, _Mapping]]] = ..., freed_bytes: _Optional[int] = ..., freed_files: _Optional[int] = ..., used_bytes: _Optional[int] = ..., used_files: _Optional[int] = ..., max_bytes: _Optional[int] = ..., max_files: _Optional[int] = ...) -> None: ...

class Garbage(_message.Message):
    __slots__ = ("kind", "name", "freed_bytes", "freed_files")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREED_FILES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    freed_bytes: int
    freed_files: int
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., freed_bytes: _Optional[int] = ..., freed_files: _Optional[int] = ...) -> None: ...

class RemoveImageRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveImageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AccelerateImageRequest(_message.Message):
    __slots__ = ("image", "registry")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    image: str
    registry: Registry
    def __init__(self, image: _Optional[str] = ..., registry: _Optional[_Union[Registry, _Mapping]] = ...) -> None: ...

class AccelerateImageResponse(_message.Message):
    __slots__ = ("index_digest", "engine")
    INDEX_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    index_digest: str
    engine: str
    def __init__(self, index_digest: _Optional[str] = ..., engine: _Optional[str] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class InvokeRequest(_message.Message):
    __slots__ = ("name", "qualifier", "kind", "method", "path", "headers", "body", "request_id", "log_tail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUALIFIER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ASYNC_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    qualifier: str
    kind: str
    method: str
    path: str
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    body: bytes
    request_id: str
    log_tail: bool
    def __init__(self, name: _Optional[str] = ..., qualifier: _Optional[str] = ..., kind: _Optional[str] = ..., method: _Optional[str] = ..., path: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., body: _Optional[bytes] = ..., request_id: _Optional[str] = ..., log_tail: _Optional[bool] = ..., **kwargs) -> None: ...

class InvokeResponse(_message.Message):
    __slots__ = ("request_id", "status", "headers", "body", "cold_start", "meters", "log_tail", "instance", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    COLD_START_FIELD_NUMBER: _ClassVar[int]
    METERS_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    status: int
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    body: bytes
    cold_start: ColdStart
    meters: Meters
    log_tail: bytes
    instance: str
    error: CallError
    def __init__(self, request_id: _Optional[str] = ..., status: _Optional[int] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., body: _Optional[bytes] = ..., cold_start: _Optional[_Union[ColdStart, _Mapping]] = ..., meters: _Optional[_Union[Meters, _Mapping]] = ..., log_tail: _Optional[bytes] = ..., instance: _Optional[str] = ..., error: _Optional[_Union[CallError, _Mapping]] = ...) -> None: ...

class CallError(_message.Message):
    __slots__ = ("kind", "fault", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    fault: str
    message: str
    def __init__(self, kind: _Optional[str] = ..., fault: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RunJobRequest(_message.Message):
    __slots__ = ("name", "qualifier", "event", "wait", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUALIFIER_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    qualifier: str
    event: bytes
    wait: bool
    request_id: str
    def __init__(self, name: _Optional[str] = ..., qualifier: _Optional[str] = ..., event: _Optional[bytes] = ..., wait: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("id", "function", "version", "instance", "state", "accepted_at", "started_at", "ended_at", "status", "exit_code", "error", "meters", "attempts", "cold_start")
    ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    METERS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    COLD_START_FIELD_NUMBER: _ClassVar[int]
    id: str
    function: str
    version: int
    instance: str
    state: CallState
    accepted_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    status: int
    exit_code: int
    error: str
    meters: Meters
    attempts: int
    cold_start: ColdStart
    def __init__(self, id: _Optional[str] = ..., function: _Optional[str] = ..., version: _Optional[int] = ..., instance: _Optional[str] = ..., state: _Optional[_Union[CallState, str]] = ..., accepted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., status: _Optional[int] = ..., exit_code: _Optional[int] = ..., error: _Optional[str] = ..., meters: _Optional[_Union[Meters, _Mapping]] = ..., attempts: _Optional[int] = ..., cold_start: _Optional[_Union[ColdStart, _Mapping]] = ...) -> None: ...

class GetCallRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class StopCallRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("name", "instance", "call", "follow", "tail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    instance: str
    call: str
    follow: bool
    tail: int
    def __init__(self, name: _Optional[str] = ..., instance: _Optional[str] = ..., call: _Optional[str] = ..., follow: _Optional[bool] = ..., tail: _Optional[int] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("time", "stream", "function", "version", "instance", "text", "partial", "call", "shared", "dropped")
    TIME_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    stream: LogStream
    function: str
    version: int
    instance: str
    text: bytes
    partial: bool
    call: str
    shared: bool
    dropped: int
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stream: _Optional[_Union[LogStream, str]] = ..., function: _Optional[str] = ..., version: _Optional[int] = ..., instance: _Optional[str] = ..., text: _Optional[bytes] = ..., partial: _Optional[bool] = ..., call: _Optional[str] = ..., shared: _Optional[bool] = ..., dropped: _Optional[int] = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("resume_token", "functions")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    functions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, resume_token: _Optional[str] = ..., functions: _Optional[_Iterable[str]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("token", "time", "type", "function", "version", "instance", "call", "message", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    token: str
    time: _timestamp_pb2.Timestamp
    type: str
    function: str
    version: int
    instance: str
    call: str
    message: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, token: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., type: _Optional[str] = ..., function: _Optional[str] = ..., version: _Optional[int] = ..., instance: _Optional[str] = ..., call: _Optional[str] = ..., message: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetNodeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "region", "version", "started_at", "draining", "capacity", "components", "contracts", "features", "labels", "summary", "reload", "form", "form_reason")
    class ComponentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    CONTRACTS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    RELOAD_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    FORM_REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    region: str
    version: str
    started_at: _timestamp_pb2.Timestamp
    draining: bool
    capacity: Capacity
    components: _containers.ScalarMap[str, str]
    contracts: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.ScalarMap[str, str]
    summary: str
    reload: Reload
    form: str
    form_reason: str
    def __init__(self, name: _Optional[str] = ..., region: _Optional[str] = ..., version: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., draining: _Optional[bool] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., components: _Optional[_Mapping[str, str]] = ..., contracts: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., summary: _Optional[str] = ..., reload: _Optional[_Union[Reload, _Mapping]] = ..., form: _Optional[str] = ..., form_reason: _Optional[str] = ...) -> None: ...

class Reload(_message.Message):
    __slots__ = ("number", "state", "reason")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    number: int
    state: ReloadState
    reason: str
    def __init__(self, number: _Optional[int] = ..., state: _Optional[_Union[ReloadState, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class WatchCapacityRequest(_message.Message):
    __slots__ = ("min_interval",)
    MIN_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    min_interval: _duration_pb2.Duration
    def __init__(self, min_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Capacity(_message.Message):
    __slots__ = ("time", "memory_bytes", "memory_used_bytes", "cpu_millis", "cpu_used_millis", "instances", "instances_used", "free_layers", "inflight", "queued", "draining", "image_free_bytes")
    class FreeLayersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    TIME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLIS_FIELD_NUMBER: _ClassVar[int]
    CPU_USED_MILLIS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_USED_FIELD_NUMBER: _ClassVar[int]
    FREE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    memory_bytes: int
    memory_used_bytes: int
    cpu_millis: int
    cpu_used_millis: int
    instances: int
    instances_used: int
    free_layers: _containers.ScalarMap[int, int]
    inflight: int
    queued: int
    draining: bool
    image_free_bytes: int
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., memory_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., cpu_millis: _Optional[int] = ..., cpu_used_millis: _Optional[int] = ..., instances: _Optional[int] = ..., instances_used: _Optional[int] = ..., free_layers: _Optional[_Mapping[int, int]] = ..., inflight: _Optional[int] = ..., queued: _Optional[int] = ..., draining: _Optional[bool] = ..., image_free_bytes: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout",)
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    timeout: _duration_pb2.Duration
    def __init__(self, timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("inflight",)
    INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    inflight: int
    def __init__(self, inflight: _Optional[int] = ...) -> None: ...

class UndrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UndrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class PullUsageRequest(_message.Message):
    __slots__ = ("max_records",)
    MAX_RECORDS_FIELD_NUMBER: _ClassVar[int]
    max_records: int
    def __init__(self, max_records: _Optional[int] = ...) -> None: ...

class PullUsageResponse(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[UsageRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[UsageRecord, _Mapping]]] = ...) -> None: ...

class UsageRecord(_message.Message):
    __slots__ = ("sequence", "function", "version", "contract", "instance", "call", "start", "end", "meters", "calls", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    METERS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    function: str
    version: int
    contract: str
    instance: str
    call: str
    start: _timestamp_pb2.Timestamp
    end: _timestamp_pb2.Timestamp
    meters: Meters
    calls: int
    labels: _containers.ScalarMap[str, str]
    def __init__(self, sequence: _Optional[int] = ..., function: _Optional[str] = ..., version: _Optional[int] = ..., contract: _Optional[str] = ..., instance: _Optional[str] = ..., call: _Optional[str] = ..., start: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., meters: _Optional[_Union[Meters, _Mapping]] = ..., calls: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AckUsageRequest(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class AckUsageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
