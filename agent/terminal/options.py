# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options that many commands have."""

from __future__ import annotations

from argparse import ArgumentParser


def json_option(parser: ArgumentParser) -> None:
    """`--json` behind the verb; before it, it is an option of the program."""
    parser.add_argument("--json", action="store_true", dest="json_here", help="answer in JSON")
