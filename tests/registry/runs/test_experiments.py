import pytest

from toque.registry import AlreadyExists, InvalidInput, NotFound, ObjectStore, Registry


def test_an_experiment_can_be_created_before_its_first_run(store: ObjectStore):
    reg = Registry(store, actor="ada")
    made = reg.create_experiment("late-1", title="Late / first", tags={"a": "b"})
    cold = Registry(store, actor="x")
    assert cold.get_experiment("late-1") == made
    assert cold.find_experiment("Late / first") == made
    assert [each.name for each in cold.all_experiments()] == ["late-1"]
    assert (made.title, made.tags, made.deleted) == ("Late / first", {"a": "b"}, False)


def test_an_experiment_with_a_run_needs_no_note(reg: Registry):
    reg.start_run("exp").finish()
    found = reg.get_experiment("exp")
    assert (found.name, found.title) == ("exp", "exp")
    assert reg.find_experiment("exp") == found
    changed = reg.change_experiment("exp", title="Better", tags={"k": "v"})
    assert (changed.title, changed.created_at) == ("Better", found.created_at)
    assert [each.title for each in reg.all_experiments()] == ["Better"]


def test_titles_are_unique_among_experiments_that_are_not_deleted(reg: Registry):
    reg.create_experiment("a", title="T")
    for name, title in (("a", "other"), ("b", "T")):
        with pytest.raises(AlreadyExists, match="'a'"):
            reg.create_experiment(name, title=title)
    reg.create_experiment("b")
    with pytest.raises(AlreadyExists):
        reg.change_experiment("b", title="T")
    reg.change_experiment("a", deleted=True)
    reg.change_experiment("b", title="T")
    assert reg.find_experiment("T").name == "b"  # type: ignore[union-attr]
    with pytest.raises(AlreadyExists):
        reg.change_experiment("a", deleted=False)


def test_tags_change_and_an_empty_change_writes_nothing(reg: Registry):
    reg.create_experiment("a", tags={"x": "1", "y": "2"})
    changed = reg.change_experiment("a", tags={"x": None, "z": "3"})
    assert changed.tags == {"y": "2", "z": "3"}
    assert reg.change_experiment("a", tags={"z": "3"}).changed_at == changed.changed_at


def test_absent_names_are_not_found(reg: Registry):
    for call in (reg.get_experiment, reg.change_experiment):
        with pytest.raises(NotFound, match="does not exist"):
            call("none")
        with pytest.raises(InvalidInput):
            call("a/b")
    assert reg.find_experiment("none") is None


def test_notes_survive_a_snapshot(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toque.registry.journal.fold.SNAPSHOT_EVERY", 2)
    for number in range(5):
        reg.create_experiment(f"e{number}", title=f"Title {number}")
    reg.change_experiment("e0", deleted=True)
    assert Registry(reg.store, actor="x").all_experiments() == reg.all_experiments()
