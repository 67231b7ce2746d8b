# SPDX-License-Identifier: LGPL-2.1-or-later
"""A change is made, noticed, taken back, and not made again."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.simulation import mutation
from tests.simulation.mutation import Story, changed, changes, put_in

SOURCE = """
LIMIT = 3


def is_due(now_s, since_s):
    return not (now_s - since_s < 10 or since_s is None)


class Look:
    @property
    def on(self):
        return True

    def __str__(self):
        return f"{self.on and 4}"
"""


def test_all_changes_of_the_functions() -> None:
    """Code outside of the functions is not changed; each change alters a function's result."""
    found = {change.what: change for change in changes(SOURCE)}
    assert sorted(found) == [
        "10 -> 11",
        "True -> False",
        "not (now_s - since_s < 10 or since_s is None): without not",
        "now_s - since_s < 10 or since_s is None: and <-> or",
        "now_s - since_s < 10: compared otherwise",
        "since_s is None: compared otherwise",
    ]
    module = ModuleType("changed")
    exec(compile(SOURCE, "x", "exec"), vars(module))
    module.is_due.__module__ = module.Look.__module__ = "changed"
    imported = module.is_due

    def said() -> tuple[bool, bool, bool, bool]:
        return imported(10, 0), imported(9, 0), imported(10.5, 0), module.Look().on

    as_written = said()
    assert as_written == (True, False, True, True)
    for change in found.values():
        put_in(module, changed(SOURCE, change, "x"))
        assert said() != as_written, change
        put_in(module, compile(SOURCE, "x", "exec"))
        assert said() == as_written


def test_equal_lines_are_changes_of_their_own() -> None:
    """Two functions, a method, or one line may have the same words: what became of one of them says
    nothing of the others."""
    source = (
        "def one(n):\n    return n > 3 or n > 3\n\n"
        "class Two:\n    def one(self, n):\n        return n > 3\n"
    )
    found = [change for change in changes(source) if change.what == "n > 3: compared otherwise"]
    assert sorted((each.function, each.nth) for each in found) == [
        ("Two.one", 0),
        ("one", 0),
        ("one", 1),
    ]


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, text: str) -> None:
    """Make `text` the module of the name "planted"; each test has a name of its own for its file,
    for a module is imported once."""
    (folder / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(mutation.MODULES, "planted", module)


def test_a_survivor_is_tried_again_by_another_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many stories as before, but not the same ones."""
    text = "def due(n):\n    return n > 3\n\n\ndef late(n):\n    return n > 3\n"
    plant(tmp_path, monkeypatch, "planted_again", text)

    def tell(story: Story) -> None:
        from planted_again import due, late  # type: ignore[import-not-found]

        assert story.name != "boundary" or not due(3)
        late(1)
        due(1)

    monkeypatch.setattr(Story, "tell", tell)
    kept = tmp_path / "kept.jsonl"

    def killers(name: str) -> list[tuple[str, bool]]:
        found = mutation.run(["planted"], [Story(name, "", {})], kept, "", 1.0, lambda text: None)
        compared = [one for one in found if "compared" in one.change]
        return [(one.function, bool(one.killer)) for one in compared]

    assert killers("far") == [("due", False), ("late", False)]
    assert killers("boundary") == [("due", True), ("late", False)]


def test_the_shortest_story_through_the_line_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is kept; a change that no story notices survives."""
    text = "def due(n):\n    return n > 3\n\n\ndef other(n):\n    return n > 5\n"
    plant(tmp_path, monkeypatch, "planted_fencing", text)
    told: list[str] = []

    def tell(story: Story) -> None:
        told.append(story.name)
        from planted_fencing import due  # type: ignore[import-not-found]

        due(1)
        assert story.name != "boundary" or not due(3)

    monkeypatch.setattr(Story, "tell", tell)
    stories = [Story("boundary", "", {}), Story("far", "", {})]
    kept = tmp_path / "kept.jsonl"
    found = mutation.run(["planted"], stories, kept, "", 1.0, lambda text: None)
    assert {one.change: one.killer for one in found} == {
        "n > 3: compared otherwise": "boundary (AssertionError)",
        "3 -> 4": "",
        "n > 5: compared otherwise": "",
        "5 -> 6": "",
    }
    assert [one.stories for one in found if "5" in one.change] == [0, 0]
    told.clear()
    assert mutation.run(["planted"], stories, kept, "", 1.0, lambda text: None) == found
    assert told == ["boundary", "far"], "only to see which lines they run through"
    told.clear()
    stories.append(Story("more", "", {}))
    mutation.run(["planted"], stories, kept, "", 1.0, lambda text: None)
    assert told[:3] == ["boundary", "far", "more"]
    assert sorted(told[3:]) == ["boundary", "far", "more"], "the survivor that it runs through"
