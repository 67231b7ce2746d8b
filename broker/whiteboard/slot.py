# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whiteboard's codec: bytes of a slot <-> typed reports. Pure: no I/O, no clock, no log.

Rules of this file:

1. Any bytes are accepted. Decoding returns a report, `None` (empty slot) or raises
   `BadSlot`, nothing else; one bad slot costs exactly that slot (`decode_sweep`).
2. What is written here can be read by the reference (oVirt hosted engine, metadata
   version 1), and what it writes can be read here.
3. What does not fit is cut, always in the same way: a report always becomes 4096 bytes.
4. Nothing is guessed: a slot that says it is of a newer version is `NEWER_VERSION`,
   whatever else is wrong with it, and a damaged cluster slot is never "no maintenance".
5. Text that is read is clean (broker/daemon/foreign.py): whoever shows it shows it as it is.

Layout of the volume: slot i at byte i * 4096; slot 0 belongs to the cluster, slots 1..2000
to the hosts of that sanlock host id.

    host slot, bytes 0..511 (the head), NUL padded, UTF-8, fields joined by "|":

     0 parse version     a reader of a lower version must not read on
     1 feature version   the newest version whose fields are there
     2 timestamp         0..2^53, grows with each beat, host-local
     3 host id           1..2000
     4 score             0..10000
     5 engine status     {"vm": ..., "health": ..., "detail": ..., "reason": ...}
     6 host name
     7 maintenance       0 or 1
     8 stopped           0 or 1: the agent ended in good order
     9 crc32             8 lower-case hex digits: CRC-32 (zlib) of the joined fields with
                         this one as 00000000
    10 conf on shared storage  0 or 1       (absent before reference 3.6)
    11 local conf timestamp    0..2^53      (absent before reference 3.6)
    12 and on: fields of newer features; covered by the crc, otherwise ignored

    host slot, bytes 512..4095 (the extra), NUL padded, UTF-8, "\\n"-ended lines:

     key=value                for people, and ours to read
     truncated=N              N lines had no room
     mac=<64 hex digits>      ours, behind all of these: the writer's signature of all bytes before
                              this line (broker/whiteboard/signatures.py); absent where it has no
                              key
     end=<8 hex digits>       last line, ours only: CRC-32 of all bytes of the slot before
                              this line, the head included, so that an extra of another
                              beat than the head (a torn write) is not believed

    cluster slot: lines "maintenance=BOOL", NUL padded; all NUL: never set. Ours ends in a line
    "mac=<64 hex digits>", the signature of all bytes before it and its newline.

The first field is taken as the version by its leading digits alone, so that a newer version
may change the delimiter; it must be text (UTF-8) though, or it is no version at all but
damage.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from broker.daemon.foreign import clean
from broker.whiteboard import engine_status, extra
from broker.whiteboard.errors import BadSlot, SlotFault
from broker.whiteboard.extra import MAC_KEY
from broker.whiteboard.padding import unpadded
from broker.whiteboard.sizes import HEAD_BYTES, SLOT_BYTES
from broker.whiteboard.text import cut_bytes, is_utf8, shown
from broker.wire.limits import HOST_ID_MAX, TIMESTAMP_MAX
from scoring.vm_facts import EngineStatus

PARSE_VERSION = 1
FEATURE_VERSION = 1
SCORE_MAX = 10_000
#: A host continues from the timestamp of its own slot up to here: half of the range is left above
#: it. No host has counted to a larger one, so it starts anew.
TIMESTAMP_TAKEN_MAX = 2**52
#: A full DNS name in text form (RFC 1035: 255 octets on the wire). Longer ones are cut.
HOSTNAME_BYTES_MAX = 253
EMPTY_SLOT = bytes(SLOT_BYTES)

_CRC_FIELD = 9
_LAST_FIELD = 11  # of those known here
_FIELDS_MIN = 7  # what the oldest writers had, which knew no crc yet
_NO_CRC_YET = b"00000000"
_NAME_HASH_DIGITS = 8
_SHOWN_MAX = 40  # characters of foreign data in a message

_LEADING_DIGITS = re.compile(rb"[0-9]+")
# Plain ASCII digits: int() alone would also take "1_000", " 7", "+7" and other scripts' digits.
_NUMBER = re.compile(rb"-?[0-9]+")
_CRC = re.compile(rb"[0-9a-f]{8}")
#: Makes the signature of what is written.
Sign = Callable[[bytes], str]

assert HOSTNAME_BYTES_MAX < HEAD_BYTES // 2, "the engine status must keep its half of the head"


@dataclass(frozen=True, slots=True)
class SlotReport:
    """What one host published.

    `extra`: the lines behind the head, in order. `extra_trusted`: they are ours and whole, of
    the same write as the head; otherwise they are text for people only. `conf_on_shared_storage`
    and `local_conf_timestamp` are False and 0 where an old writer has no such fields.
    """

    host_id: int
    timestamp: int
    score: int
    engine_status: EngineStatus
    hostname: str
    maintenance: bool = False
    stopped: bool = False
    conf_on_shared_storage: bool = False
    local_conf_timestamp: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)
    extra_trusted: bool = False
    parse_version: int = PARSE_VERSION
    feature_version: int = FEATURE_VERSION


@dataclass(frozen=True, slots=True)
class ClusterSlot:
    """What holds for the whole cluster. `extra`: lines of keys that are not known here."""

    maintenance: bool
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sweep:
    """One reading of the volume, decoded.

    `cluster` is None when slot 0 was not read or (`cluster_fault`) cannot be read: the last
    good value then holds. Host ids of empty slots are in neither `reports` nor `bad`.
    """

    cluster: ClusterSlot | None
    cluster_fault: BadSlot | None
    reports: dict[int, SlotReport]
    bad: dict[int, BadSlot]

    @property
    def newer_versions(self) -> tuple[int, ...]:
        """Host ids whose slots were written by a version newer than this one, ascending."""
        return tuple(i for i in sorted(self.bad) if self.bad[i].fault is SlotFault.NEWER_VERSION)


# ---------------------------------------------------------------------------- writing


def encode_slot(report: SlotReport, sign: Sign | None = None) -> bytes:
    """The 4096 bytes of a host's slot. `sign`: makes its signature; None, or an empty result: the
    slot has none.

    Always fits: see `fit_hostname`, `engine_status.encode` and `extra.encode` for what is cut.
    A number out of its range is the caller's bug and an AssertionError. `extra_trusted` is not
    ignored: what is written here is always checksummed.
    """
    assert 1 <= report.host_id <= HOST_ID_MAX, report.host_id
    assert 0 <= report.timestamp <= TIMESTAMP_MAX, report.timestamp
    assert 0 <= report.score <= SCORE_MAX, report.score
    assert 0 <= report.local_conf_timestamp <= TIMESTAMP_MAX, report.local_conf_timestamp
    assert report.parse_version == PARSE_VERSION, report.parse_version
    assert PARSE_VERSION <= report.feature_version <= TIMESTAMP_MAX, report.feature_version

    fields = [
        str(report.parse_version),
        str(report.feature_version),
        str(report.timestamp),
        str(report.host_id),
        str(report.score),
        "",
        fit_hostname(report.hostname),
        _flag(report.maintenance),
        _flag(report.stopped),
        _NO_CRC_YET.decode(),
        _flag(report.conf_on_shared_storage),
        str(report.local_conf_timestamp),
    ]
    room = HEAD_BYTES - len("|".join(fields).encode())
    fields[5] = engine_status.encode(report.engine_status, room)
    fields[_CRC_FIELD] = f"{zlib.crc32('|'.join(fields).encode()):08x}"
    head = "|".join(fields).encode()
    assert len(head) <= HEAD_BYTES, len(head)
    assert len(fields) - 1 == head.count(b"|"), head

    body = head.ljust(HEAD_BYTES, b"\0") + extra.encode(report.extra)
    if sign is not None and (mac := sign(body)):
        body += f"{MAC_KEY}={mac}\n".encode()
    slot = body + f"end={zlib.crc32(body):08x}\n".encode()
    assert len(slot) <= SLOT_BYTES, len(slot)
    return slot.ljust(SLOT_BYTES, b"\0")


def encode_cluster(
    maintenance: bool, extra: Mapping[str, str] | None = None, sign: Sign | None = None
) -> bytes:
    """The 4096 bytes of the cluster slot. `extra`: further lines; none holds "=" in its value.
    `sign`: as in `encode_slot`.

    No newline after the last line: the reference splits at newlines and then splits every piece
    at "=", the empty one after a last newline included, and fails.
    """
    lines = [f"maintenance={_flag(maintenance)}"]
    for key, value in (extra or {}).items():
        assert "=" not in key + value and key.isascii(), key
        lines.append(f"{key}={clean(value)}")
    data = "\n".join(lines).encode()
    if sign is not None and (mac := sign(data)):
        data += f"\n{MAC_KEY}={mac}".encode()
    assert len(data) <= SLOT_BYTES, len(data)
    return data.ljust(SLOT_BYTES, b"\0")


def fit_hostname(name: str) -> str:
    """The name as it is published: UTF-8, at most 253 bytes, without "|" and unprintables.

    Those are percent-encoded byte by byte ("|" is %7C). A longer name ends in "~" and 8 hex
    digits of its SHA-256, so that two long names stay distinct. Applied to its own result it
    changes nothing.
    """
    whole = name
    if "|" in name or not name.isprintable():
        whole = "".join(_percent(char) if _unfit(char) else char for char in name)
    if len(whole.encode()) <= HOSTNAME_BYTES_MAX:
        return whole
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    tail = "~" + digest[:_NAME_HASH_DIGITS]
    return cut_bytes(whole, HOSTNAME_BYTES_MAX - len(tail)) + tail


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _unfit(char: str) -> bool:
    """Whether a character would not be shown by a reader."""
    return char == "|" or not char.isprintable()


def _percent(char: str) -> str:
    try:
        raw = char.encode("utf-8", "surrogateescape")  # os.fsdecode's stand-in for a raw byte
    except UnicodeEncodeError:
        raw = char.encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in raw)


# ---------------------------------------------------------------------------- reading


def decode_slot(host_id: int, data: bytes) -> SlotReport | None:
    """The report in the slot of `host_id`; None: the slot is empty (all NUL). Raises BadSlot.

    `data`: the slot's bytes; fewer than 4096 are a slot cut short, more are ignored.
    """
    assert 1 <= host_id <= HOST_ID_MAX, host_id
    data = data[:SLOT_BYTES]

    def bad(fault: SlotFault, sentence: str) -> NoReturn:
        raise BadSlot(host_id, fault, sentence)

    # This comes first: a newer version may have changed everything else, the checksum too.
    version = _leading_version(data)
    if version is not None and version > PARSE_VERSION:
        bad(
            SlotFault.NEWER_VERSION,
            f"written in version {_shown_number(version)}, this program reads up to"
            f" {PARSE_VERSION}; upgrade this host",
        )
    if len(data) < SLOT_BYTES:
        bad(SlotFault.SHORT, f"{len(data)} of {SLOT_BYTES} bytes; was the volume shrunk?")
    if data[0] == 0:
        if data == EMPTY_SLOT:
            return None
        bad(SlotFault.NUL_FIRST, "first byte is NUL but there is data behind it")

    fields = _checked_fields(host_id, data, version)

    def number(index: int, name: str, most: int, fault: SlotFault) -> int:
        if not _NUMBER.fullmatch(fields[index]):
            bad(SlotFault.NOT_A_NUMBER, f"{name} is {shown(fields[index])}, not a number")
        value = int(fields[index])  # 512 digits at most: int() refuses 4300 and more
        if fields[index].startswith(b"-") or value > most:
            bad(fault, f"{name} is {_shown_number(value)}, not 0..{most}")
        return value

    def flag(index: int, name: str) -> bool:
        return index < len(fields) and number(index, name, 1, SlotFault.FLAG_RANGE) == 1

    parse_version = number(0, "parse version", PARSE_VERSION, SlotFault.NEWER_VERSION)
    feature_version = number(1, "feature version", TIMESTAMP_MAX, SlotFault.NEWER_VERSION)
    if parse_version < PARSE_VERSION or feature_version < PARSE_VERSION:
        bad(SlotFault.OLDER_VERSION, "written before version 1; upgrade that host")
    written_by = number(3, "host id", TIMESTAMP_MAX, SlotFault.WRONG_HOST)
    if written_by != host_id:
        bad(SlotFault.WRONG_HOST, f"holds the report of host {written_by}; two hosts with one id?")

    lines, is_trusted = extra.decode(data)
    return SlotReport(
        host_id=host_id,
        timestamp=number(2, "timestamp", TIMESTAMP_MAX, SlotFault.TIMESTAMP_RANGE),
        score=number(4, "score", SCORE_MAX, SlotFault.SCORE_RANGE),
        engine_status=engine_status.decode(host_id, fields[5]),
        hostname=clean(fields[6].decode()),
        maintenance=flag(7, "maintenance"),
        stopped=flag(8, "stopped"),
        conf_on_shared_storage=flag(10, "conf on shared storage"),
        local_conf_timestamp=(
            number(_LAST_FIELD, "local conf timestamp", TIMESTAMP_MAX, SlotFault.TIMESTAMP_RANGE)
            if len(fields) > _LAST_FIELD
            else 0
        ),
        extra=lines,
        extra_trusted=is_trusted,
        parse_version=parse_version,
        feature_version=feature_version,
    )


def _checked_fields(host_id: int, data: bytes, version: int | None) -> list[bytes]:
    """The fields of a head whose checksum fits; BadSlot."""

    def bad(fault: SlotFault, sentence: str) -> NoReturn:
        raise BadSlot(host_id, fault, sentence)

    head = unpadded(data[:HEAD_BYTES])
    if b"\0" in head:
        bad(SlotFault.NUL_INSIDE, f"NUL at byte {head.index(0)} with more of the head behind it")
    if not is_utf8(head):
        bad(SlotFault.NOT_UTF8, "the head is not UTF-8 text")
    if version is None:
        bad(SlotFault.NO_VERSION, "does not begin with a version number")

    fields = head.split(b"|")
    if len(fields) < _FIELDS_MIN:
        bad(SlotFault.TOO_FEW_FIELDS, f"{len(fields)} fields, at least {_FIELDS_MIN} expected")
    if len(fields) <= _CRC_FIELD or not _CRC.fullmatch(fields[_CRC_FIELD]):
        bad(SlotFault.NO_CRC, f"no checksum in field {_CRC_FIELD + 1} of {len(fields)}")
    unsigned = [*fields]
    unsigned[_CRC_FIELD] = _NO_CRC_YET
    computed = b"%08x" % zlib.crc32(b"|".join(unsigned))
    if computed != fields[_CRC_FIELD]:
        stated = fields[_CRC_FIELD].decode()
        bad(SlotFault.CRC, f"checksum {stated} does not fit, computed {computed.decode()}")
    return fields


def decode_cluster(data: bytes) -> ClusterSlot:
    """The content of slot 0; all NUL: nothing was ever set. Raises BadSlot (of host id 0).

    Stricter than the reference in one point: data without any maintenance line is a fault, not
    "no maintenance", since one damaged letter of the key must not end a global maintenance.
    """

    def bad(fault: SlotFault, sentence: str) -> NoReturn:
        raise BadSlot(0, fault, sentence)

    data = data[:SLOT_BYTES]
    if len(data) < SLOT_BYTES:
        bad(SlotFault.SHORT, f"{len(data)} of {SLOT_BYTES} bytes; was the volume shrunk?")
    if data == EMPTY_SLOT:
        return ClusterSlot(maintenance=False)
    raw = unpadded(data)
    if raw[0] == 0:
        bad(SlotFault.NUL_FIRST, "first byte is NUL but there is data behind it")
    if b"\0" in raw:
        bad(SlotFault.NUL_INSIDE, f"NUL at byte {raw.index(0)} with more data behind it")
    if not is_utf8(raw):
        bad(SlotFault.NOT_UTF8, "not UTF-8 text")

    maintenance: bool | None = None
    extra: dict[str, str] = {}
    for line in raw.decode().split("\n"):
        if not line.strip():
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            bad(SlotFault.NO_EQUALS_SIGN, f"line {shown(line.encode())} has no '='")
        if key != "maintenance":
            extra[clean(key)] = clean(value)
            continue
        said = _BOOL_WORDS.get(value.lower())
        if said is None:
            bad(SlotFault.MAINTENANCE_VALUE, f"maintenance is {shown(value.encode())}, not 0 or 1")
        if maintenance is not None and maintenance != said:
            bad(SlotFault.MAINTENANCE_CONFLICT, "one line sets maintenance, another clears it")
        maintenance = said
    if maintenance is None:
        bad(SlotFault.MAINTENANCE_MISSING, "holds data but no line maintenance=0 or 1")
    return ClusterSlot(maintenance=maintenance, extra=extra)


def decode_sweep(slots: Mapping[int, bytes]) -> Sweep:
    """Decode one reading of the volume, {slot: bytes}; never raises for any bytes."""
    cluster: ClusterSlot | None = None
    cluster_fault: BadSlot | None = None
    reports: dict[int, SlotReport] = {}
    bad: dict[int, BadSlot] = {}
    for slot in sorted(slots):
        try:
            if slot == 0:
                cluster = decode_cluster(slots[slot])
            elif (report := decode_slot(slot, slots[slot])) is not None:
                reports[slot] = report
        except BadSlot as err:
            # The error is kept as a value: its traceback would keep the frames and their bytes.
            fault = err.with_traceback(None)
            if slot == 0:
                cluster_fault = fault
            else:
                bad[slot] = fault
    return Sweep(cluster, cluster_fault, reports, bad)


#: The reference uses the first letter of 1/0, t/f, y/n; whole words are required here.
_BOOL_WORDS = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off"), False),
}


def _leading_version(data: bytes) -> int | None:
    """The number at the head's beginning, if the head is text that continues after the number.

    Damage that happens to begin with a digit must not look like a newer version, which stops
    every host from acting: hence text only.
    """
    head = unpadded(data[:HEAD_BYTES])
    digits = _LEADING_DIGITS.match(head)
    if digits is None or digits.end() == len(data):
        return None
    try:
        # Not final: a newer layout may continue after byte 511, in the middle of a character.
        codecs.utf_8_decode(head, "strict", False)
    except UnicodeDecodeError:
        return None
    return int(digits.group())  # 512 digits at most


def _shown_number(value: int) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:16]}... ({len(text)} digits)"
