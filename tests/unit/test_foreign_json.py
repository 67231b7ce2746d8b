# SPDX-License-Identifier: LGPL-2.1-or-later
"""JSON from outside this process: whatever its bytes are, it costs no more than itself."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agent.fence.rehearsal import _load as proven_paths
from agent.leases.sanlock_direct import FreeingFile
from agent.setup.fetched import IDS_FILE, _ids_in
from agent.vm.measured import Measured
from broker.broker import Broker
from broker.client.ask import BrokerRefused, ask
from broker.client.quick import BrokerDown
from broker.config.errors import ConfigError
from broker.config.shared import FILE, read_copy
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_json import decoded
from broker.events.kept import KeptEvents
from broker.lockspace.freeing_before import _fencer
from broker.maintenance import kept as local_mode
from broker.registry.cache import RECORDS_FILE, Cached, read_kept
from broker.whiteboard.mode import Mode
from broker.wire.status import Status
from tests.fakes.broker import served
from tests.unit import commands

ROOT = Path(__file__).parents[2]
NOT_UTF_8 = b'{"%b":"\xff"}'
DEEP = b'{"x":' + b"[" * 100_000


def bytes_of(field: str) -> list[bytes]:
    """What msgspec has no error of its own for, where a file has a text of that name."""
    return [NOT_UTF_8.replace(b"%b", field.encode()), DEEP]


@pytest.mark.parametrize("raw", [*bytes_of("cluster"), b"", b"null", b"\0" * 4096, b"[" * 9])
def test_what_does_not_fit_is_one_error(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decoded(raw, Status)


def test_nothing_else_decodes_with_types() -> None:
    """msgspec's own functions let two more errors through: who calls them must know both."""
    found = [
        str(path.relative_to(ROOT))
        for package in ("agent", "broker", "scoring")
        for path in (ROOT / package).rglob("*.py")
        if re.search(
            r"msgspec\.json\.(decode|Decoder)\b|from msgspec.json import", path.read_text()
        )
    ]
    assert found == ["broker/daemon/foreign_json.py"]


def _copy_of_the_shared_configuration(path: Path) -> object:
    with pytest.raises(ConfigError, match="is damaged; remove it"):
        read_copy(str(path.parent), "lab")
    return None


#: The files that a daemon reads when it starts: the name, a text in it, how it is read, and what
#: it must be without it.
FILES: dict[str, tuple[str, str, Callable[[Path], object], object]] = {
    "local maintenance": ("kept", "owner", local_mode.load, Mode()),
    "the copy of the registry": (
        RECORDS_FILE,
        "cluster",
        lambda path: read_kept(path.parent, "lab"),
        Cached(),
    ),
    "the shared configuration": (FILE, "text", _copy_of_the_shared_configuration, None),
    "what was proven of fence devices": ("proven.json", "1", proven_paths, {}),
    "a freeing": ("freeing.json", "host_id", lambda path: FreeingFile(path).found(), None),
    "a freeing, as the broker reads it": ("freeing.json", "host_id", _fencer, None),
    "what was measured": (
        "measured.json",
        "start_s",
        lambda path: Measured(path).on_wire.start_s,
        None,
    ),
    "the numbers of users": (IDS_FILE, "ha-agent", lambda path: _ids_in(path.parent), {}),
    "the events": ("events.jsonl", "kind", lambda path: KeptEvents(path.parent, 9).load(), ()),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", [0, 1])
def test_a_damaged_file_of_state_is_no_reason_not_to_start(
    name: str, at: int, tmp_path: Path
) -> None:
    file, field, read, expected = FILES[name]
    path = tmp_path / file
    path.write_bytes(bytes_of(field)[at])
    assert read(path) == expected


def test_a_body_that_is_not_utf_8_is_the_asker_s_fault(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        for method, target in (
            ("PUT", "/v1/maintenance/local"),
            ("PUT", "/v1/report"),
            ("POST", "/v1/fence-log"),
            ("POST", "/v1/orders"),
        ):
            for body in (b'{"owner":"\xff","name":"\xff","kind":"\xff","state":"\xff"}', DEEP):
                async with session.request(method, f"http://ha{target}", data=body) as answer:
                    assert answer.status == 400, (target, await answer.text())

    served(tmp_path, test)


# --- commands -------------------------------------------------------------------------------


@contextmanager
def answering(path: Path, raw: bytes) -> Iterator[None]:
    """Something on the broker's socket that says the same to everybody."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(raw)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        len(body),
        body,
    )


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b"1e400", b'{"engine":"\xff"}', DEEP])
@pytest.mark.parametrize("form", ["--json", "--status"])
def test_an_answer_that_is_no_status_is_one_line(body: bytes, form: str, site: Path) -> None:
    with answering(site.parent / "broker.sock", http(body)):
        done = commands.run("ha-agent", "--status", form, env={"HA_AGENT_CONFIG": str(site)})
    assert done.returncode == ExitCode.REFUSED, done.stderr
    assert "does not fit" in done.stderr and len(done.stderr.splitlines()) == 1
    if form == "--json":
        assert json.loads(done.stdout)["error"]["code"] == "refused"


def test_what_came_instead_of_an_answer_steers_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    said = b"\x1b[2J\x9b31m\nHost 2 is fenced\r\n" + b"x" * 5000
    with answering(path, said), pytest.raises(BrokerDown) as caught:
        ask(str(path), "GET", "/v1/status", Status)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    path = path.with_name("other")
    # msgspec has an error of its own for that from 0.23 on.
    refused = pytest.raises(BrokerRefused, match=r"does not fit: .*UTF-8")
    with answering(path, http(b'{"cluster":"\xff"}')), refused:
        ask(str(path), "GET", "/v1/status", Status)
