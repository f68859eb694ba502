"""Settings."""

import pytest
from flask import Flask

import stores
from config import INTERNALS, public_url, warnings
from schemas.settings import SETTINGS, load_config

SAFE = {"WEBHOOK_SECRET": "old secret, new secret", "DASHBOARD_PASSWORD": "a long password"}
SLACK = {"SLACK_WEBHOOK_URL": "https://hooks.slack.com/hook"}


def test_blanks_are_stripped_and_empty_is_unset():
    loaded = load_config(dict.fromkeys(SETTINGS, "  ") | {"CRM_TOKEN": " token\n"})
    assert {name: loaded[name] for name in SETTINGS} == SETTINGS | {"CRM_TOKEN": "token"}
    assert loaded.items() >= INTERNALS.items()


def test_secrets_are_separated_by_commas_and_stay_texts():
    assert load_config({"WEBHOOK_SECRET": "12345678, b2345678,,"})["WEBHOOK_SECRET"] == ("12345678", "b2345678")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
@pytest.mark.parametrize(
    "rest",
    [
        "u:p%23@db.example.com:5432/calls",
        "/calls?host=/run/pg",
        "u:a#b@a:1,b:2/calls",
        "u:p@db/calls?ssl=true",
        "a,b:65535",
    ],
)
def test_a_database_url_is_taken_as_it_is(scheme, rest):
    url = f"{scheme}://{rest}"
    loaded = load_config({"DATABASE_URL": url})
    assert loaded["DATABASE_URL"] == url
    assert "#" not in stores.create(loaded).server


def test_options_that_only_other_clients_know_are_left_out_of_the_database_url_with_a_warning():
    url = "postgres://u:p@db/calls?pgbouncer=true&sslmode=require&schema=public"
    loaded = load_config(SAFE | {"DATABASE_URL": url})
    assert loaded["DATABASE_URL"] == "postgres://u:p@db/calls?sslmode=require"
    [warning] = warnings(loaded)
    assert "take pgbouncer, schema out of DATABASE_URL" in warning
    assert load_config({"DATABASE_URL": "postgres://db/calls?schema=public"})["DATABASE_URL"] == "postgres://db/calls"


@pytest.mark.parametrize("url", ["redis://:pass%23@redis:6379/1", "rediss://u:p@redis", "unix:///run/redis.sock?db=1"])
def test_a_redis_url_is_taken_as_it_is(url):
    assert load_config({"REDIS_URL": url})["REDIS_URL"] == url


@pytest.mark.parametrize(
    "url", ["http://my_crm:8000/", "https://[::1]:9000?x=1", "https://user:p%40ss@crm.example.com"]
)
def test_a_crm_is_named_by_any_url(url):
    assert load_config({"CRM_WEBHOOK_URL": url})["CRM_WEBHOOK_URL"] == url


def test_a_flag_is_true_or_false():
    flags = {"true": True, "1": True, "Yes": True, "off": False, "0": False}
    assert {text: load_config({"ALLOW_UNSIGNED": text})["ALLOW_UNSIGNED"] for text in flags} == flags


NONSENSE = {
    "WEBHOOK_SECRET": [",", "hush", "v1,whsec_hush_hush", "long enough, hush"],
    "ALLOW_UNSIGNED": ["maybe"],
    "WEBHOOK_TOLERANCE": ["-1", "5 minutes", "86401"],
    "RETENTION_DAYS": ["1", "9" * 5000],
    "DATABASE_URL": ["instance/calls.db", "mysql://u:hush@db/calls"],
    "REDIS_URL": [
        "redis.example.com:6379",
        "https://redis",
        "redis://:hush#pass@redis",
        "redis://redis:port",
        "redis://redis?no_such=1",
    ],
    "REDIS_TLS_VERIFY": ["none"],
    "CRM_WEBHOOK_URL": ["crm.example.com/hook", "ftp://crm", "https://", "https://[bad", "https://crm:99999/"],
    "SLACK_WEBHOOK_URL": ["https://hooks.slack.com/a b"],
    "CRM_TOKEN": ["hush two", "t\u00f6ken"],
    "CRM_TOKEN_HEADER": ["X-Key: hush", "X\u00e9"],
    "ALERT_SILENCE": ["0", "1.5"],
    "PUBLIC_URL": ["calls.example.com"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in NONSENSE.items() for text in texts])
def test_nonsense_is_refused_in_one_line_that_names_the_setting_and_shows_no_secret(name, text):
    with pytest.raises(SystemExit, match=rf"^{name}: .*\.\Z") as refusal:
        load_config({name: text})
    assert "hush" not in str(refusal.value)


def test_all_that_is_wrong_is_told_at_once_a_line_each():
    with pytest.raises(SystemExit) as refusal:
        load_config(
            {"RETENTION_DAYS": "1", "CRM_TOKEN": "hush", "CRM_WEBHOOK_URL": "https://hush@crm", "PUBLIC_URL": "x"}
        )
    lines = str(refusal.value).splitlines()
    assert [line.split()[0] for line in lines] == ["PUBLIC_URL:", "RETENTION_DAYS:", "CRM_TOKEN:"]
    assert "hush" not in str(refusal.value)


def test_a_secret_with_a_comma_is_told_to_be_two():
    with pytest.raises(SystemExit, match="8 characters or more.*v1,whsec_... is two, and with the first anybody signs"):
        load_config({"WEBHOOK_SECRET": "v1,whsec_hush_hush"})


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("u:hu/sh@db/calls", "percent-encoded: %40 for @"),
        ("u:1/hush@db/calls", "percent-encoded"),
        ("u:1/b?hush=1@db/calls", "percent-encoded"),
        ("u:1@hush@db/calls", "percent-encoded"),
        ("u:hu%sh@db/calls", "percent-encoded"),
        ("u:hush two@db/calls", "percent-encoded"),
        ("u:hush@[::1/calls", "postgresql://user:password@host:5432/name"),
        ("u:hush@db/calls?sslmode=a=b", "sslmode=require"),
        ("u:hush@db/calls?ssl=1", "sslmode=require"),
    ],
)
def test_of_a_database_url_the_part_is_named_that_is_wrong(rest, words):
    with pytest.raises(SystemExit, match=rf"^DATABASE_URL: Must .*{words}.*\Z") as refusal:
        load_config({"DATABASE_URL": f"postgres://{rest}"})
    assert not any(piece in str(refusal.value) for piece in ("hush", "hu%", "hu/"))


def test_where_a_file_is_meant_it_names_the_setting_for_files():
    with pytest.raises(SystemExit, match="DATABASE_URL: Must start with postgres:.*SQLITE_PATH"):
        load_config({"DATABASE_URL": "sqlite:///calls.db"})


def test_a_token_beside_a_login_in_the_url_is_refused_in_one_line():
    url = "https://user:hush@crm.example.com/hook"
    with pytest.raises(SystemExit, match=r"^CRM_TOKEN: Must be unset, or the login in CRM_WEBHOOK_URL.*\Z") as refusal:
        load_config({"CRM_WEBHOOK_URL": url, "CRM_TOKEN": "hush"})
    assert "hush" not in str(refusal.value)
    assert load_config({"CRM_WEBHOOK_URL": "https://crm/a@b?c=d@e", "CRM_TOKEN": "x"})["CRM_TOKEN"] == "x"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, ["set WEBHOOK_SECRET", "set DASHBOARD_PASSWORD"]),
        ({"ALLOW_UNSIGNED": "true", "DASHBOARD_PASSWORD": "a long password"}, ["Anyone can post"]),
        (SAFE | {"ALLOW_UNSIGNED": "true"}, ["unset ALLOW_UNSIGNED"]),
        (SAFE | {"WEBHOOK_TOLERANCE": "0"}, ["any age"]),
        ({"WEBHOOK_TOLERANCE": "0", "DASHBOARD_PASSWORD": "a long password"}, ["set WEBHOOK_SECRET"]),
        (SAFE | {"WEBHOOK_SECRET": "a long password"}, ["another DASHBOARD_PASSWORD"]),
        (
            SAFE | {"DASHBOARD_PASSWORD": "11 letters."},
            ["set one of 12 characters or more"],
        ),
        (SAFE | {"DASHBOARD_PASSWORD": "12 letters.."}, []),
        (
            SAFE | {"CRM_WEBHOOK_URL": "http://crm.example.com", "CRM_TOKEN": "x"},
            ["CRM_TOKEN or a password"],
        ),
        (SAFE | {"CRM_WEBHOOK_URL": "http://u:p@crm.example.com"}, ["password can be read"]),
        (SAFE | {"CRM_WEBHOOK_URL": "https://u:p@crm.example.com"}, []),
        (SAFE | {"CRM_WEBHOOK_URL": "http://127.0.0.1:9000", "CRM_TOKEN": "x"}, []),
        (SAFE | {"CRM_WEBHOOK_URL": "http://crm.example.com"}, []),
        (
            SAFE | {"PROVIDER_API_URL": "http://example.com", "PROVIDER_API_KEY": "x"},
            ["PROVIDER_API_KEY or a pass"],
        ),
        (SAFE | {"DYNO": "web.1"}, ["does not survive a restart"]),
        (SAFE | {"FLY_APP_NAME": "x", "SQLITE_PATH": "/data/calls.db"}, []),
        (SAFE | {"DYNO": "web.1", "DATABASE_URL": "postgres://db/calls"}, []),
        (SAFE | SLACK, ["no link to the call: set PUBLIC_URL"]),
        (SAFE | SLACK | {"PUBLIC_URL": "https://calls.example.com"}, []),
    ],
)
def test_it_warns_of_what_a_deployment_should_not_stay_without(environ, words):
    for sentence, word in zip(warnings(load_config(environ)), words, strict=True):
        assert word in sentence


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, None),
        ({"RENDER_EXTERNAL_HOSTNAME": "x.onrender.com"}, "https://x.onrender.com"),
        ({"RAILWAY_PUBLIC_DOMAIN": "x.up.railway.app"}, "https://x.up.railway.app"),
        ({"HEROKU_APP_DEFAULT_DOMAIN_NAME": "x-1.herokuapp.com"}, "https://x-1.herokuapp.com"),
        ({"FLY_APP_NAME": "x"}, "https://x.fly.dev"),
        ({"FLY_APP_NAME": "x", "PUBLIC_URL": "https://calls.example.com/"}, "https://calls.example.com"),
    ],
)
def test_the_app_is_seen_where_its_setting_says_or_else_the_platform(environ, url):
    app = Flask(__name__)
    app.config |= load_config(environ)
    with app.app_context():
        assert public_url() == url
    with app.test_request_context(base_url="http://ours"):
        assert public_url() == (url or "http://ours")


@pytest.mark.parametrize(
    ("headers", "script", "url"),
    [
        ([], "", "http://ours:8000"),
        ([], "/calls here", "http://ours:8000/calls%20here"),
        ([("X-Forwarded-Proto", "https")], "/calls", "https://ours:8000/calls"),
        ([("X-Forwarded-Proto", "http, HTTPS")], "", "https://ours:8000"),
        ([("X-Forwarded-Proto", "http"), ("X-Forwarded-Proto", "https")], "", "https://ours:8000"),
        ([("X-Forwarded-Proto", "http,httpsx")], "", "http://ours:8000"),
    ],
)
def test_else_the_app_is_seen_where_the_request_came_to(headers, script, url):
    app = Flask(__name__)
    app.config |= load_config({})
    environ = {"SCRIPT_NAME": script, "HTTP_HOST": "ours:8000"}
    with app.test_request_context(headers=headers, environ_overrides=environ):
        assert public_url() == url
