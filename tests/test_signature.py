import pytest

from intake.signature import FORWARDED, Refusal, is_local, sign, verify
from tests.conftest import SECRET

NOW = 1_700_000_000
SIGNED = sign(SECRET, NOW, b"{}")


def check(body=b"{}", *, timestamp=str(NOW), signature=SIGNED, now=NOW, tolerance=300):
    verify([SECRET], timestamp, signature, body, now=now, tolerance=tolerance)


@pytest.mark.parametrize(
    ("body", "digest"),
    [
        (b'{"message":{"type":"status-update"}}', "09a6634fdc9688fdc77b1b2997e7d4abbeef50439bee0292c555d21be39b1675"),
        (b"\xff\xfe", "8f1db44da8edae03818c73d3390d3e3728209f9320ef3360f5172cffa152249c"),  # no UTF-8
    ],
)
def test_it_signs_and_takes_what_the_provider_signs(body, digest):
    assert sign(SECRET, NOW, body) == f"sha256={digest}"
    check(body, signature=f"sha256={digest}")
    check(body, signature=digest)


@pytest.mark.parametrize("timestamp", [None, "", "now", "1e9", "-1", "17000000\uff10\uff10", f"{NOW}, {NOW}", "9" * 13])
def test_it_refuses_a_missing_or_malformed_timestamp(timestamp):
    with pytest.raises(Refusal, match="Timestamp"):
        check(timestamp=timestamp)


@pytest.mark.parametrize(
    "signature", [None, "", "sha256=", "sha1=" + "0" * 40, "\xe9" * 64, "0" * 65, "0" * 64 + ",", "\uff10" * 64]
)
def test_it_refuses_a_missing_or_malformed_signature(signature):
    with pytest.raises(Refusal, match="Signature"):
        check(signature=signature)


def test_it_refuses_a_signature_by_another_secret_or_of_another_body_or_time_and_never_calls_it_stale():
    for wrong in (sign("other", NOW, b"{}"), sign(SECRET, NOW, b"[]"), sign(SECRET, NOW + 1, b"{}")):
        with pytest.raises(Refusal, match="wrong signature"):
            check(signature=wrong, now=0)


@pytest.mark.parametrize("now", [NOW - 301, NOW + 301])
def test_it_refuses_a_stale_timestamp_in_either_direction(now):
    with pytest.raises(Refusal, match="stale"):
        check(now=now)
    check(now=now, tolerance=0)


LOCAL = {"SERVER_SOFTWARE": "Werkzeug/3.1", "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost"}


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1"])
def test_a_request_from_this_machine_is_local(peer, host):
    assert is_local(LOCAL | {"REMOTE_ADDR": peer, "HTTP_HOST": host})


@pytest.mark.parametrize(
    "environ",
    [
        {"REMOTE_ADDR": "192.0.2.1"},
        {"REMOTE_ADDR": ""},
        {"HTTP_HOST": "example.com"},
        {"HTTP_HOST": "127.0.0.1.example.com"},
        {"HTTP_HOST": ""},
        {"SERVER_SOFTWARE": "gunicorn/27.0.1"},
        {"SERVER_SOFTWARE": ""},
        *({name: ""} for name in FORWARDED),
    ],
)
def test_a_request_under_gunicorn_through_a_proxy_or_for_another_host_is_not_local(environ):
    assert not is_local(LOCAL | environ)
