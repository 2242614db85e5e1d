"""What Elastic Beanstalk is told: its files are well formed, and agree with the settings and with each other."""

from __future__ import annotations

import dataclasses
import http
import json
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from flask import Flask, url_for
from flask_babel import force_locale, get_locale, gettext
from sqlalchemy.exc import OperationalError

import config
from registration import LARGEST_BODY, services
from registration.db import db
from registration.web import bodies, errors, health, optout

from . import mariadb

ROOT = Path(__file__).parent.parent
CONFIG_FILES = sorted((ROOT / ".ebextensions").iterdir())
HOOKS = sorted(path for path in (ROOT / ".platform").glob("*hooks/**/*") if path.is_file())
NGINX = re.sub(r"(?m)(^|\s)#.*", "", (ROOT / ".platform/nginx/nginx.conf").read_text())
GUNICORN = runpy.run_path(str(ROOT / "gunicorn.conf.py"))

# https://docs.aws.amazon.com/elasticbeanstalk/latest/dg/ebextensions.html
KEYS = {"option_settings", "packages", "groups", "users", "sources", "files", "commands", "services"}
KEYS |= {"container_commands", "Resources", "Outputs"}
ENVIRONMENT = "aws:elasticbeanstalk:application:environment"
GUIDE = (ROOT / "docs" / "operations.md").read_text()
[GUIDED_YAML] = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
GUIDED: dict[str, dict[str, str]] = yaml.safe_load(GUIDED_YAML)["OptionSettings"]
PROCESS = "aws:elasticbeanstalk:environment:process:default"
# https://docs.aws.amazon.com/elasticbeanstalk/latest/dg/command-options-general.html
NAMESPACES = {
    "aws:autoscaling:asg",
    "aws:autoscaling:launchconfiguration",
    "aws:autoscaling:trigger",
    "aws:autoscaling:updatepolicy:rollingupdate",
    "aws:ec2:instances",
    "aws:elasticbeanstalk:application:environment",
    "aws:elasticbeanstalk:cloudwatch:logs",
    "aws:elasticbeanstalk:cloudwatch:logs:health",
    "aws:elasticbeanstalk:command",
    "aws:elasticbeanstalk:environment",
    "aws:elasticbeanstalk:environment:process:default",
    "aws:elasticbeanstalk:healthreporting:system",
    "aws:elasticbeanstalk:managedactions",
    "aws:elasticbeanstalk:managedactions:platformupdate",
    "aws:elbv2:listener:443",
    "aws:elbv2:listener:default",
    "aws:elbv2:loadbalancer",
}
LARGEST_ENVIRONMENT = 4096
"""Bytes of all environment properties together."""
DEVELOPMENT_ONLY = {"PORT", "DEVELOPMENT"}
SECRETS = {"DB_CONN_STR", "SECRET_PIN", "TOKEN_KEYS", "AWS_ACCESS_ID", "AWS_SECRET_KEY"}
# What may be logged: nothing that the query string, the referer or another header of the client's goes into.
LOGGED = {
    "$body_bytes_sent",
    "$client",
    "$request_method",
    "$request_time",
    "$status",
    "$time_iso8601",
    "$upstream_http_x_request_id",
    "$upstream_status",
    "$logged_path",
}
NGINX_READ_SECONDS = 60
"""nginx's default of proxy_read_timeout."""


def load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def options_in(file: Path) -> list[tuple[str, str, Any]]:
    """Return namespace, name and value of each option, whichever of the two notations the file has."""
    settings = load(file).get("option_settings", {})
    if isinstance(settings, list):
        return [(option["namespace"], option["option_name"], option["value"]) for option in settings]
    return [(namespace, name, value) for namespace, group in settings.items() for name, value in group.items()]


def sections(key: str) -> dict[str, Any]:
    """Return the entries under one key of all configuration files."""
    return {name: entry for file in CONFIG_FILES for name, entry in load(file).get(key, {}).items()}


OPTIONS = [option for file in CONFIG_FILES for option in options_in(file)]
VALUES = {(namespace, name): value for namespace, name, value in OPTIONS}
DECLARED = {name: value for namespace, name, value in OPTIONS if namespace == ENVIRONMENT}
SETTINGS = {field.name: field for field in dataclasses.fields(config.Config) if field.name not in DEVELOPMENT_ONLY}


@pytest.mark.parametrize("file", CONFIG_FILES, ids=lambda file: file.name)
def test_a_configuration_file_has_the_extension_and_the_keys_that_elastic_beanstalk_reads(file: Path) -> None:
    assert file.suffix == ".config"
    assert load(file).keys() <= KEYS


def test_every_option_is_in_a_known_namespace() -> None:
    assert {namespace for namespace, _, _ in OPTIONS} == NAMESPACES


def test_no_option_is_set_twice() -> None:
    assert len(VALUES) == len(OPTIONS)


def test_the_processes_are_web_and_sender() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+:\s*[^\s].*", line) for line in lines)
    commands = dict(line.split(": ", 1) for line in lines)
    assert list(commands) == ["web", "sender"]
    assert commands["web"].endswith(" application:application")
    assert "application.py --sender" in commands["sender"]


def test_every_setting_of_production_is_declared_and_nothing_else() -> None:
    assert DECLARED.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"TRUSTED_PROXIES"}))
def test_a_declared_value_is_the_default_or_empty(name: str) -> None:
    assert DECLARED[name] in ("", str(SETTINGS[name].default), str(SETTINGS[name].default).lower())


def test_the_load_balancer_and_nginx_are_the_trusted_proxies() -> None:
    assert DECLARED["TRUSTED_PROXIES"] == "2"


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_is_not_in_the_repository(name: str) -> None:
    assert DECLARED[name] == ""


def test_the_declared_values_and_those_of_the_guide_make_a_configuration() -> None:
    secrets = {
        "DB_CONN_STR": "mysql+pymysql://user:password@host/registration",
        "SECRET_PIN": "correct horse battery staple",
        "TOKEN_KEYS": "a key of at least thirty-two characters",
    }
    kept = {name: secrets[name] for name in GUIDED[f"{ENVIRONMENT}secrets"]}

    settings = config.read(DECLARED | GUIDED[ENVIRONMENT] | kept)

    assert settings.TRUSTED_PROXIES == 2
    assert settings.POSTAL_ADDRESS


def test_the_guide_has_every_secret_made_that_it_gives_to_the_environment() -> None:
    made = set(re.findall(r"(?m)^\| `(registration/[a-z-]+)` \|", GUIDE))
    given = GUIDED[f"{ENVIRONMENT}secrets"].values()
    assert {re.fullmatch(r"arn:aws:secretsmanager:REGION:ACCOUNT:secret:(.*)-AbCdEf", arn)[1] for arn in given} == made


def test_the_guide_names_every_setting_that_production_needs() -> None:
    needed = {name for name, field in SETTINGS.items() if field.metadata["required"] in ("always", "with MAILER=ses")}
    assert needed == {name for name in needed if f"`{name}`" in GUIDE or f"{name}:" in GUIDE}
    deploying = (ROOT / "README.md").read_text().partition("## Deploying")[2]
    assert needed == {name for name in needed if f"`{name}`" in deploying}


def test_the_environment_fits_into_what_elastic_beanstalk_allows() -> None:
    assert sum(len(f"{name}={value}".encode()) + 1 for name, value in DECLARED.items()) <= LARGEST_ENVIRONMENT


def test_one_instance_alone_migrates_the_database() -> None:
    migrations = [entry for entry in sections("container_commands").values() if "db upgrade" in entry["command"]]
    assert len(migrations) == 1
    assert migrations[0]["leader_only"] is True
    assert migrations[0]["command"].startswith("source /var/app/venv/*/bin/activate && ")


def test_there_is_https_and_nothing_else() -> None:
    assert VALUES["aws:elbv2:listener:default", "ListenerEnabled"] == "false"
    assert VALUES["aws:elbv2:listener:443", "ListenerEnabled"] == "true"
    assert VALUES["aws:elbv2:listener:443", "Protocol"] == "HTTPS"


def test_the_certificate_is_left_to_the_operator() -> None:
    """An empty or an invented one would stand in the way: it cannot be told from a forgotten one."""
    assert ("aws:elbv2:listener:443", "SSLCertificateArns") not in VALUES


def test_the_health_check_asks_a_route_that_needs_no_database() -> None:
    application = Flask(__name__)
    application.register_blueprint(health.bp)
    assert application.test_client().get(VALUES[PROCESS, "HealthCheckPath"]).status_code == 200


def test_a_command_takes_over_the_settings_of_the_sender_whatever_they_hold() -> None:
    guide = (ROOT / "docs/operations.md").read_text()
    (loop,) = re.findall(r"^while .* < /proc/.*/environ$", guide, re.MULTILINE)
    (pattern,) = re.findall(r"\$\(pgrep -of '(.*)'\)", loop)
    assert pattern in (ROOT / "Procfile").read_text()
    settings = {"SECRET_PIN": "p\"i'n $HOME & more", "POSTAL_ADDRESS": "1 Main Street,\n Springfield", "LOG_FILE": ""}

    lasting = ["sh", "-c", "echo started; sleep 60"]
    with subprocess.Popen(lasting, env=os.environ | settings, stdout=subprocess.PIPE, process_group=0) as sender:
        assert sender.stdout is not None
        try:
            assert sender.stdout.readline() == b"started\n"  # until then its environment may look empty
            taken = re.sub(r"\$\(pgrep .*\)", str(sender.pid), loop)
            program = "import json, os; print(json.dumps(dict(os.environ)))"
            command = ["bash", "-c", f'{taken}; exec "$0" "$@"', sys.executable, "-c", program]
            printed = subprocess.run(command, env={}, check=True, capture_output=True).stdout
        finally:
            os.killpg(sender.pid, signal.SIGKILL)

    assert settings.items() <= json.loads(printed).items()


def test_a_waiting_broadcast_is_cut_off_by_nobody() -> None:
    wait = float(DECLARED["BROADCAST_WAIT_SECONDS"])
    assert wait < VALUES["aws:elbv2:loadbalancer", "IdleTimeout"]
    assert wait < NGINX_READ_SECONDS
    assert "proxy_read_timeout" not in NGINX
    assert wait < GUNICORN["graceful_timeout"] <= VALUES[PROCESS, "DeregistrationDelay"]


def test_gunicorn_runs_threads_that_fit_the_pools() -> None:
    assert GUNICORN["worker_class"] == "gthread"
    assert config.WEB_CONNECTIONS <= GUNICORN["threads"] == config.WEB_THREADS


def test_a_gunicorn_worker_takes_no_request_that_would_wait_for_one_of_its_threads() -> None:
    assert GUNICORN["worker_connections"] == GUNICORN["threads"]
    assert GUNICORN["keepalive"] == 0  # else an idle connection would count as well


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Only Linux keeps a process on a processor.")
def test_each_gunicorn_worker_stays_on_a_processor_of_its_own() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    server = SimpleNamespace(WORKERS={})
    workers = [SimpleNamespace() for _ in range(2 * len(allowed))]
    for number, worker in enumerate(workers):
        GUNICORN["pre_fork"](server, worker)
        server.WORKERS[number] = worker
    assert [worker.processor for worker in workers] == allowed * 2

    del server.WORKERS[len(allowed) - 1]
    successor = SimpleNamespace()
    GUNICORN["pre_fork"](server, successor)
    assert successor.processor == allowed[-1]

    worker = f"types.SimpleNamespace(processor={allowed[-1]})"
    assert run_hook(f"['post_fork'](None, {worker}); print(os.sched_getaffinity(0))") == str({allowed[-1]})


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Only Linux lets a thread not be interrupted.")
def test_the_threads_of_a_gunicorn_worker_do_not_interrupt_each_other() -> None:
    worker = f"types.SimpleNamespace(processor={min(os.sched_getaffinity(0))})"
    policy = "threading.Thread(target=lambda: print(os.sched_getscheduler(0))).start()"

    assert run_hook(f"['post_fork'](None, {worker}); {policy}") == str(os.SCHED_BATCH)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="Only Linux has files in memory there.")
def test_a_gunicorn_worker_writes_its_heartbeat_to_no_disk() -> None:
    assert GUNICORN["worker_tmp_dir"] == "/dev/shm"


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Only Linux lets a thread not be interrupted.")
def test_a_gunicorn_worker_starts_where_its_threads_may_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden = Mock(side_effect=PermissionError)
    monkeypatch.setattr("os.sched_setscheduler", forbidden)
    monkeypatch.setattr("os.sched_setaffinity", Mock())

    GUNICORN["post_fork"](None, SimpleNamespace(processor=0))

    forbidden.assert_called_once()


def test_a_gunicorn_worker_collects_no_garbage_among_what_it_loaded() -> None:
    assert int(run_hook("['post_worker_init'](None); print(gc.get_freeze_count())")) > 10_000


def run_hook(call: str) -> str:
    """Call a function of gunicorn.conf.py in a process of its own, and return what is printed."""
    code = f"import gc, os, runpy, threading, types; runpy.run_path('gunicorn.conf.py'){call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_guide_tells_how_many_connections_an_instance_opens(
    make_application: Callable[[str], Flask], sqlite_url: str
) -> None:
    application = make_application(sqlite_url)
    with application.app_context():
        web = GUNICORN["workers"] * sum(engine.pool.size() for engine in db.engines.values())
    sender = services.of(application).sender_engine().pool.size()

    guide = " ".join((ROOT / "docs/operations.md").read_text().split())
    told = f"opens up to {web + sender} connections: {web} by `web`, and {sender} by `sender`"
    assert told in guide
    assert 3 * (web + sender) < int(re.search(r"set `max_connections` to (\d+)", guide)[1])


def test_gunicorn_is_reached_through_nginx_alone_and_opens_no_socket_of_its_own() -> None:
    assert GUNICORN["bind"] == "127.0.0.1:8000"
    assert GUNICORN["control_socket_disable"] is True


def test_gunicorn_keeps_requests_out_of_its_logs(caplog: pytest.LogCaptureFixture) -> None:
    assert GUNICORN["accesslog"] is None
    gunicorn = logging.getLogger("gunicorn.error")
    gunicorn.warning("Invalid request from ip=127.0.0.1: 'GET /api/registration?email=ann@example.org'")
    gunicorn.error("Error handling request %s %s", "GET", "/api/registration?email=ann@example.org")
    gunicorn.warning("Worker %s was terminated", 7)
    assert len(caplog.messages) == 3
    assert "ann@example.org" not in caplog.text
    assert caplog.messages[2] == "Worker 7 was terminated"


def test_gunicorn_writes_its_own_messages_as_json_lines_too() -> None:
    """Of its start, of an application that cannot be loaded, and of its end for that reason.

    With one worker: a second that fails while gunicorn ends may make it print a traceback.
    """
    port = mariadb.free_port()
    options = ["--workers=1", f"--bind=127.0.0.1:{port}"]
    command = [sys.executable, "-m", "gunicorn", *options, "no_such_module:application"]

    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)

    for_people = "No module named 'no_such_module'"  # printed in so many words besides
    lines = [json.loads(line) for line in (done.stdout + done.stderr).splitlines() if line != for_people]
    assert {line["level"] for line in lines} == {"INFO", "ERROR"}
    assert f"Listening at: http://127.0.0.1:{port}" in lines[1]["message"]
    assert any("no_such_module" in line.get("exc_info", "") for line in lines)


def test_nginx_logs_no_query_string_and_no_referer() -> None:
    formats = re.findall(r"log_format\s+(\S+)([^;]*);", NGINX)
    assert [name for name, _ in formats] == ["main"]
    assert set(re.findall(r"\$\w+", formats[0][1])) <= LOGGED
    assert re.findall(r"access_log\s+([^;]*);", NGINX) == ["/var/log/nginx/access.log main"]


def test_nginx_writes_no_error_messages_about_requests() -> None:
    of_requests = NGINX[NGINX.index("http {") :]
    assert re.findall(r"error_log\s+\S+\s+(\w+);", of_requests) == ["emerg"]


def test_nginx_includes_what_elastic_beanstalk_generates() -> None:
    server = NGINX[NGINX.index("server {") :]
    assert "include conf.d/elasticbeanstalk/*.conf;" in server
    assert "include conf.d/*.conf;" in NGINX[: NGINX.index("server {")]
    assert "map $http_upgrade $connection_upgrade {" in NGINX


def test_nginx_answers_in_place_of_the_application_as_it_would() -> None:
    answers = [(int(status), json.loads(body)) for status, body in re.findall(r"return (\d+) '({[^']*)';", NGINX)]

    with Flask(__name__).app_context():
        for status, told in answers:
            assert told == errors.problem(status, http.HTTPStatus(status).phrase, told["detail"]).json
        assert answers[1][1] == errors.answer_unavailable(OperationalError("", {}, Exception())).json
    assert [status for status, _ in answers] == [413, 503]
    assert f"add_header Retry-After {errors.RETRY_SECONDS} always;" in NGINX
    assert re.findall(r"error_page ([^;]*);", NGINX) == ["413 @too_large", "502 504 =503 @unavailable"]
    assert re.findall(r"location (@\w+)", NGINX) == ["@too_large", "@unavailable"]


def test_nginx_tells_people_in_their_languages_that_the_application_starts_anew(application: Flask) -> None:
    [page] = re.findall(r"return 503 '(<[^']*)';", NGINX)
    [path] = re.findall(r"rewrite (\S+) /\$1/- last;", NGINX)
    paragraphs = re.findall(r'<p(?: lang="(\w+)"( dir="rtl")?)?>([^<]*)', page)

    with application.test_request_context():
        for language, is_rtl, sentence in paragraphs:
            with force_locale(language or "en"):
                assert sentence == gettext("Please try again in a few minutes")
                assert bool(is_rtl) == (get_locale().text_direction == "rtl")
        for endpoint in ("optout.show", "optout.confirm"):
            assert re.match(path, url_for(endpoint, token="x"))
    assert re.search(rf"location ~ \^/\(opt-out\|confirm\)/-\$ {{\s+internal;[^}}]*{re.escape(page)}", NGINX)
    assert {language or "en" for language, *_ in paragraphs} == set(optout.LANGUAGES)


def test_nginx_leaves_the_answer_to_a_body_that_is_too_large_to_the_application() -> None:
    megabytes = re.search(r"client_max_body_size (\d+)m;", NGINX)
    assert megabytes is not None
    assert int(megabytes[1]) * 1024 * 1024 == bodies.MOST > LARGEST_BODY


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("ann@example.org, 203.0.113.9", "203.0.113.9"),
        ("6.6.6.6,2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:4711", "[2001:db8::1]:4711"),
        ("ann@example.de", None),
    ],
)
def test_nginx_logs_the_client_that_the_load_balancer_saw_and_nothing_that_it_said(
    forwarded: str, client: str | None
) -> None:
    pattern = re.search(r'map \$http_x_forwarded_for \$client \{\s*"~(.*)" \$1;', NGINX)
    assert pattern is not None
    found = re.search(pattern[1], forwarded)
    assert (found and found[1]) == client


def test_the_certificates_that_the_guide_lets_the_database_be_checked_with_are_fetched() -> None:
    named = re.search(r"`mysql\+pymysql://[^`]*\?ssl_ca=([^`]*)`", GUIDE)
    assert named is not None
    assert sections("files")[named[1]]["source"].startswith("https://truststore.pki.rds.amazonaws.com/")


def test_there_are_hooks_for_the_log_file() -> None:
    assert {hook.name for hook in HOOKS} == {"10_log_file.sh", "10_stream_log_file.sh"}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: str(hook.relative_to(ROOT)))
def test_a_hook_can_be_executed(hook: Path) -> None:
    assert os.access(hook, os.X_OK)
    assert hook.read_text().startswith("#!/bin/sh\n")


def test_the_log_file_is_made_rotated_collected_and_streamed() -> None:
    log_file = DECLARED["LOG_FILE"]
    directory, _, name = log_file.rpartition("/")
    hook = (ROOT / ".platform/hooks/prebuild/10_log_file.sh").read_text()
    assert f"directory={directory}\n" in hook
    assert f"file=$directory/{name}\n" in hook
    files = sections("files")
    assert files["/etc/logrotate.d/openemr-product-registration"]["content"].startswith(f"{log_file} {{\n")
    for task in ("taillogs.d", "bundlelogs.d"):
        assert log_file in files[f"/opt/elasticbeanstalk/tasks/{task}/openemr-product-registration.conf"]["content"]
    agent = "/opt/aws/amazon-cloudwatch-agent/etc/openemr-product-registration.json"
    streamed = json.loads(re.sub(r"`{.*?}`", "environment", files[agent]["content"]))
    assert streamed["logs"]["logs_collected"]["files"]["collect_list"][0]["file_path"] == log_file
    assert Path(agent).name in (ROOT / ".platform/hooks/postdeploy/10_stream_log_file.sh").read_text()


def test_logs_are_kept_no_longer_than_ip_addresses() -> None:
    assert VALUES["aws:elasticbeanstalk:cloudwatch:logs", "RetentionInDays"] <= int(DECLARED["IP_RETENTION_DAYS"])
