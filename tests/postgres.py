"""A real PostgreSQL for tests: started from the installed programs, in a folder of its own, on a free loopback port."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

PASSWORD = "a-pass-word"


class Postgres:
    """A PostgreSQL server that can be stopped and started again on the same port with the same data."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs = programs
        self._folder = folder
        self._user = user
        self.port = _free_port()
        password = folder / "password"
        password.write_text(PASSWORD)
        self._run(
            *("initdb", "-D", str(folder / "data"), "-U", "tracer", "-A", "scram-sha-256", f"--pwfile={password}"),
            *("-E", "UTF8", "--locale=C", "--no-sync"),
        )

    def start(self) -> None:
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-l", log, "-o", options, "-w", "start")

    def stop(self) -> None:
        """Cut every connection without a goodbye, as a crash does."""
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "stop")

    def url(self, database: str) -> str:
        return f"postgresql://tracer:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self, options: str = "") -> str:
        """The URL of a fresh, empty database."""
        name = f"t{uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} {options}".encode())
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        # Output goes to a file: a pipe would stay open as long as the server that inherits it.
        output = self._folder / "output"
        with output.open("w") as file:
            done = subprocess.run(command, check=False, user=self._user, cwd=self._folder, stdout=file, stderr=file)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {output.read_text()}")


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A started server, gone afterwards. Where PostgreSQL is not installed the test is skipped, under CI it fails."""
    programs = _programs()
    if programs is None:
        reason = "PostgreSQL is not installed: no folder with initdb, pg_ctl and postgres found"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="tracer-postgres-"))
    user = _unprivileged_user()
    if user is not None:
        shutil.chown(folder, user)
    try:
        server = Postgres(programs, folder, user)
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(RuntimeError):  # a test may have stopped it
                server.stop()
    finally:
        shutil.rmtree(folder)


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs: on the path, where pg_config says, or where Debian keeps them."""
    places = [Path(folder) for folder in os.get_exec_path()]
    if pg_config := shutil.which("pg_config"):
        places.append(Path(subprocess.check_output([pg_config, "--bindir"], text=True).strip()))
    places.extend(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
    needed = ("initdb", "pg_ctl", "postgres")
    return next((place for place in places if all((place / name).is_file() for name in needed)), None)


def _unprivileged_user() -> str | None:
    """Whom to run as when we are root, which PostgreSQL refuses: the user its package made, or `nobody`."""
    if os.geteuid() != 0:
        return None
    known = {user.pw_name for user in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
