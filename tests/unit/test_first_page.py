# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a newcomer reads first: each word that would have to be looked up stands in the glossary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What whoever runs KVM hosts knows: products, protocols and units.
KNOWN = frozenset(
    [
        "KVM",
        "VM",
        "VMs",
        "NFS",
        "RPM",
        "EL",
        "TLS",
        "HTTP",
        "TOML",
        "XML",
        "MB",
        "MiB",
        "KiB",
        "TCP",
        "UDP",
        "IP",
        "PDF",
        "README",
        "TOKEN",
        "FOLDER",
        "FILE",
        "N",
        "Debian",
        "Fedora",
        "Linux",
        "Python",
        "CPU",
        "DNS",
        "CA",
        "API",
        "HA",
        "JSON",
        "UUID",
        "NAME",
        "YAML",
        "SSH",
    ]
)
#: Words of this field without a capital letter.
FIELD = [
    "sanlock",
    "libvirt",
    "lease",
    "bridge",
    "fence",
    "token",
    "domain",
    "registry",
    "standby",
    "heartbeat",
    "lockspace",
    "takeover",
    "score",
    "whiteboard",
    "fencing",
    "drain",
    "witness",
    "hosted",
]


def first_page(name: str) -> str:
    """A page up to what comes after the first use: commands and links' targets apart."""
    text = (ROOT / name).read_text()
    end = {"README.md": "\n## See it", "docs/quickstart.md": "\n## Block devices"}[name]
    text = text.partition(end)[0]
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def unexplained(text: str) -> set[str]:
    """The words of a text that are neither known nor in the glossary."""
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    terms = set(re.findall(r"\w+", " ".join(re.findall(r"^\| ([^|]*)\|", glossary, re.MULTILINE))))
    # A second word for one thing stands in italics where that is explained.
    terms |= set(re.findall(r"\*(\w+)\*", glossary))
    capital = set(re.findall(r"\b(?:[A-Z]{2,}[A-Za-z]*|[a-z]+[A-Z][A-Za-z]*)\b", text))
    field = {word for word in FIELD if re.search(rf"\b{word}s?\b", text)}
    return {
        word
        for word in capital | field
        if word not in KNOWN and word not in terms and word.removesuffix("s") not in terms
    }


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_no_word_of_the_first_page_must_be_looked_up_outside_the_glossary(name: str) -> None:
    assert unexplained(first_page(name)) == set()


def test_a_word_that_nobody_explains_is_seen() -> None:
    assert unexplained("A VM on KVM with STONITH by corosync's qDevice") == {"STONITH", "qDevice"}
