# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shared storage as somebody wrote it who means harm: bytes whose checksums are right and whose
contents are not. A seed makes the same cluster again."""

from __future__ import annotations

import json
import zlib
from random import Random

from broker.whiteboard.fence_log import FIRST_SLOT, RECORDS, slot_of
from broker.whiteboard.layout import WHAT_RAN_SLOTS
from broker.whiteboard.room import DECIDES, PROSE, SHOWN
from broker.whiteboard.sizes import HEAD_BYTES, SLOT_BYTES
from scoring.observation import FenceStep
from scoring.vm.state import StateName
from scoring.vm_facts import Health, VmStatus

#: What must reach no terminal, log line, page or metric as it is.
TEXTS = (
    "\x1b[2J\x1b]0;owned\x07",
    "ok\nHost 2 is fenced\r\n",
    "\u202egnp.exe\u2066",
    "a\u2028b\u0085c\x9b31m",
    "zero\u200bwidth\ufeff",
    "'\"><script>alert(1)</script>{host}%s%n",
    "\N{SNOWMAN}" * 30,
    "x" * 300,
    "",
)
NUMBERS = (
    0,
    1,
    2,
    9999,
    10**6,
    10**12 - 1,
    10**12,
    10**15 - 1,
    2**52,
    2**52 + 1,
    2**53 - 1,
    2**53,
    2**53 + 1,
    2**64,
    10**30,
    -1,
)
_KEYS = tuple(key.replace("*", "2") for key in (*DECIDES, *SHOWN, *PROSE))
_FORMS = (
    "{n}",
    "{t}",
    "{n} {t}",
    "migrate {h} from {h} within {n} s",
    "migrate {t}",
    "fence {h}",
    "switch on {h}",
    "{h} {n} {n}.0 -",
    "{h} {n} - {n}.5",
    "ok 1-2000,{n} {n} {n} 999999.99;bad {h} - {n} 0.10",
    "1-2000,{n},2-1",
    "{h}.example.org:8765,[::1]:{n},{t}:1",
    "+{t} -%1b%0a{n}",
    '{{"timing.beat": {n}, "cluster.name": "{j}", "score.base-score": [[1]]}}',
    "%1B[31m%0A{n}",
    "yes",
    "good",
    "bad",
    "silent for {n} s",
    "stopped",
)


class Hostile:
    """One cluster that seed `seed` makes; `slots()` are its bytes, other ones at each call."""

    def __init__(self, seed: int, own: int = 1) -> None:
        self._random = Random(seed)
        self._own = own
        self._hosts = sorted({own, *self._random.sample(range(1, 17), 4), 2000})

    def slots(self) -> dict[int, bytes]:
        """Slot number -> 4096 bytes."""
        chance = self._random
        found = {host: self._slot(host) for host in self._hosts if chance.random() < 0.9}
        if chance.random() < 0.7:
            found[0] = self._cluster()
        for _ in range(chance.randrange(6)):
            number = chance.choice([chance.randrange(1, 300), *NUMBERS])
            place = slot_of(number) if number > 0 else FIRST_SLOT
            if chance.random() < 0.2:
                place = FIRST_SLOT + chance.randrange(RECORDS)
            found[place] = self._record(number)
        for place in WHAT_RAN_SLOTS:
            if chance.random() < 0.5:
                found[place] = self._what_ran()
        return found

    def _number(self) -> int:
        return self._random.choice(NUMBERS)

    def _text(self) -> str:
        return self._random.choice(TEXTS)

    def _value(self) -> str:
        form = self._random.choice(_FORMS)
        text = self._text()
        return form.format(
            n=self._number(),
            t=text,
            h=self._random.choice([*self._hosts, 9999]),
            j=json.dumps(text)[1:-1],
        ).replace("\n", self._random.choice(["\n", " "]))

    def _slot(self, host: int) -> bytes:
        chance = self._random
        if chance.random() < 0.05:
            return chance.randbytes(SLOT_BYTES)
        known: dict[str, list[int]] = {
            "timestamp": [2**53, 2**53 - 1, chance.randrange(10**6)],
            "score": [0, 3400, 10_000],
        }
        score = chance.choice(known["score"])
        timestamp = chance.choice(known["timestamp"])
        if chance.random() < 0.1:
            timestamp = self._number()
        if chance.random() < 0.05:
            score = self._number()
        engine = {
            "vm": chance.choice([word.value for word in VmStatus]),
            "health": chance.choice([word.value for word in Health]),
            "detail": self._text()[:60],
            "reason": self._text()[:60],
        }
        fields = [
            "1" if chance.random() < 0.97 else str(self._number()),
            "1",
            str(timestamp),
            str(host),
            str(score),
            json.dumps(engine).replace("|", ""),
            self._text()[:40].replace("|", "") + f"host{host}",
            chance.choice("01"),
            chance.choice("0001"),
            "00000000",
            "1",
            str(chance.choice([0, 2**53])),
        ]
        fields[9] = f"{zlib.crc32('|'.join(fields).encode()):08x}"
        head = "|".join(fields).encode()[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0")
        lines = b"".join(
            f"{key}={self._value()}\n".encode()
            for key in chance.sample(_KEYS, chance.randrange(len(_KEYS)))
        )
        if chance.random() < 0.5:
            state = chance.choice(list(StateName)).value
            lines += f"state={state}\nlast-ran={self._number()}\nboot-id={self._text()}\n".encode()
        lines = lines[:3500]
        lines = lines[: lines.rfind(b"\n") + 1]
        body = head + lines
        if chance.random() < 0.9:
            body += f"end={zlib.crc32(body):08x}\n".encode()
        return body.ljust(SLOT_BYTES, b"\0")[:SLOT_BYTES]

    def _cluster(self) -> bytes:
        chance = self._random
        lines = [f"maintenance={chance.choice('01')}"]
        for key in ("owner", "reason", "since", "lasts", "serial", "release-id", self._text()):
            lines.append(f"{key}={self._value()}")
        return "\n".join(lines).encode()[:SLOT_BYTES].ljust(SLOT_BYTES, b"\0")

    def _record(self, number: int) -> bytes:
        chance = self._random
        value = {
            "number": number,
            "step": chance.choice([step.value for step in FenceStep]),
            "by": chance.choice([*self._hosts, self._number()]),
            "by_name": self._text(),
            "target": chance.choice([*self._hosts, self._number()]),
            "target_name": self._text(),
            "boot_id": self._text(),
            "wall_s": chance.choice([0, 1.8e9, 1e300, self._number()]),
            "text": self._text(),
            "by_generation": self._number(),
            "over": self._text(),
        }
        text = json.dumps(value)
        if chance.random() < 0.1:
            text = text.replace(f'"number": {number}', '"number": ' + "9" * 3900, 1)
        line = text[:4070].encode() + b"\n"
        return (line + b"end=%08x\n" % zlib.crc32(line)).ljust(SLOT_BYTES, b"\0")[:SLOT_BYTES]

    def _what_ran(self) -> bytes:
        chance = self._random
        generation, ran = (abs(self._number()) % 10**15 for _ in "gr")
        disk = f"<disk><target dev='vda'/><source file='/x{self._number()}'/></disk>"
        value = {
            "generation": generation,
            "last_ran": ran,
            "by": self._number(),
            "by_name": self._text(),
            "at": self._number(),
            "disks": {"vda": disk, self._text(): disk},
            "instead_of": {"vda": self._text()},
            "held": self._text(),
            "only": chance.choice([0, self._number()]),
            "decided": self._text(),
        }
        rest = zlib.compress(json.dumps(value).encode())
        head = b"what-ran %d %d %d %08x" % (generation, ran, len(rest), zlib.crc32(rest))
        return (head + b" %08x\n" % zlib.crc32(head) + rest).ljust(SLOT_BYTES, b"\0")
