# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text of a message: from the operator's Jinja2 templates where there are any, else built in.

Templates run in a thread of their own with a deadline, in Jinja2's sandbox, without a
loader: they can use the values that they are given and nothing else. Jinja2 is imported in that
thread, and only when a template exists.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from broker.daemon.worker import Hung, Worker
from broker.events.notice import one_line
from broker.notify.message import Message, StampedNotice

#: Version of the JSON form; it grows when a field is removed or gets another meaning.
JSON_VERSION = 1
SUBJECT_CHARS_MAX = 200
BODY_CHARS_MAX = 32_768
TEMPLATE_BYTES_MAX = 65_536
#: Time to fill in both templates of a message, the import of Jinja2 included.
FILL_S = 5.0
_PROBLEM_CHARS_MAX = 200
#: The most notices that a digest lists.
_LISTED_MAX = 50


class Renderer:
    """`problem`: what is wrong with the templates, empty when nothing is."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._worker = Worker("notification templates")
        self.problem = ""

    def go_on_from(self, other: Renderer) -> None:
        """Take over the other renderer's thread, which may still be busy."""
        self._worker = other._worker

    async def fill(self, message: Message) -> Message:
        """The message with subject and body. Never raises: where a template has an error the
        built-in text is used, and the body says so."""
        subject, body = built_in_subject(message), built_in_body(message)
        problem = ""
        try:
            if self._folder.is_dir():
                found = await self._worker.call(
                    "filling in",
                    FILL_S,
                    fill_templates,
                    self._folder,
                    message.kind,
                    values(message),
                )
                subject = found.get("subject", subject)
                body = found.get("body", body)
                problem = found.get("problem", "")
        except Hung:
            problem = f"{self._folder}: a template takes more than {FILL_S:g} s"
        except Exception as error:
            problem = f"{self._folder}: {_shown(error)}"
        self.problem = problem
        if problem:
            body = f"{body.rstrip()}\n\nThe built-in text was used: {problem}\n"
        return replace(
            message,
            subject=one_line(" ".join(subject.split()), SUBJECT_CHARS_MAX),
            body=_printable_lines(body)[:BODY_CHARS_MAX],
        )


def values(message: Message) -> dict[str, Any]:
    """The values that a template may use, as docs/notifications.md has them."""
    notices = [notice_values(stamped) for stamped in message.notices]
    first = notices[0] if notices else {}
    return {
        "cluster": message.cluster,
        "host": message.host,
        "id": message.id,
        "kind": message.kind,
        "severity": message.severity.word,
        "subject": first.get("subject", ""),
        "detail": first.get("detail", ""),
        "facts": first.get("facts", {}),
        "time": first.get("time", ""),
        "repeats": first.get("repeats", 0),
        "notices": notices,
        "lost": message.lost,
    }


def notice_values(stamped: StampedNotice) -> dict[str, Any]:
    """One notice as plain values; the webhook and the command get the same."""
    notice = stamped.notice
    return {
        "kind": notice.kind.value,
        "severity": notice.severity.word,
        "subject": notice.subject,
        "detail": notice.detail,
        "facts": dict(notice.facts),
        "time": _utc(stamped.at_epoch_s),
        "at_epoch_s": stamped.at_epoch_s,
        "repeats": stamped.repeats,
    }


def as_json(message: Message) -> bytes:
    """The body of the webhook's request, and what a command reads on its standard input."""
    return msgspec.json.encode(
        {
            "version": JSON_VERSION,
            "id": message.id,
            "cluster": message.cluster,
            "host": message.host,
            "kind": message.kind,
            "severity": message.severity.word,
            "subject": message.subject,
            "text": message.body,
            "notices": [notice_values(stamped) for stamped in message.notices],
            "lost": message.lost,
        }
    )


def built_in_subject(message: Message) -> str:
    """One line: cluster, host, severity, event."""
    head = f"[{message.cluster}] {message.host}: {message.severity.word}"
    if message.is_single:
        notice = message.notices[0].notice
        return f"{head}: {notice.kind.value.replace('-', ' ')}: {notice.detail}"
    return f"{head}: {len(message.notices) + message.lost} notices"


def built_in_body(message: Message) -> str:
    """The whole message for a person, as plain text."""
    lines = [f"From host {message.host} of cluster {message.cluster}."]
    if not message.is_single:
        lines += ["", f"{len(message.notices)} notices came up faster than they may be sent:", ""]
        lines += [
            f"{_utc(each.at_epoch_s)} {each.notice.kind}: {each.notice.detail}{_again(each)}"
            for each in message.notices[:_LISTED_MAX]
        ]
        unlisted = max(0, len(message.notices) - _LISTED_MAX)
        if unlisted or message.lost:
            lines.append(f"and {unlisted + message.lost} more")
        return "\n".join(lines) + "\n"
    stamped = message.notices[0]
    notice = stamped.notice
    lines += ["", f"{notice.detail}{_again(stamped)}", ""]
    lines += [f"{'what':16} {notice.kind} ({notice.severity.word})"]
    lines += [f"{'about':16} {notice.subject}", f"{'when':16} {_utc(stamped.at_epoch_s)}"]
    lines += [
        f"{name:16} {'-' if value is None else value}" for name, value in notice.facts.items()
    ]
    return "\n".join(lines) + "\n"


def fill_templates(folder: Path, kind: str, given: dict[str, Any]) -> dict[str, str]:
    """Fill in the templates; runs in the thread. The result has `subject` and `body` where a
    template gives them, and `problem` where one has an error. `KIND.subject.j2` is preferred to
    `default.subject.j2`."""
    out: dict[str, str] = {}
    for part in ("subject", "body"):
        for path in (folder / f"{kind}.{part}.j2", folder / f"default.{part}.j2"):
            if not path.is_file():
                continue
            try:
                out[part] = _fill(path, given)
            except Exception as error:
                out.setdefault("problem", f"{path}: {_shown(error)}")
            break
    return out


def _fill(path: Path, given: dict[str, Any]) -> str:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    with path.open("rb") as file:
        source = file.read(TEMPLATE_BYTES_MAX + 1)
    if len(source) > TEMPLATE_BYTES_MAX:
        raise ValueError(f"is larger than {TEMPLATE_BYTES_MAX} bytes")
    # Plain text: escaping for HTML would only spoil it.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    parts, size = [], 0
    for part in environment.from_string(source.decode()).generate(given):
        parts.append(part)
        size += len(part)
        if size > BODY_CHARS_MAX:
            break
    return "".join(parts)[:BODY_CHARS_MAX]


def _shown(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    where = f"line {line}: " if isinstance(line, int) else ""
    return one_line(f"{where}{type(error).__name__}: {error}", _PROBLEM_CHARS_MAX)


def _printable_lines(text: str) -> str:
    """The text with each control character replaced by "?", but for newlines and tabs."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)


def _again(stamped: StampedNotice) -> str:
    return f" ({stamped.repeats} times more since it was last sent)" if stamped.repeats else ""


def _utc(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(epoch_s))
