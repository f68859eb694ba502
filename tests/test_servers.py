"""The servers that other tests are built on do what they say."""

from contextlib import closing
from importlib.util import find_spec

import psycopg
import pytest

from tests.loopback import Address
from tests.postgres import LATEST, WHEELS


@pytest.mark.parametrize("version", [each for each in WHEELS if each == LATEST or find_spec(WHEELS[each])])
def test_a_real_postgresql_asks_for_its_password_and_keeps_what_it_has(new_postgres, version):
    server = new_postgres(version=version, fsync="on", max_connections=11)
    assert server.execute("SHOW server_version_num")[0][0].startswith(str(version))
    assert server.execute("SHOW max_connections") == [("11",)]
    server.execute("CREATE TABLE kept AS SELECT 7 AS number")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url.replace(server.password, "wrong"))

    def restart_killed():
        server.kill()
        with pytest.raises(psycopg.OperationalError, match="Connection refused"):
            psycopg.connect(server.url)
        server.start()

    for fault in (server.restart_fast, restart_killed):
        with closing(psycopg.connect(server.url, autocommit=True)) as connection:
            fault()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert server.execute("SELECT number FROM kept") == [(7,)]


def test_a_paused_server_answers_nobody_until_it_is_resumed(new_postgres):
    server = new_postgres()
    with closing(psycopg.connect(server.url, autocommit=True)) as connection:
        server.pause()
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(server.url, connect_timeout=2)
        connection.pgconn.send_query(b"SELECT 7")
        connection.pgconn.flush()
        connection.pgconn.consume_input()
        assert connection.pgconn.is_busy()
        server.resume()
        assert connection.pgconn.get_result().get_value(0, 0) == b"7"


def test_a_server_made_read_only_refuses_writes_on_open_connections(new_postgres):
    server = new_postgres()
    with closing(psycopg.connect(server.url, autocommit=True)) as connection:
        server.set_read_only(True)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("CREATE TABLE refused ()")
        server.set_read_only(False)
        connection.execute("CREATE TABLE taken ()")


def test_the_shared_server_is_empty_and_rid_of_earlier_connections(postgres):
    with closing(psycopg.connect(postgres.url)) as earlier:
        earlier.execute("CREATE TABLE earlier ()")
        earlier.commit()
        earlier.execute("LOCK TABLE earlier")
        postgres.empty()
        with pytest.raises(psycopg.OperationalError):
            earlier.execute("SELECT 1")
    assert postgres.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


def test_an_address_leads_new_connections_elsewhere_and_keeps_the_old(new_postgres):
    def port(connection):
        return int(connection.execute("SHOW port").fetchone()[0])

    old, new = new_postgres(), new_postgres()
    with Address(old.port) as address, closing(psycopg.connect(old.url_at(address.port))) as before:
        address.target = new.port
        with closing(psycopg.connect(new.url_at(address.port))) as after:
            assert (port(before), port(after)) == (old.port, new.port)
        address.target = None
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(new.url_at(address.port))
        assert port(before) == old.port
