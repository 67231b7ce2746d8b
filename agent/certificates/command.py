# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent certificates show|renew`: this host's certificates and their days."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from agent.certificates.of_host import HostCertificate, reload_broker, update_libvirt
from agent.terminal import in_json
from agent.terminal.columns import say
from broker.config.host_certificates import all_ends
from broker.config.load import load
from broker.daemon.exit_codes import ExitCode
from broker.wire.limits import SOON_DAYS


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Show or renew; FAILED where one has ended, or ends so soon that its renewal must have
    failed."""
    if arguments.what == "renew":
        return _renew(arguments, as_json)
    return _show(arguments.config, as_json)


def _show(path: str, as_json: bool) -> int:
    now, found = time.time(), all_ends(load(path))
    days = [each.days_left(now) for each in found]
    if as_json:
        shown = [
            {"file": each.path, "ends": each.ends, "days": left, "problem": each.problem}
            for each, left in zip(found, days, strict=True)
        ]
        in_json.show({"certificates": shown})
    elif not found:
        print("none is used: no migration over TLS (libvirt.migration-uri), no api.tls-listen")
    else:
        for each, left in zip(found, days, strict=True):
            say(f"{each.path}: {each.problem if left is None else f'ends in {left} days'}", 2)
    good = all(left is not None and left >= SOON_DAYS for left in days)
    return ExitCode.OK if good else ExitCode.FAILED


def _renew(arguments: argparse.Namespace, as_json: bool) -> int:
    """Make this host's certificate anew where it is due; the timer's command, which has nothing to
    do where the certificates are the site's."""
    config = load(arguments.config)
    host = HostCertificate(config, Path(arguments.config).absolute().parent)
    done = False
    if host.foreign():
        text = "the certificates are the site's: nothing is renewed here"
    elif not host.authority():
        text = f"{host.authority_file}: is not there: nothing is renewed here"
    elif not (why := host.why_anew()) and not arguments.now:
        text = f"not yet: this host's {host.ends()}; to make it anew all the same: --now"
    else:
        done = True
        text = f"{host.make(may_found=False)}{f' ({why})' if why else ''}; {update_libvirt(config)}"
        reload_broker(config)
    if as_json:
        in_json.show({"renewed": done, "text": text})
    else:
        say(text, 2)
    return ExitCode.OK
