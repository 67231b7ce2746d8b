# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whiteboard's codec: round trips, the reference's bytes, every fault by its name."""

from __future__ import annotations

import binascii
import json
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.whiteboard.errors import BadSlot, SlotFault
from broker.whiteboard.padding import unpadded
from broker.whiteboard.sizes import EXTRA_BYTES, HEAD_BYTES, SLOT_BYTES
from broker.whiteboard.slot import (
    EMPTY_SLOT,
    HOSTNAME_BYTES_MAX,
    SCORE_MAX,
    SlotReport,
    decode_cluster,
    decode_slot,
    decode_sweep,
    encode_cluster,
    encode_slot,
    fit_hostname,
)
from broker.wire.limits import HOST_ID_MAX, TIMESTAMP_MAX
from scoring.vm_facts import DETAIL_ALREADY_LOCKED, EngineStatus, Health, VmStatus
from tests.unit.draws import draws

# A loaded machine may take its time: what is measured here is what comes out, not how fast.

GOOD_UP = '{"vm": "up", "health": "good", "detail": "Up"}'
DOWN_BAD = (
    '{"vm": "down", "health": "bad", "detail": "unknown", "reason": "vm not running on this host"}'
)


def by_hand(*fields: object, crc: str | None = None, extra: bytes = b"") -> bytes:
    """A slot as the format says, written independently of the code under test.

    Field 9 is replaced by the checksum, or by `crc`.
    """
    texts = [str(field) for field in fields]
    if len(texts) > 9:
        texts[9] = "00000000"
        checksum = binascii.crc32("|".join(texts).encode("utf-8", "surrogateescape"))
        texts[9] = f"{checksum & 0xFFFFFFFF:08x}" if crc is None else crc
    head = "|".join(texts).encode("utf-8", "surrogateescape")
    assert len(head) <= 512
    return head.ljust(512, b"\0") + extra.ljust(3584, b"\0")


def slot_of_1(**changed: object) -> bytes:
    """Host 1's slot by hand with some fields changed by name."""
    fields: dict[str, object] = {
        "parse": 1,
        "feature": 1,
        "timestamp": 15233,
        "host_id": 1,
        "score": 3400,
        "status": GOOD_UP,
        "hostname": "on20-host02",
        "maintenance": 0,
        "stopped": 0,
        "crc": "",
        "conf": 1,
        "conf_timestamp": 15233,
    }
    assert changed.keys() <= fields.keys()
    return by_hand(*(fields | changed).values())


def fault_of(data: bytes, host_id: int = 1) -> SlotFault:
    with pytest.raises(BadSlot) as caught:
        decode_slot(host_id, data)
    assert caught.value.host_id == host_id
    assert caught.value.cause.startswith(f"{caught.value.fault}: ")
    assert caught.value.cause.isascii()
    assert caught.value.cause.isprintable()
    return caught.value.fault


def cluster_fault_of(data: bytes) -> SlotFault:
    with pytest.raises(BadSlot) as caught:
        decode_cluster(data)
    assert caught.value.host_id == 0
    return caught.value.fault


def decoded(data: bytes, host_id: int = 1) -> SlotReport:
    report = decode_slot(host_id, data)
    assert report is not None
    return report


# Text with everything in it that could break a "|" or line format, lone surrogates included.
HOSTILE = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from('|=\n\r\0%~"\\\x1b\x85\u2028\ud800\udcff\U0001f980é'),
    )
)
# Text that survives unchanged where only size matters.
PLAIN = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="|="))


def reports(text: st.SearchStrategy[str]) -> st.SearchStrategy[SlotReport]:
    return st.builds(
        SlotReport,
        host_id=st.integers(1, HOST_ID_MAX),
        timestamp=st.integers(0, TIMESTAMP_MAX),
        score=st.integers(0, SCORE_MAX),
        engine_status=st.builds(
            EngineStatus,
            vm=st.sampled_from(VmStatus),
            health=st.sampled_from(Health),
            detail=text,
            reason=st.none() | text,
        ),
        hostname=text,
        maintenance=st.booleans(),
        stopped=st.booleans(),
        conf_on_shared_storage=st.booleans(),
        local_conf_timestamp=st.integers(0, TIMESTAMP_MAX),
        extra=st.dictionaries(text, text, max_size=8),
        extra_trusted=st.just(True),
    )


SMALL_TEXT = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="|=", max_codepoint=0x7E),
    min_size=1,
    max_size=30,
)
A_REPORT = SlotReport(
    host_id=7,
    timestamp=42,
    score=3400,
    engine_status=EngineStatus(VmStatus.DOWN, Health.BAD, "down", "vm not running on this host"),
    hostname="host7.example",
    conf_on_shared_storage=True,
    local_conf_timestamp=41,
    extra={"state": "EngineDown", "boot-id": "6f1c", "score-why": "network -1600: 0 of 3 passed"},
    extra_trusted=True,
)


class TestTheReferencesBytes:
    """Slots of the reference as published with their checksums by people who run it."""

    @pytest.mark.parametrize(
        ("host_id", "line"),
        [
            (1, f"1|1|15233|1|3400|{GOOD_UP}|on20-host02|0|0|460020d4|1|15233"),
            (2, f"1|1|15253|2|3400|{DOWN_BAD}|on20-host01|0|0|231e0e5c|1|15253"),
            (1, f"1|1|10187|1|3400|{GOOD_UP}|host1.ovirt.local|0|0|a1c1f3b9|1|10187"),
            (
                1,  # reference 3.5: the fields end with the checksum
                '1|1|235828|1|3400|{"health": "good", "vm": "up", "detail": "up"}'
                "|node1.supcom|0|0|f322c3c1",
            ),
        ],
    )
    def test_published_slots_are_read_and_their_checksums_fit(
        self, host_id: int, line: str
    ) -> None:
        fields = line.split("|")
        report = decoded(line.encode().ljust(SLOT_BYTES, b"\0"), host_id)
        assert report.timestamp == int(fields[2])
        assert report.hostname == fields[6]
        assert report.score == 3400
        assert report.engine_status.vm == json.loads(fields[5])["vm"]
        assert report.engine_status.detail == json.loads(fields[5])["detail"]
        assert report.conf_on_shared_storage is (len(fields) > 10)
        assert report.local_conf_timestamp == (int(fields[11]) if len(fields) > 11 else 0)
        assert report.extra == {}
        assert not report.extra_trusted

    def test_what_we_write_of_the_same_report_has_the_same_head(self) -> None:
        line = f"1|1|15253|2|3400|{DOWN_BAD}|on20-host01|0|0|231e0e5c|1|15253"
        theirs = line.encode().ljust(SLOT_BYTES, b"\0")
        ours = encode_slot(decoded(theirs, 2))
        assert ours[:HEAD_BYTES] == theirs[:HEAD_BYTES]

    def test_its_text_is_kept_for_people_and_not_trusted(self) -> None:
        text = (
            b"metadata_parse_version=1\nmetadata_feature_version=1\n"
            b"timestamp=15233 (Mon Mar  6 21:29:16 2023)\nhost-id=1\nscore=3400\n"
            b"conf_on_shared_storage=True\nmaintenance=False\nstate=EngineUp\nstopped=False\n"
        )
        fields = (1, 1, 15233, 1, 3400, GOOD_UP, "on20-host02", 0, 0, "", 1, 15233)
        report = decoded(by_hand(*fields, extra=text))
        assert report.extra["state"] == "EngineUp"
        assert report.extra["timestamp"] == "15233 (Mon Mar  6 21:29:16 2023)"
        assert not report.extra_trusted

    def test_ours_is_read_by_a_reader_of_the_reference_format(self) -> None:
        """A reader written from the format's description alone finds every field."""
        head = encode_slot(A_REPORT)[:512].rstrip(b"\0").decode()
        tokens = head.split("|")
        assert len(tokens) == 12
        assert [int(tokens[i]) for i in (0, 1, 2, 3, 4)] == [1, 1, 42, 7, 3400]
        assert json.loads(tokens[5]) == {
            "vm": "down",
            "health": "bad",
            "detail": "down",
            "reason": "vm not running on this host",
        }
        assert tokens[6:9] == ["host7.example", "0", "0"]
        assert tokens[10:] == ["1", "41"]
        again = "|".join([*tokens[:9], "00000000", *tokens[10:]])
        assert tokens[9] == f"{binascii.crc32(again.encode()):08x}"

    def test_fields_a_newer_feature_appends_are_ignored(self) -> None:
        data = by_hand(1, 3, 5, 1, 100, GOOD_UP, "a", 1, 1, "", 0, 4, "new", '{"x": 1}')
        report = decoded(data)
        assert report.feature_version == 3
        assert (report.score, report.maintenance, report.stopped) == (100, True, True)

    @pytest.mark.parametrize("word", ["already_locked", "already-locked"])
    def test_its_old_word_for_a_lost_race_is_down_with_a_detail(self, word: str) -> None:
        status = json.dumps({"vm": word, "health": "bad", "detail": "down", "reason": "locked"})
        assert decoded(slot_of_1(status=status)).engine_status == EngineStatus(
            VmStatus.DOWN, Health.BAD, DETAIL_ALREADY_LOCKED, "locked"
        )


class TestRoundTrip:
    @given(reports(SMALL_TEXT))
    def test_a_report_that_fits_comes_back_the_same(self, report: SlotReport) -> None:
        data = encode_slot(report)
        assert len(data) == SLOT_BYTES
        assert decoded(data, report.host_id) == report

    @given(reports(HOSTILE))
    @settings(max_examples=draws(300))
    def test_any_report_is_made_to_fit_and_twice_is_the_same_as_once(
        self, report: SlotReport
    ) -> None:
        data = encode_slot(report)
        assert len(data) == SLOT_BYTES
        again = decoded(data, report.host_id)
        assert encode_slot(again) == data
        for name in ("timestamp", "score", "maintenance", "stopped", "local_conf_timestamp"):
            assert getattr(again, name) == getattr(report, name)
        assert again.engine_status.vm == report.engine_status.vm
        assert again.engine_status.health == report.engine_status.health
        assert again.extra_trusted

    @given(st.integers(-(2**70), 2**70).filter(lambda n: not 0 <= n <= SCORE_MAX))
    def test_a_score_out_of_range_is_not_written(self, score: int) -> None:
        with pytest.raises(AssertionError):
            encode_slot(replace(A_REPORT, score=score))

    @pytest.mark.parametrize("changed", [{"host_id": 0}, {"host_id": 2001}, {"timestamp": -1}])
    def test_other_numbers_out_of_range_are_not_written(self, changed: dict[str, int]) -> None:
        with pytest.raises(AssertionError):
            encode_slot(replace(A_REPORT, **changed))  # type: ignore[arg-type]


class TestNames:
    @pytest.mark.parametrize(
        ("name", "published"),
        [
            ("host1.example", "host1.example"),
            ("", ""),
            ("bücher.example", "bücher.example"),
            ("主机一", "主机一"),
            ("a|b", "a%7Cb"),
            ("a\nb\0c\x1b[2J", "a%0Ab%00c%1B[2J"),
            ("a\u2028b", "a%E2%80%A8b"),
            ("raw\udcff", "raw%FF"),
            ("lone\ud800", "lone%ED%A0%80"),
        ],
    )
    def test_names_as_they_are_published(self, name: str, published: str) -> None:
        assert fit_hostname(name) == published
        report = decoded(encode_slot(replace(A_REPORT, hostname=name)), 7)
        assert report.hostname == published
        assert report.engine_status == A_REPORT.engine_status, "nothing else gave way"

    @pytest.mark.parametrize("letter", ["x", "é", "主", "\U0001f980", "|", "\0"])
    def test_two_long_names_stay_distinct_and_whole_characters(self, letter: str) -> None:
        one, other = letter * 600 + "1", letter * 600 + "2"
        for name in (one, other):
            shown = fit_hostname(name)
            assert len(shown.encode()) <= HOSTNAME_BYTES_MAX
            assert fit_hostname(shown) == shown
            assert decoded(encode_slot(replace(A_REPORT, hostname=name)), 7).hostname == shown
        assert fit_hostname(one) != fit_hostname(other)

    @given(HOSTILE)
    def test_any_name_is_fit_to_publish_and_stays_so(self, name: str) -> None:
        shown = fit_hostname(name)
        assert len(shown.encode()) <= HOSTNAME_BYTES_MAX
        assert "|" not in shown
        assert "\0" not in shown
        assert fit_hostname(shown) == shown

    def test_detail_survives_the_longest_name_and_the_longest_reason(self) -> None:
        status = EngineStatus(
            VmStatus.DOWN_UNEXPECTED, Health.UNKNOWN, "migration source", "r" * 900
        )
        report = replace(
            A_REPORT,
            host_id=HOST_ID_MAX,
            timestamp=TIMESTAMP_MAX,
            local_conf_timestamp=TIMESTAMP_MAX,
            score=SCORE_MAX,
            hostname="h" * 900,
            engine_status=status,
        )
        back = decoded(encode_slot(report), HOST_ID_MAX)
        assert back.engine_status.detail == "migration source"
        assert back.engine_status.reason is not None
        assert back.engine_status.reason.endswith("...")

    def test_a_reason_is_cut_before_the_detail(self) -> None:
        status = EngineStatus(VmStatus.UP, Health.BAD, "d" * 100, "é|" * 200)
        back = decoded(encode_slot(replace(A_REPORT, engine_status=status)), 7).engine_status
        assert back.detail == "d" * 100
        assert back.reason is not None
        assert back.reason.startswith("é|é|")
        assert back.reason.endswith("...")


class TestExtra:
    def test_what_has_no_room_is_dropped_from_the_end_and_counted(self) -> None:
        extra = {f"key{i}": "v" * 200 for i in range(40)}
        back = decoded(encode_slot(replace(A_REPORT, extra=extra)), 7)
        assert back.extra_trusted
        kept = [key for key in back.extra if key != "truncated"]
        assert kept == list(extra)[: len(kept)]
        assert len(kept) >= 15
        assert back.extra["truncated"] == str(40 - len(kept))

    def test_lines_that_just_fill_the_room_are_kept_whole(self) -> None:
        room = EXTRA_BYTES - len("end=01234567\n") - len(f"mac={'0' * 64}\n")
        lines = {f"k{i}": "v" * 500 for i in range(6)}
        used = sum(len(key) + len(value) + 2 for key, value in lines.items())
        exact = {**lines, "z": "v" * (room - used - len("z=\n"))}
        assert decoded(encode_slot(replace(A_REPORT, extra=exact)), 7).extra == exact
        over = {**exact, "z": exact["z"] + "v"}
        assert decoded(encode_slot(replace(A_REPORT, extra=over)), 7).extra == {
            **lines,
            "truncated": "1",
        }

    def test_keys_and_values_cannot_break_out_of_their_line(self) -> None:
        extra = {"a=b\nc": "1\nstate=EngineUp\0", "": "x", "end": "00000000", "é": "ü=|\ud800"}
        back = decoded(encode_slot(replace(A_REPORT, extra=extra)), 7)
        assert back.extra_trusted
        assert back.extra == {
            "a_b c": "1 state=EngineUp?",
            "_": "x",
            "end": "00000000",
            "é": "ü=|?",
        }

    def test_no_lines_at_all_are_trusted_too(self) -> None:
        back = decoded(encode_slot(replace(A_REPORT, extra={})), 7)
        assert (back.extra, back.extra_trusted) == ({}, True)

    def test_an_end_in_the_middle_of_a_line_is_none(self) -> None:
        body = encode_slot(A_REPORT)[:HEAD_BYTES] + b"state=EngineUp "
        slot = body + b"end=%08x\n" % binascii.crc32(body)
        assert not decoded(slot.ljust(SLOT_BYTES, b"\0"), 7).extra_trusted

    def test_text_that_is_not_utf8_does_not_cost_the_head(self) -> None:
        data = encode_slot(A_REPORT)[:HEAD_BYTES] + b"\xff\xfe" * (EXTRA_BYTES // 2)
        back = decoded(data, 7)
        assert (back.extra, back.extra_trusted) == ({}, False)
        assert back.score == A_REPORT.score

    def test_lines_of_another_beat_than_the_head_are_not_trusted(self) -> None:
        """A 4 KiB write may be torn at a 512-byte sector."""
        earlier = encode_slot(A_REPORT)
        later = encode_slot(replace(A_REPORT, timestamp=43))
        torn = later[:HEAD_BYTES] + earlier[HEAD_BYTES:]
        assert decoded(torn, 7).timestamp == 43
        assert not decoded(torn, 7).extra_trusted

    @given(st.integers(HEAD_BYTES * 8, SLOT_BYTES * 8 - 1))
    def test_one_flipped_bit_costs_the_trust(self, bit: int) -> None:
        back = decoded(flip(encode_slot(A_REPORT), bit), 7)
        assert not back.extra_trusted
        assert replace(back, extra={}) == replace(A_REPORT, extra={}, extra_trusted=False)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class TestFaults:
    @pytest.mark.parametrize(
        ("data", "fault"),
        [
            (b"", SlotFault.SHORT),
            (b"\0" * 100, SlotFault.SHORT),
            (b"\0" * 4095, SlotFault.SHORT),
            (slot_of_1()[:512], SlotFault.SHORT),
            (slot_of_1()[:-1], SlotFault.SHORT),
            (b"\0" + slot_of_1()[1:], SlotFault.NUL_FIRST),
            (b"\0" * 4095 + b"x", SlotFault.NUL_FIRST),
            (slot_of_1(hostname="a\0b"), SlotFault.NUL_INSIDE),
            (slot_of_1()[:511] + b"x" + b"\0" * 3584, SlotFault.NUL_INSIDE),
            (slot_of_1(hostname="raw\udcff"), SlotFault.NOT_UTF8),
            (b"\xff" * 4096, SlotFault.NOT_UTF8),
            (b"9\xff" * 2048, SlotFault.NOT_UTF8),
            (b"x" * 4096, SlotFault.NO_VERSION),
            (b" 1|1" + b"\0" * 4092, SlotFault.NO_VERSION),
            ("٣|1|1|1|1|{}|h".encode().ljust(4096, b"\0"), SlotFault.NO_VERSION),
            (b"1".ljust(4096, b"\0"), SlotFault.TOO_FEW_FIELDS),
            (by_hand(1, 1, 5, 1, 3400, GOOD_UP), SlotFault.TOO_FEW_FIELDS),
            (by_hand(1, 1, 5, 1, 3400, GOOD_UP, "oldest"), SlotFault.NO_CRC),
            (by_hand(1, 1, 5, 1, 3400, GOOD_UP, "older", 0, 0), SlotFault.NO_CRC),
            (by_hand(1, 1, 5, 1, 3400, GOOD_UP, "h", 0, 0, "", crc=""), SlotFault.NO_CRC),
            (by_hand(1, 1, 5, 1, 3400, GOOD_UP, "h", 0, 0, "", crc="460020D4"), SlotFault.NO_CRC),
            (slot_of_1(hostname="a|b"), SlotFault.NO_CRC),
            (slot_of_1(status='{"detail": "a|b"}'), SlotFault.NO_CRC),
            (by_hand(1, 1, 5, 1, 3400, GOOD_UP, "h", 0, 0, "", crc="00000000"), SlotFault.CRC),
            (slot_of_1(parse="1x"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(feature=""), SlotFault.NOT_A_NUMBER),
            (slot_of_1(timestamp="now"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(timestamp="1.5"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(host_id="None"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(score="+3400"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(score="3_400"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(score=" 3400"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(score="3400\n"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(score="٣٤٠٠"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(score="nan"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(maintenance="False"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(conf_timestamp="None"), SlotFault.NOT_A_NUMBER),
            (slot_of_1(host_id=2), SlotFault.WRONG_HOST),
            (slot_of_1(host_id=0), SlotFault.WRONG_HOST),
            (slot_of_1(host_id="9" * 200), SlotFault.WRONG_HOST),
            (slot_of_1(score=10001), SlotFault.SCORE_RANGE),
            (slot_of_1(score=999999999), SlotFault.SCORE_RANGE),
            (slot_of_1(score=-1), SlotFault.SCORE_RANGE),
            (slot_of_1(score="-0"), SlotFault.SCORE_RANGE),
            (slot_of_1(score="9" * 300), SlotFault.SCORE_RANGE),
            (slot_of_1(timestamp=-1), SlotFault.TIMESTAMP_RANGE),
            (slot_of_1(timestamp=2**53 + 1), SlotFault.TIMESTAMP_RANGE),
            (slot_of_1(conf_timestamp=2**64), SlotFault.TIMESTAMP_RANGE),
            (slot_of_1(stopped=2), SlotFault.FLAG_RANGE),
            (slot_of_1(conf=-1), SlotFault.FLAG_RANGE),
            (slot_of_1(parse=0), SlotFault.OLDER_VERSION),
            (slot_of_1(feature=0), SlotFault.OLDER_VERSION),
        ],
    )
    def test_each_has_its_name(self, data: bytes, fault: SlotFault) -> None:
        assert fault_of(data) is fault

    @pytest.mark.parametrize(
        "status",
        [
            "",
            "null",
            "false",
            "[]",
            '"up"',
            "vm-up good-health-status",
            "{}",
            "NaN",
            "{",
            '{"vm": "up"}',
            '{"vm": "up", "health": NaN}',
            '{"vm": "up", "health": "superb", "detail": ""}',
            '{"vm": "sideways", "health": "good", "detail": ""}',
            '{"vm": "\\ud800", "health": "good", "detail": ""}',
            '{"vm": ["up"], "health": "good", "detail": ""}',
            '{"vm": 1, "health": "good", "detail": ""}',
            '{"vm": "up", "health": null, "detail": ""}',
            '{"vm": "up", "health": "good", "detail": 5}',
            '{"vm": "up", "health": "good", "detail": "", "reason": {}}',
            '{"vm": "up", "vm": "down", "health": "good", "detail": ""}',
            '{"vm": "UP", "health": "good", "detail": ""}',
            '{"vm": "up", "health": "good", "detail": "a\nb"}',
            "\ufeff" + GOOD_UP,
            GOOD_UP + "x",
            "[" * 400,
            '{"a":' * 80,
            "1" * 400,
        ],
    )
    def test_a_status_that_is_not_the_object_described(self, status: str) -> None:
        assert fault_of(slot_of_1(status=status)) is SlotFault.ENGINE_STATUS

    @pytest.mark.parametrize(
        ("status", "detail", "reason"),
        [
            ('{"vm": "up", "health": "good"}', "", None),
            ('{"vm": "up", "health": "good", "detail": null, "reason": null}', "", None),
            ('{"vm": "up", "health": "good", "detail": "d", "more": [1, 2]}', "d", None),
            ('{"vm": "up", "health": "good", "detail": "\\ud800", "reason": ""}', "?", ""),
        ],
    )
    def test_detail_and_reason_may_be_absent_and_other_keys_are_ignored(
        self, status: str, detail: str, reason: str | None
    ) -> None:
        assert decoded(slot_of_1(status=status)).engine_status == EngineStatus(
            VmStatus.UP, Health.GOOD, detail, reason
        )

    @pytest.mark.parametrize(
        "data",
        [
            slot_of_1(parse=2, feature=2),
            b"2" + slot_of_1()[1:],  # checksum and all else as of version 1
            b"2;2;whatever a later layout may hold".ljust(4096, b"\0"),
            b"99999999999999999999 {}".ljust(4096, b"\0"),
            b"0002|".ljust(4096, b"\0"),
            b"12".ljust(4096, b"\0"),
            b"2|short",
            b"3\0binary".ljust(4096, b"\0"),
            (b"2;" + "é".encode() * 2047).ljust(4096, b"\0"),
            (b"2; " + "é".encode() * 2046).ljust(4096, b"\0"),
        ],
    )
    def test_a_newer_version_is_recognised_whatever_its_layout(self, data: bytes) -> None:
        assert fault_of(data) is SlotFault.NEWER_VERSION

    def test_a_newer_version_stands_out_of_a_sweep(self) -> None:
        sweep = decode_sweep({1: slot_of_1(), 5: slot_of_1(parse=2), 3: slot_of_1(), 4: b""})
        assert sweep.newer_versions == (5,)
        assert {i: bad.fault for i, bad in sweep.bad.items()} == {
            3: SlotFault.WRONG_HOST,
            4: SlotFault.SHORT,
            5: SlotFault.NEWER_VERSION,
        }

    def test_a_number_cut_off_with_the_slot_is_no_version(self) -> None:
        assert fault_of(b"12") is SlotFault.SHORT

    def test_an_empty_slot_is_no_fault(self) -> None:
        assert decode_slot(1, EMPTY_SLOT) is None

    def test_bytes_behind_the_slot_are_not_its(self) -> None:
        assert decoded(slot_of_1() + b"next") == decoded(slot_of_1())

    def test_edges_of_the_ranges_are_in(self) -> None:
        report = decoded(slot_of_1(score=10000, timestamp=2**53, conf_timestamp=0, hostname=""))
        assert (report.score, report.timestamp, report.hostname) == (10000, 2**53, "")

    def test_a_message_shows_foreign_bytes_harmlessly(self) -> None:
        with pytest.raises(BadSlot) as caught:
            decode_slot(1, slot_of_1(score="\x1b[2J" * 40))
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 120

    @given(st.binary(max_size=SLOT_BYTES + 10))
    def test_any_bytes_are_survived(self, data: bytes) -> None:
        try:
            decode_slot(1, data)
        except BadSlot as bad:
            assert bad.cause.isascii()

    @given(st.binary(max_size=HEAD_BYTES), st.sampled_from([b"", b"1|", b"1|1|5|1|"]), st.binary())
    @example(b"{" * 400, b"1|1|5|1|3400|", b"")
    def test_any_bytes_behind_a_good_beginning_are_survived(
        self, head: bytes, start: bytes, extra: bytes
    ) -> None:
        slot = (start + head)[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0") + extra
        sweep = decode_sweep({1: slot.ljust(SLOT_BYTES, b"\0")})
        assert set(sweep.bad) | set(sweep.reports) <= {1}

    @given(
        st.lists(HOSTILE | st.integers().map(str), min_size=9, max_size=16).map(
            lambda fields: [field.replace("|", "") for field in fields]
        )
    )
    def test_any_fields_under_a_good_checksum_are_survived(self, fields: list[str]) -> None:
        texts = [*fields, *[""] * (10 - len(fields))]
        texts[0] = "1"
        raw = [text.encode("utf-8", "replace")[:40] for text in texts]
        raw[9] = b"00000000"
        raw[9] = b"%08x" % binascii.crc32(b"|".join(raw))
        head = b"|".join(raw)[:HEAD_BYTES]
        sweep = decode_sweep({1: head.ljust(SLOT_BYTES, b"\0")})
        assert len(sweep.bad) + len(sweep.reports) == 1

    def test_one_flipped_bit_in_the_head_costs_the_slot(self) -> None:
        data = encode_slot(A_REPORT)
        for bit in range(HEAD_BYTES * 8):
            with pytest.raises(BadSlot):
                decode_slot(7, flip(data, bit))

    @given(st.integers(1, SLOT_BYTES - 1))
    def test_a_slot_cut_short_costs_the_slot(self, length: int) -> None:
        assert fault_of(encode_slot(A_REPORT)[:length], 7) is SlotFault.SHORT


class TestClusterSlot:
    @pytest.mark.parametrize("maintenance", [True, False])
    def test_written_exactly_so_that_the_reference_can_read_it(self, maintenance: bool) -> None:
        data = encode_cluster(maintenance)
        assert data == b"maintenance=%d" % maintenance + b"\0" * (4096 - len("maintenance=1"))
        # The reference's way: every piece between newlines must come apart at one "=".
        (pair,) = [piece.split("=") for piece in data.rstrip(b"\0").decode().split("\n")]
        assert pair == ["maintenance", str(int(maintenance))]
        assert decode_cluster(data).maintenance is maintenance

    @pytest.mark.parametrize("word", ["1", "true", "True", "TRUE", "t", "yes", "Y", "on", " 1 "])
    def test_words_for_yes(self, word: str) -> None:
        assert decode_cluster(cluster(f"maintenance={word}")).maintenance

    @pytest.mark.parametrize("word", ["0", "false", "False", "F", "no", "n", "off", "0\r"])
    def test_words_for_no(self, word: str) -> None:
        assert not decode_cluster(cluster(f"maintenance={word}\n")).maintenance

    def test_never_written_means_no(self) -> None:
        assert not decode_cluster(EMPTY_SLOT).maintenance

    def test_unknown_keys_and_blank_lines_are_passed_over(self) -> None:
        slot = decode_cluster(cluster("\nowner=anna=b\n  \nmaintenance=1\nmaintenance=yes\n"))
        assert slot.maintenance
        assert slot.extra == {"owner": "anna=b"}

    @pytest.mark.parametrize(
        ("data", "fault"),
        [
            (b"", SlotFault.SHORT),
            (b"maintenance=1", SlotFault.SHORT),
            (b"\0" * 4095, SlotFault.SHORT),
            (b"\0maintenance=1" + b"\0" * 4082, SlotFault.NUL_FIRST),
            (b"\0" * 4095 + b"1", SlotFault.NUL_FIRST),
            (b"maintenance=1\0".ljust(4095, b"\0") + b"x", SlotFault.NUL_INSIDE),
            (b"maintenance=\xff".ljust(4096, b"\0"), SlotFault.NOT_UTF8),
            (b"maintenance".ljust(4096, b"\0"), SlotFault.NO_EQUALS_SIGN),
            (b"maintenance=1\nrubbish".ljust(4096, b"\0"), SlotFault.NO_EQUALS_SIGN),
            (b"maintenance=".ljust(4096, b"\0"), SlotFault.MAINTENANCE_VALUE),
            (b"maintenance=2".ljust(4096, b"\0"), SlotFault.MAINTENANCE_VALUE),
            (b"maintenance=None".ljust(4096, b"\0"), SlotFault.MAINTENANCE_VALUE),
            (b"maintenance=1\nmaintenance=0".ljust(4096, b"\0"), SlotFault.MAINTENANCE_CONFLICT),
            (b"maintfnance=1".ljust(4096, b"\0"), SlotFault.MAINTENANCE_MISSING),
            (b"\n".ljust(4096, b"\0"), SlotFault.MAINTENANCE_MISSING),
        ],
    )
    def test_each_fault_has_its_name(self, data: bytes, fault: SlotFault) -> None:
        assert cluster_fault_of(data) is fault

    @given(
        st.binary(max_size=SLOT_BYTES) | st.binary(max_size=60).map(lambda b: b"maintenance=" + b)
    )
    def test_any_bytes_are_survived(self, data: bytes) -> None:
        for slot in (data, data[:SLOT_BYTES].ljust(SLOT_BYTES, b"\0")):
            sweep = decode_sweep({0: slot})
            assert (sweep.cluster is None) != (sweep.cluster_fault is None)

    @given(st.integers(0, SLOT_BYTES * 8 - 1))
    def test_one_flipped_bit_never_looks_like_no_maintenance_but_for_the_digit_itself(
        self, bit: int
    ) -> None:
        data = flip(encode_cluster(True), bit)
        if data == encode_cluster(False):
            return  # "1" and "0" differ by one bit, and the format has no checksum here
        sweep = decode_sweep({0: data})
        assert sweep.cluster is None or sweep.cluster.maintenance


def cluster(text: str) -> bytes:
    return text.encode().ljust(SLOT_BYTES, b"\0")


class TestSweep:
    def test_a_bad_slot_costs_that_slot_alone(self) -> None:
        sweep = decode_sweep(
            {
                2: b"\xff" * SLOT_BYTES,
                1: slot_of_1(),
                0: encode_cluster(True),
                7: encode_slot(A_REPORT),
                9: EMPTY_SLOT,
            }
        )
        assert sweep.cluster is not None
        assert sweep.cluster.maintenance
        assert sweep.cluster_fault is None
        assert list(sweep.reports) == [1, 7]
        assert sweep.reports[7] == A_REPORT
        assert {i: bad.fault for i, bad in sweep.bad.items()} == {2: SlotFault.NOT_UTF8}
        assert str(sweep.bad[2]).startswith("slot of host 2: not-utf8: ")
        assert sweep.bad[2].__traceback__ is None

    def test_a_bad_cluster_slot_is_neither_on_nor_off(self) -> None:
        sweep = decode_sweep({0: b"rubbish".ljust(SLOT_BYTES, b"\0"), 1: slot_of_1()})
        assert sweep.cluster is None
        assert sweep.cluster_fault is not None
        assert sweep.cluster_fault.fault is SlotFault.NO_EQUALS_SIGN
        assert list(sweep.reports) == [1]

    def test_an_unread_cluster_slot_is_no_fault(self) -> None:
        sweep = decode_sweep({})
        assert (sweep.cluster, sweep.cluster_fault) == (None, None)


@example(b"\0\n", 3, b"")
@example(b"x\ny", 2, b"")
@example(b"", 4097, b"")
@given(st.binary(max_size=40), st.integers(0, 5000), st.sampled_from((b"", b"", b"\n", b"\0x")))
def test_what_is_left_without_the_padding_is_what_stands_before_it(
    text: bytes, nuls: int, behind: bytes
) -> None:
    data = text + bytes(nuls) + behind
    assert unpadded(data) == data.rstrip(b"\0")
