"""docker-compose.yml: valid by the specification's schema, closed where it can be, and true to the program."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import click
import jsonschema
import pytest
import yaml

from cacheproxy.cli import main
from cacheproxy.configure import load
from cacheproxy.policy.loader import load_pack
from cacheproxy.settings import Settings
from tests.support.compose import FILE, GPU_FILE, read, text, variables
from tests.support.dockerfile import stages
from tests.support.markdown import ROOT
from tests.support.markdown import read as document

if TYPE_CHECKING:
    from pathlib import Path

SERVICES: dict[str, dict[str, Any]] = read()["services"]
EACH = pytest.mark.parametrize("name", SERVICES)
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("cacheproxy:"))
PUBLISHED = {"balancer": "127.0.0.1:8080:8080", "grafana": "127.0.0.1:3000:3000"}
# They end by themselves, or have no port to ask; a restart is what their end asks for.
WITHOUT_HEALTH = {"superlink", "node-1", "node-2"}
DEFAULTS = Settings()


def seconds(told: str) -> float:
    return float(told.removesuffix("s"))


def validator() -> Any:
    schema = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what deploy/make-secrets makes."""
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    subprocess.run([ROOT / "deploy/make-secrets", folder], check=True, capture_output=True, timeout=20)
    return folder


def settings_of(service: dict[str, Any], secrets: Path) -> Settings:
    """Return the settings that a container has: the image's variables, the service's, and its command line's."""
    told = {**stages()[-1].environment, **service.get("environment", {})}
    ours = {name: value for name, value in told.items() if name.startswith("CACHEPROXY_")}
    return load(environ={name: value.replace("/run/secrets", str(secrets)) for name, value in ours.items()})


@pytest.mark.parametrize("environ", [{}, dict.fromkeys(variables(), "1")], ids=["nothing set", "all set"])
@pytest.mark.parametrize("names", [(FILE,), (FILE, GPU_FILE), (GPU_FILE,)], ids="+".join)
def test_it_is_valid_by_the_schema_of_the_specification(names: tuple[str, ...], environ: dict[str, str]) -> None:
    assert [error.message for error in validator().iter_errors(read(*names, environ=environ))] == []


@pytest.mark.parametrize("names", [(FILE,), (FILE, GPU_FILE)], ids="+".join)
def test_compose_itself_reads_it(names: tuple[str, ...], secrets: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, timeout=20).returncode:
        pytest.skip("Compose is not installed here: the schema has to do")
    files = [word for name in names for word in ("-f", name)]
    command = [docker, "compose", *files, "--profile", "small-model", "--profile", "federated", "config", "--quiet"]
    environ = {**os.environ, "CACHEPROXY_SECRETS": str(secrets)}
    told = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_the_schema_finds_what_is_wrong() -> None:
    broken = read()
    broken["services"]["proxy"]["healthchek"] = {}
    assert list(validator().iter_errors(broken))


@EACH
def test_every_image_is_of_a_version(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].partition(":")
    assert re.match(r"v?\d+\.\d+", tag), tag


@EACH
def test_every_service_is_shut_in(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert not service.get("privileged")
    assert service["init"] is True


@EACH
def test_every_service_has_its_limits(name: str) -> None:
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["restart"] in ("unless-stopped", "no")


@EACH
def test_every_service_has_a_health_check(name: str) -> None:
    check = SERVICES[name].get("healthcheck", {})
    assert check == {"disable": True} if name in WITHOUT_HEALTH else check["test"][0] == "CMD"


def test_only_the_data_port_and_the_dashboard_are_published_and_only_to_this_machine() -> None:
    assert {name: service["ports"][0] for name, service in SERVICES.items() if "ports" in service} == PUBLISHED
    assert str(DEFAULTS.server.admin_port) not in " ".join(
        port for s in SERVICES.values() for port in s.get("ports", [])
    )


def test_only_what_must_reaches_the_outside() -> None:
    networks = read()["networks"]
    assert [name for name, network in networks.items() if network.get("internal")] == ["inside"]
    open_ones = {name: set(service["networks"]) - {"inside"} for name, service in SERVICES.items()}
    assert {name: nets for name, nets in open_ones.items() if nets} == {
        "balancer": {"front"},
        "grafana": {"front"},
        "proxy": {"out"},
    }
    assert {net for service in SERVICES.values() for net in service["networks"]} == networks.keys()


def test_profiles_are_off_unless_asked_for() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {
        "small-model": ["small-model"],
        "superlink": ["federated"],
        "node-1": ["federated"],
        "node-2": ["federated"],
    }


@EACH
def test_what_is_waited_for_is_there_and_tells_its_health(name: str) -> None:
    for other, told in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        assert told["condition"] == ("service_started" if other in WITHOUT_HEALTH else "service_healthy")


@EACH
def test_volumes_are_declared_and_files_of_ours_are_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, target, *mode = volume.split(":")
        assert target.startswith("/")
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
            assert mode == ["ro"], source
        else:
            assert source in read()["volumes"]


def test_every_volume_is_used() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert read()["volumes"].keys() <= used


@pytest.mark.parametrize("name", OURS)
def test_what_our_image_writes_to_is_its_users_folder(name: str) -> None:
    recipe = (ROOT / "Dockerfile").read_text(encoding="utf-8").partition(" AS runtime")[2]
    for volume in SERVICES[name].get("volumes", []):
        source, target, *mode = volume.split(":")
        if not source.startswith("./") and mode != ["ro"]:  # else a new volume belongs to root, and it cannot write
            assert f"-o 10001 -g 10001 {target}\n" in recipe or f"--chown=10001:10001 {target} {target}\n" in recipe


# Secrets.


def test_secrets_are_files_that_the_script_makes(secrets: Path) -> None:
    declared = read(environ={"CACHEPROXY_SECRETS": str(secrets)})["secrets"]
    for name, secret in declared.items():
        assert secret == {"file": str(secrets / name)}
        assert re.fullmatch(r"[0-9a-f]{64}", (secrets / name).read_text())
    assert {file.name for file in secrets.iterdir()} == declared.keys()


def test_secrets_can_be_read_in_containers_and_by_nobody_else_here(secrets: Path) -> None:
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in secrets.iterdir()} == {0o444}


def test_secrets_that_are_there_stay(secrets: Path) -> None:
    before = {file: file.read_text() for file in secrets.iterdir()}
    told = subprocess.run([ROOT / "deploy/make-secrets", secrets], check=True, capture_output=True, timeout=20)
    assert told.stdout == b""
    assert {file: file.read_text() for file in secrets.iterdir()} == before


@EACH
def test_a_service_has_the_secrets_that_it_names_and_no_other(name: str) -> None:
    service = SERVICES[name]
    mounted = [volume.partition(":")[0] for volume in service.get("volumes", []) if volume.startswith("./deploy/")]
    told = json.dumps(service) + "".join(
        file.read_text() for path in mounted for file in [ROOT / path] if file.is_file()
    )
    assert set(re.findall(r"/run/secrets/(\w+)", told)) == set(service.get("secrets", []))


def test_no_secret_stands_in_the_file() -> None:
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|API_KEY|SECRET", key):
                assert key.endswith("_FILE"), key
                assert value.startswith("/run/secrets/"), key


# The program.


@pytest.mark.parametrize("name", OURS)
def test_the_command_line_knows_the_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command: click.Command = main
    words = list(SERVICES[name]["command"])
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(name, words)


@pytest.mark.parametrize("name", OURS)
def test_variables_are_settings(name: str, secrets: Path) -> None:
    settings_of(SERVICES[name], secrets)


def test_the_proxy_is_a_replica_with_its_own_folder_and_a_guarded_admin_port(secrets: Path) -> None:
    settings = settings_of(SERVICES["proxy"], secrets)
    password = (secrets / "redis_password").read_text()
    assert settings.store.url == f"redis://:{password}@redis:6379/0"
    assert settings.data.shared
    assert f"proxy-data:{settings.data.dir}" in SERVICES["proxy"]["volumes"]
    assert settings.admin.token.reveal() == (secrets / "admin_token").read_text()
    assert settings.admin.read_token.reveal() == (secrets / "read_token").read_text()
    assert (settings.server.host, settings.server.admin_host) == ("0.0.0.0", "0.0.0.0")
    assert "container_name" not in SERVICES["proxy"]  # it would keep it from being scaled


def test_streams_may_end_before_a_container_is_killed() -> None:
    for name in ("proxy", "balancer", "small-model"):
        assert seconds(SERVICES[name]["stop_grace_period"]) > DEFAULTS.server.drain_s


def test_a_backend_can_be_named() -> None:
    named = read(environ={"OPENAI_BASE_URL": "http://host.docker.internal:11434/v1"})["services"]["proxy"]
    assert named["environment"]["CACHEPROXY_UPSTREAM__URL"] == "http://host.docker.internal:11434/v1"
    assert named["extra_hosts"] == ["host.docker.internal:host-gateway"]
    assert SERVICES["proxy"]["environment"]["CACHEPROXY_UPSTREAM__URL"] == DEFAULTS.upstream.url


def test_the_small_model_is_where_the_documents_say(secrets: Path) -> None:
    shown = [
        dict(re.findall(r"^(SMALL_MODEL_\w+)=(\S+)$", block, re.MULTILINE))
        for block in document("docs/deployment.md").blocks()
    ]
    [environ] = [pairs for pairs in shown if pairs]
    settings = settings_of(read(environ=environ)["services"]["proxy"], secrets)
    assert settings.small.url == f"http://small-model:{DEFAULTS.server.port}/v1"
    assert settings.small.model == "smollm2-135m-instruct"


def test_the_small_models_own_proxy_keeps_nothing() -> None:
    pack = load_pack(ROOT / "deploy/small-model")
    assert [rules.allow_caching for rules in pack.categories.values()] == [False]


# What stands around it.


def test_the_balancer_asks_the_proxies_and_listens_where_it_is_published() -> None:
    config = (ROOT / "deploy/haproxy.cfg").read_text()
    port = SERVICES["balancer"]["ports"][0].rpartition(":")[2]
    assert f"bind :{port}\n" in config
    assert re.search(rf"server-template \w+ \d+ proxy:{DEFAULTS.server.port} ", config)
    [health] = [word for word in SERVICES["balancer"]["healthcheck"]["test"] if "http" in word]
    assert f"bind :{health.split(':')[2].partition('/')[0]}\n" in config
    assert "monitor-uri /healthz" in config


def test_timeouts_of_the_balancer_suit_the_proxies() -> None:
    config = (ROOT / "deploy/haproxy.cfg").read_text()
    told = {name: seconds(value) for name, value in re.findall(r"timeout ([a-z-]+) (\d+s)", config)}
    server, upstream = DEFAULTS.server, DEFAULTS.upstream
    assert told["server"] > upstream.queue_timeout_s + upstream.first_byte_timeout_s
    assert told["client"] == told["server"]
    assert told["http-keep-alive"] < server.keep_alive_s
    assert told["server"] > upstream.idle_timeout_s
    [limit] = re.findall(r"hard-stop-after (\d+s)", config)
    assert server.drain_s < seconds(limit) < seconds(SERVICES["balancer"]["stop_grace_period"])


def test_prometheus_finds_every_replica_and_the_balancer() -> None:
    service = SERVICES["prometheus"]
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    [flag] = [word for word in service["command"] if word.startswith("--config.file=")]
    assert f"./deploy/prometheus.yml:{flag.partition('=')[2]}:ro" in service["volumes"]
    [storage] = [word for word in service["command"] if word.startswith("--storage.tsdb.path=")]
    assert f"prometheus-data:{storage.partition('=')[2]}" in service["volumes"]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    [found] = jobs["cacheproxy"]["dns_sd_configs"]
    assert (found["names"], found["port"]) == (["proxy"], DEFAULTS.server.admin_port)
    assert jobs["cacheproxy"]["authorization"]["credentials_file"] == "/run/secrets/read_token"
    [balancer] = jobs["balancer"]["static_configs"]
    assert balancer["targets"] == ["balancer:8404"]
    assert all(set(SERVICES[name]["networks"]) & set(service["networks"]) for name in ("proxy", "balancer"))


def test_grafana_is_given_the_dashboard_and_the_prometheus_that_it_asks() -> None:
    service, folder = SERVICES["grafana"], ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((folder / "dashboards/cacheproxy.yml").read_text())["providers"]
    assert source["url"] == "http://prometheus:9090"
    assert f"./docs/grafana:{provider['options']['path']}:ro" in service["volumes"]
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in service["volumes"]
    [dashboard] = (ROOT / "docs/grafana").iterdir()
    asked = json.loads(dashboard.read_text())["templating"]["list"]
    assert [variable["query"] for variable in asked if variable["type"] == "datasource"] == [source["type"]]
    assert source["isDefault"]


def test_redis_keeps_what_it_has_and_evicts_nothing(secrets: Path) -> None:
    lines = [
        line.split() for line in (ROOT / "deploy/redis.conf").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    config = {words[0]: words[1] for words in lines}
    assert (config["appendonly"], config["appendfsync"], config["maxmemory-policy"]) == (
        "yes",
        "everysec",
        "noeviction",
    )
    assert f"redis-data:{config['dir']}" in SERVICES["redis"]["volumes"]
    most = int(config["maxmemory"].removesuffix("gb"))
    assert 0.75 * most * 1024**3 >= settings_of(SERVICES["proxy"], secrets).store.max_bytes
    assert int(SERVICES["redis"]["deploy"]["resources"]["limits"]["memory"].removesuffix("g")) > most


def test_a_gpu_only_changes_the_image_and_the_device(secrets: Path) -> None:
    service = read(FILE, GPU_FILE)["services"]["proxy"]
    assert settings_of(service, secrets).encoder.device == "cuda"
    assert service["image"] != SERVICES["proxy"]["image"]
    assert service["environment"].items() > SERVICES["proxy"]["environment"].items()
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "ntested on a GPU" in text(GPU_FILE)


@pytest.mark.parametrize("names", [(FILE,), (FILE, GPU_FILE)], ids="+".join)
def test_build_arguments_are_the_dockerfiles(names: tuple[str, ...]) -> None:
    known = {name for stage in stages() for name in stage.arguments}
    assert set(read(*names)["services"]["proxy"]["build"]["args"]) <= known


def test_the_version_is_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"cacheproxy:{version}"}


def test_every_variable_of_the_file_is_documented() -> None:
    told = document("docs/deployment.md").text
    assert {name for name in variables() | variables(GPU_FILE) if f"`{name}`" not in told} == set()
