# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why an HTTP server gave no answer, in words: the library's own text names its classes."""

from __future__ import annotations

import os
import socket

import aiohttp

from broker.daemon.foreign import SENTENCE_CHARS_MAX, sentence


def no_answer(error: BaseException, chars_max: int = SENTENCE_CHARS_MAX) -> str:
    """A clause for people, such as "Connection refused", in one clean line."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            why = sentence(error.certificate_error, chars_max)
            return f"its certificate is not accepted: {why}"
        case aiohttp.ClientConnectorSSLError():
            return f"TLS fails: {sentence(error.os_error, chars_max)}"
        case aiohttp.ClientConnectorError():
            return _of_system(error.os_error, chars_max)
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer"
        case TimeoutError() if error.errno is None:
            return "no answer in time"
        case OSError():
            return _of_system(error, chars_max)
        case _:
            return f"{type(error).__name__}: {sentence(error, chars_max)}"


def _of_system(error: OSError, chars_max: int) -> str:
    """asyncio puts "Connect call failed" and the address in the place of the system's words; a
    name that is not found has a number of its own kind."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return sentence(error.strerror or error, chars_max)
    return os.strerror(error.errno)
