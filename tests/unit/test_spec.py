"""FunctionSpec: defaults, every rule with its way out, all problems at once, stable bytes."""

from __future__ import annotations

import datetime
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import InvalidSpec, Problem
from agent.model.limits import LIMITS
from agent.model.spec import FunctionSpec, canonical, digest, public
from agent.model.spec_parse import parse_spec, restored

MINIMAL = {"name": "hello", "image": "kindling.local/hello-event:1", "contract": "fc"}
FIELDS = [
    *("name", "version", "image", "contract", "kind", "command", "args", "env", "secrets"),
    *("mounts", "port", "user", "memory_mb", "cpu_millis", "pids", "disk_mb", "timeout_s"),
    *("startup_timeout_s", "concurrency", "max_queue", "queue_timeout_s", "environment"),
    *(
        "scaling",
        "hooks",
        "health_check",
        "egress",
        "acceleration",
        "pull",
        "registry",
        "async_calls",
    ),
    *("on_client_cancel", "labels", "init", "wait_for_image"),
]


def spec(**fields: object) -> FunctionSpec:
    return parse_spec({**MINIMAL, **fields})


def problems(**fields: object) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as error:
        spec(**fields)
    return {problem.field: problem.message for problem in error.value.problems}


def test_the_fields_are_those_of_the_design():
    assert list(FunctionSpec.model_fields) == FIELDS


@pytest.mark.parametrize(
    ("contract", "kind", "port", "timeout_s", "start_s", "concurrency", "idle_s"),
    [
        ("fc", "event", 9000, 60, 120, 1, 300),
        ("fc2", "event", 9000, 60, 120, 1, 300),
        ("scf-web", "http", 9000, 60, 30, 1, 300),
        ("scf-job", "job", 0, 86400, 120, 1, 300),
        ("vercel", "http", 80, 300, 120, 100, 300),
    ],
)
def test_defaults_are_the_contracts(contract, kind, port, timeout_s, start_s, concurrency, idle_s):
    s = spec(contract=contract)
    assert (s.kind, s.port, s.timeout_s) == (kind, port, timeout_s)
    assert (s.startup_timeout_s, s.concurrency, s.scaling.idle_s) == (start_s, concurrency, idle_s)
    assert (s.memory_mb, s.disk_mb, s.egress, s.env) == (512, 512, "all", {})


def test_a_preview_of_vercel_is_released_sooner():
    assert spec(contract="vercel", environment="preview").scaling.idle_s == 30


@pytest.mark.parametrize(
    ("fields", "after_ms"),
    [
        ({"contract": "fc"}, 0),
        ({"contract": "fc2", "kind": "http"}, 0),
        ({"contract": "fc2", "kind": "job"}, -1),
        ({"contract": "scf-web"}, -1),
        ({"contract": "scf-job"}, -1),
        ({"contract": "vercel"}, -1),
        ({"contract": "vercel", "scaling": {"freeze_after_ms": 5}}, 5),
        ({"contract": "fc", "scaling": {"freeze_after_ms": -1}}, -1),
        ({"contract": "scf-web", "scaling": {"freeze_after_ms": None}}, -1),
    ],
)
def test_when_an_idle_instance_is_frozen_is_the_contracts_unless_the_spec_says(fields, after_ms):
    assert spec(**fields).scaling.freeze_after_ms == after_ms


def test_less_than_never_is_refused():
    assert "scaling.freeze_after_ms" in problems(scaling={"freeze_after_ms": -2})


def test_a_call_waits_longer_in_the_queue_than_a_start_may_take():
    assert spec().queue_timeout_s > 120
    assert spec(startup_timeout_s=5).queue_timeout_s == 35


@pytest.mark.parametrize("contract", LIMITS)
def test_a_spec_survives_the_store(contract):
    s = spec(contract=contract, version=7, secrets=[{"name": "TOKEN", "value": "s3cret"}])
    assert restored(canonical(s), 7) == s


@pytest.mark.parametrize("value", [True, False])
def test_init_takes_the_boolean_and_its_word(value):
    assert spec(init=value) == spec(init=str(value).lower()) != spec()
    assert spec().init == "auto"


def test_what_means_the_same_is_the_same_bytes():
    plain = spec()
    spelled = spec(kind="event", port=9000, timeout_s=60.0, scaling={"min": 0}, command=None)
    assert canonical(plain) == canonical(spelled)
    assert digest(plain) == digest(spelled)
    assert digest(plain) == digest(spec(version=3))
    assert digest(plain) != digest(spec(memory_mb=1024))


def test_registry_credentials_are_not_in_what_is_stored_nor_in_what_is_shown():
    s = spec(registry={"username": "u5er", "password": "pa55", "identity_token": "t0ken"})
    for text in (canonical(s).decode(), json.dumps(public(s)), repr(s)):
        assert "pa55" not in text
        assert "t0ken" not in text
    assert s.registry.password == "pa55"
    assert digest(s) == digest(spec())


def test_values_of_secrets_are_stored_but_not_shown():
    s = spec(secrets=[{"name": "TOKEN", "value": "s3cret"}])
    assert b"s3cret" in canonical(s)
    assert "s3cret" not in json.dumps(public(s)) + repr(s)
    assert public(s)["secrets"] == [{"name": "TOKEN"}]


def test_all_problems_come_at_once_with_their_paths():
    found = problems(
        name=5,
        image="A B",
        memory_mb="5",
        gpus=1,
        egres="all",
        env={"FC_X": "1", "A": 1.5},
        scaling={"mn": 1, "max": True, "idle_s": -1},
        secrets=[{"nam": "x"}],
        timeout_s=90000,
        hooks={"initialize": {"timeout_s": 301}},
        mounts=[{"volume": "data", "target": "/proc/x"}],
    )
    assert set(found) == {
        "name",
        "image",
        "memory_mb",
        "gpus",
        "egres",
        "env.FC_X",
        "env.A",
        "scaling.mn",
        "scaling.max",
        "scaling.idle_s",
        "secrets[0].nam",
        "secrets[0].name",
        "timeout_s",
        "hooks.initialize.timeout_s",
        "mounts[0].target",
    }


@pytest.mark.parametrize("junk", [None, 5, "name", [], [1], b"\x00\xff"])
def test_what_is_no_table_is_one_clear_error(junk):
    with pytest.raises(InvalidSpec) as error:
        parse_spec(junk)
    assert [p.field for p in error.value.problems] == ["spec"]


def test_an_empty_table_lacks_exactly_what_has_no_default():
    with pytest.raises(InvalidSpec) as error:
        parse_spec({})
    assert [p.field for p in error.value.problems] == ["name", "image", "contract"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("egres", "egress"),
        ("memory", "memory_mb"),
        ("cpu", "cpu_millis"),
        ("timeout", "timeout_s"),
        ("entrypoint", "command"),
        ("max_queu", "max_queue"),
    ],
)
def test_an_unknown_field_is_told_with_the_one_that_was_meant(wrong, right):
    assert f"did you mean {right}?" in problems(**{wrong: "x"})[wrong]


def test_an_unknown_field_deep_down_is_told_with_what_is_there():
    assert "min, max, standby" in problems(scaling={"zzz": 1})["scaling.zzz"]
    found = problems(hooks={"pre_stop": {"path": "/x", "timeot_s": 1}})
    assert "did you mean timeout_s?" in found["hooks.pre_stop.timeot_s"]


@pytest.mark.parametrize("field", ["gpu", "gpus", "gpu_memory_mb", "gpuConfig"])
def test_gpus_are_refused_in_words(field):
    assert "GPU" in problems(**{field: 1})[field]


@pytest.mark.parametrize(
    ("fields", "field", "word"),
    [
        ({"name": ""}, "name", "64"),
        ({"name": "1a"}, "name", "start"),
        ({"name": "a" * 65}, "name", "64"),
        ({"name": "a/b"}, "name", "64"),
        ({"name": "ä"}, "name", "64"),
        ({"version": 0}, "version", "1 to"),
        ({"image": ""}, "image", "reference"),
        ({"image": "host/Upper:1"}, "image", "lower case"),
        ({"image": "a@sha256:12"}, "image", "reference"),
        ({"memory_mb": 127}, "memory_mb", "128 to 32768"),
        ({"memory_mb": 32769}, "memory_mb", "128 to 32768"),
        ({"memory_mb": 10**30}, "memory_mb", "128 to 32768"),
        ({"memory_mb": 512.5}, "memory_mb", "whole number"),
        ({"memory_mb": True}, "memory_mb", "whole number"),
        ({"cpu_millis": 0}, "cpu_millis", "50 to"),
        ({"disk_mb": 1024}, "disk_mb", "512 or 10240"),
        ({"pids": 1025}, "pids", "16 to 1024"),
        ({"timeout_s": 0}, "timeout_s", "1 to 86400"),
        ({"timeout_s": float("nan")}, "timeout_s", "number"),
        ({"timeout_s": float("inf")}, "timeout_s", "number"),
        ({"timeout_s": "60"}, "timeout_s", "without quotes"),
        ({"startup_timeout_s": 121}, "startup_timeout_s", "120"),
        ({"concurrency": 2}, "concurrency", "kind http"),
        ({"kind": "http", "concurrency": 201}, "concurrency", "1 to 200"),
        ({"kind": "job"}, "kind", "event or http"),
        ({"kind": "cron"}, "kind", "'event', 'http', 'job'"),
        ({"contract": "lambda"}, "contract", "'scf-web'"),
        ({"port": 0}, "port", "1 to 65535"),
        ({"port": 70000}, "port", "1 to 65535"),
        ({"max_queue": 0}, "max_queue", "1 to"),
        ({"environment": "test"}, "environment", "'preview'"),
        ({"acceleration": "fast"}, "acceleration", "'lazy'"),
        ({"pull": "sometimes"}, "pull", "'always'"),
        ({"init": "tini"}, "init", "'auto', 'true', 'false'"),
        ({"init": 1}, "init", "'auto', 'true', 'false'"),
        ({"on_client_cancel": "die"}, "on_client_cancel", "'recycle'"),
        ({"scaling": {"min": 5, "max": 4}}, "scaling.min", "raise max"),
        ({"scaling": {"standby": 5, "max": 4}}, "scaling.standby", "raise max"),
        ({"scaling": 5}, "scaling", "table"),
        ({"env": {"1A": "x"}}, "env.1A", "digit"),
        ({"env": {"A=B": "x"}}, "env.A=B", "letters"),
        ({"env": {"SCF_X": "x"}}, "env.SCF_X", "reserved"),
        ({"env": {"TENCENTCLOUD_X": "x"}}, "env.TENCENTCLOUD_X", "rename"),
        ({"env": {"A": "x\0y"}}, "env.A", "NUL"),
        ({"env": {"A": "x" * 4096}}, "env", "4096"),
        ({"env": ["A=1"]}, "env", "table"),
        ({"args": "x"}, "args", "list"),
        ({"args": ["x", 5]}, "args[1]", "text"),
        ({"args": ["x", "y" * 131072]}, "args[1]", "131072"),
        ({"command": []}, "command", "image's own"),
        ({"user": "a b"}, "user", "number"),
        ({"secrets": [{"name": "A"}]}, "secrets[0]", "exactly one"),
        ({"secrets": [{"name": "A", "value": "1", "file": "/x"}]}, "secrets[0]", "exactly one"),
        ({"secrets": [{"name": "FC_A", "value": "1"}]}, "secrets[0].name", "reserved"),
        ({"secrets": [{"name": "A", "file": "x/../y"}]}, "secrets[0].file", "absolute"),
        ({"mounts": [{"volume": "/etc", "target": "/x"}]}, "mounts[0].volume", "[volumes]"),
        ({"mounts": [{"volume": "nas://x", "target": "/x"}]}, "mounts[0].volume", "nas://x"),
        ({"mounts": [{"volume": "v", "target": "x"}]}, "mounts[0].target", "absolute"),
        ({"mounts": [{"volume": "v", "target": "/"}]}, "mounts[0].target", "below /"),
        ({"mounts": [{"volume": "v", "target": "/a/../b"}]}, "mounts[0].target", ".."),
        ({"mounts": [{"volume": "v", "target": "/dev"}]}, "mounts[0].target", "/dev"),
        ({"egress": "some"}, "egress", "CIDR"),
        ({"egress": []}, "egress", "none"),
        ({"egress": ["10.0.0.1/8"]}, "egress[0]", "host bits"),
        ({"egress": ["all"]}, "egress[0]", "10.0.0.0/8"),
        ({"hooks": {"pre_freeze": {}}}, "hooks.pre_freeze", "no such hook"),
        ({"hooks": {"initialize": {"path": "x"}}}, "hooks.initialize.path", "path"),
        ({"hooks": {"initialize": {"path": "/a b"}}}, "hooks.initialize.path", "ASCII"),
        ({"health_check": {"path": "/", "period_s": 0}}, "health_check.period_s", "1 to 120"),
        ({"health_check": {}}, "health_check.path", "missing"),
        ({"async_calls": {"max_retries": 9}}, "async_calls.max_retries", "0 to 8"),
        ({"async_calls": {"on_success": "ftp://x"}}, "async_calls.on_success", "http"),
        ({"async_calls": {"on_failure": "http://[::1"}}, "async_calls.on_failure", "http"),
        ({"labels": {"a b": "x"}}, "labels.a b", "label"),
        ({"labels": {"a": datetime.date(2026, 1, 1)}}, "labels.a", "text in quotes"),
        ({"labels": {"a": "\ud800"}}, "labels.a", "UTF-8"),
    ],
)
def test_each_rule_names_the_field_and_the_way_out(fields, field, word):
    found = problems(**fields)
    assert list(found) == [field]
    assert word in found[field]


@pytest.mark.parametrize(
    ("contract", "fields", "field"),
    [
        ("scf-web", {"port": 8080}, "port"),
        ("scf-web", {"timeout_s": 901}, "timeout_s"),
        ("scf-web", {"startup_timeout_s": 31}, "startup_timeout_s"),
        ("scf-web", {"disk_mb": 10240}, "disk_mb"),
        ("scf-web", {"hooks": {"pre_stop": {}}}, "hooks.pre_stop"),
        ("scf-web", {"kind": "job"}, "kind"),
        ("scf-job", {"kind": "event"}, "kind"),
        ("scf-job", {"port": 9000}, "port"),
        ("scf-job", {"concurrency": 2}, "concurrency"),
        ("scf-job", {"scaling": {"min": 1}}, "scaling.min"),
        ("scf-job", {"scaling": {"standby": 1}}, "scaling.standby"),
        ("scf-job", {"health_check": {"path": "/"}}, "health_check"),
        ("vercel", {"timeout_s": 801}, "timeout_s"),
        ("vercel", {"concurrency": 1001}, "concurrency"),
        ("vercel", {"kind": "event"}, "kind"),
        ("vercel", {"env": {"PORT": "8080"}, "port": 3000}, "env.PORT"),
        ("vercel", {"env": {"PORT": "99999"}}, "port"),
        ("vercel", {"env": {"PORT": "abc"}}, "env.PORT"),
        ("fc2", {"disk_mb": 10240}, "disk_mb"),
        ("fc2", {"kind": "job", "port": 9000}, "port"),
        ("fc2", {"kind": "job", "hooks": {"pre_stop": {}}}, "hooks.pre_stop"),
    ],
)
def test_each_contract_has_its_own_rules(contract, fields, field):
    assert list(problems(contract=contract, **fields)) == [field]


def test_port_of_vercel_comes_from_its_environment():
    assert spec(contract="vercel", env={"PORT": "3000"}).port == 3000
    assert spec(contract="vercel", env={"PORT": 3000}).env == {"PORT": "3000"}


def test_fc2_knows_all_hooks_and_fills_their_paths():
    hooks = spec(contract="fc2", hooks={"initialize": {}, "pre_stop": {}, "pre_freeze": {}}).hooks
    assert hooks.initialize is not None
    assert hooks.pre_stop is not None
    assert hooks.pre_freeze is not None
    paths = (hooks.initialize.path, hooks.pre_stop.path, hooks.pre_freeze.path)
    assert paths == ("/initialize", "/pre-stop", "/pre-freeze")


def test_a_missing_contract_does_not_drag_its_rules_along():
    with pytest.raises(InvalidSpec) as error:
        parse_spec({"name": "a", "image": "b", "kind": "job", "timeout_s": 5000, "port": 1})
    assert [p.field for p in error.value.problems] == ["contract"]


def test_a_version_may_come_as_text_because_json_of_proto_has_it_so():
    assert spec(version="12").version == 12


def test_deep_nesting_is_refused_and_not_followed():
    deep: dict[str, object] = {}
    node = deep
    for _ in range(200):
        node["a"] = {}
        node = node["a"]  # type: ignore[assignment]
    assert "deep" in " ".join(problems(labels=deep).values())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from([*FIELDS, "gpu", "x", ""]), json_values, max_size=8),
    st.sampled_from([*LIMITS, "none"]),
)
def test_junk_of_any_shape_is_a_spec_or_an_invalid_spec(fields, contract):
    found: tuple[Problem, ...] = ()
    try:
        parsed = parse_spec({**MINIMAL, "contract": contract, **fields})
    except InvalidSpec as error:
        found = error.problems
    else:
        assert restored(canonical(parsed), parsed.version or 1).name == parsed.name
        return
    assert found
    assert all(problem.field and problem.message for problem in found)
    paths = [problem.field for problem in found]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"version": "9" * 5000}, "version"),
        ({"memory_mb": 10**5000}, "memory_mb"),
        ({"env": {"A": -(10**5000)}}, "env.A"),
    ],
)
def test_a_number_of_thousands_of_digits_is_a_problem_and_no_crash(fields, field):
    assert list(problems(**fields)) == [field]
