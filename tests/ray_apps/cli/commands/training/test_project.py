"""`toque init` and `toque train`: from a file to a project in an empty folder, and to a judged version of its model."""

import importlib
import json
import random
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from toque.functions import use_context
from toque.functions.runtime.context import context_of
from toque.ray_apps.cli import main
from toque.ray_apps.cli.arguments import Given
from toque.ray_apps.cli.commands.predict import request_of
from toque.ray_apps.new_project.columns import identifier

ROWS = 400


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and an environment that names no platform and no project."""
    for name in ("TOQUE_URL", "TOQUE_TOKEN", "TOQUE_HOME", "TOQUE_PROJECT", "TOQUE_WORKSPACE", "TOQUE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[5]))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def houses(rows: int = ROWS) -> pl.DataFrame:
    generator = random.Random(5)
    area = [generator.uniform(30, 200) for _ in range(rows)]
    district = [generator.choice(["north", "south", "west"]) for _ in range(rows)]
    worth = [
        one * 3 + (50 if where == "north" else 0) + generator.gauss(0, 10)
        for one, where in zip(area, district, strict=True)
    ]
    return pl.DataFrame(
        {
            "area": area,
            "district": district,
            "rooms": [generator.randint(1, 6) for _ in range(rows)],
            "price": worth,
        }
    )


def toque(capsys: Any, *arguments: str) -> tuple[int, str]:
    """Run a command; its exit code, and all that it printed."""
    try:
        code = main(arguments)
    except SystemExit as exited:
        code = int(exited.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def of(frame: pl.DataFrame, **columns: Any) -> pl.DataFrame:
    return frame.with_columns(**{name: pl.Series(values, strict=False) for name, values in columns.items()})


def erroneous() -> dict[str, tuple[pl.DataFrame | bytes, tuple[str, ...]]]:
    """Tables that no project can be made of, and the words by which each is refused."""
    good = houses()
    texts = good.with_columns(pl.col("area").cast(pl.String))
    lines = good.write_csv().encode().splitlines()
    return {
        "mixed types": (
            of(texts, area=["big"] * 3 + texts["area"].to_list()[3:]),
            ("area: mixed types: 3 of 400 values are no number", "'big'", "--null 'big'", "--text area"),
        ),
        "duplicate keys": (
            of(good, id=[0, 0, *range(2, ROWS)]),
            ("id: duplicate keys: 1 of 400 rows", "'id': '0'", "--key"),
        ),
        "an empty file": (b"", ("the file is empty",)),
        "a header alone": (lines[0], ("there is a header and no row",)),
        "ragged rows": (
            b"\n".join([*lines, b"1,2"]),
            ("1 of 401 rows have another number of fields", "line 402 with 2 fields"),
        ),
        "no header": (b"\n".join([b"1,2,3,4", *lines[1:]]), ("the first line holds numbers",)),
        "a wrong encoding": (
            b"\n".join(lines).replace(b"north", "nörth".encode("cp1252")),
            ("is not utf-8", "--encoding cp1252"),
        ),
        "a constant label": (of(good, price=[1] * ROWS), ("the label price cannot be learnt", "--label")),
        "a rare class": (
            of(good, price=["a"] * 200 + ["b"] * 198 + ["c"] * 2),
            ("price: 1 classes have fewer than 20 rows, such as 'c' with 2",),
        ),
        "few rows": (good.head(20), ("20 rows have a label, and a model needs 50",)),
        "two columns of one name": (
            b"\n".join([b"area,area,rooms,price", *lines[1:]]),
            ("area: two columns have this name",),
        ),
    }


@pytest.mark.parametrize("fault", erroneous())
def test_an_erroneous_file_gets_a_report_in_words_and_leaves_no_project(
    here: Path, capsys: Any, fault: str
) -> None:
    content, words = erroneous()[fault]
    (here / "data.csv").write_bytes(content if isinstance(content, bytes) else content.write_csv().encode())
    key = ("--key", "id") if fault == "duplicate keys" else ()
    code, said = toque(capsys, "init", "houses", "--from", "data.csv", "--label", "price", "--yes", *key)
    assert code == 1, said
    for each in words:
        assert each in said
    assert [path.name for path in here.iterdir()] == ["data.csv"]


def test_what_can_be_mended_is_mended_and_said(here: Path, capsys: Any) -> None:
    frame = of(
        houses(),
        note=[f"house {number}" for number in range(ROWS)],
        country=["NL"] * ROWS,
        paid=(houses()["price"] * 1.21).to_list(),
        sold=[f"2024-01-{1 + number % 28:02d} 12:{number % 60:02d}:00" for number in range(ROWS)],
        zip=[f"0{number % 10}" for number in range(ROWS)],
    ).with_columns(
        pl.when(pl.int_range(pl.len()) < 5).then(None).otherwise(pl.col("rooms")).alias("number of rooms")
    )
    frame.drop("rooms").write_csv(here / "data.csv", null_value="NA")
    code, said = toque(capsys, "init", "houses", "--from", "data.csv", "--label", "price", "--yes")
    assert code == 0, said
    assert "note: about 400 distinct texts in 400 rows" in said
    assert "country: constant: every row has the same value 'NL'" in said
    assert "paid: it gives the label price away" in said
    assert "sold: its times name no zone, such as '2024-01-01 12:00:00'; read as UTC" in said
    assert "zip: its numbers begin with 0, such as '00'; taken as text" in said
    assert "number of rooms: 5 of 400 values are 'NA'; read as missing" in said
    features = (here / "houses" / "houses" / "features.py").read_text()
    assert 'NUMERIC = ["area", "number_of_rooms"]' in features
    assert 'CATEGORICAL = ["district", "zip"]' in features


def test_a_column_of_a_million_categories_is_left_out(here: Path, capsys: Any) -> None:
    rows = 1_000_000
    pl.select(
        visitor=pl.format("v{}", pl.int_range(rows)),
        size=pl.int_range(rows) % 97,
        bought=pl.int_range(rows) * 7 % 11 > 5,
    ).write_parquet(here / "visits.parquet")
    code, said = toque(capsys, "init", "visits", "--from", "visits.parquet", "--label", "bought", "--yes")
    assert code == 0, said
    assert "visitor: about " in said
    assert "no category, such as 'v0'; left out of the features" in said


def test_whole_numbers_that_stand_first_and_never_come_twice_are_the_key(here: Path, capsys: Any) -> None:
    houses().select(pl.int_range(ROWS).alias("house"), pl.all()).write_csv("data.csv")
    code, said = toque(capsys, "init", "houses", "--from", "data.csv", "--label", "price", "--yes")
    assert code == 0
    assert "it stands first, and no value comes twice" in said
    assert 'Field("house"' in (here / "houses" / "houses" / "features.py").read_text()


def test_a_write_that_fails_leaves_nothing(here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    houses().write_csv(here / "data.csv")
    monkeypatch.setattr(Path, "rename", _no_space)
    code, said = toque(capsys, "init", "houses", "--from", "data.csv", "--yes")
    assert (code, "a disk is full" in said) == (1, True), said
    assert [path.name for path in here.iterdir()] == ["data.csv"]


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("houses",), "which table? give --from"),
        (("houses", "--from", "none.csv"), "there is no file"),
        (
            ("houses", "--from", "data.csv", "--label", "colour"),
            "--label colour: the table has no such column; it has area",
        ),
        (("houses", "--from", "data.csv", "--time", "area"), "--time area: its values are of kind number"),
        (("polars", "--from", "data.csv"), "Python finds a package of this name"),
        (("Big-House", "--from", "data.csv"), "begin with a small letter"),
        (("predictions-large", "--from", "data.csv"), "the name of a table of the platform"),
        (("taken", "--from", "data.csv"), "taken exists; take another name"),
        (("houses", "--from", "postgresql://db/houses"), "export the query's answer to Parquet"),
    ],
)
def test_a_wrong_turn_names_the_remedy(
    here: Path, capsys: Any, arguments: tuple[str, ...], words: str
) -> None:
    houses().write_csv(here / "data.csv")
    (here / "taken").mkdir()
    code, said = toque(capsys, "init", *arguments)
    assert code in {1, 2}
    assert words in said


def test_train_without_a_project_names_the_next_command(here: Path, capsys: Any) -> None:
    code, said = toque(capsys, "train")
    assert (code, "toque init NAME --from FILE" in said) == (2, True), said


def test_a_state_folder_that_cannot_be_written_is_told(here: Path, capsys: Any) -> None:
    (here / "file").touch()
    code, said = toque(capsys, "--home", str(here / "file" / "state"), "up")
    assert (code, "cannot be written to" in said, "--home FOLDER" in said) == (1, True, True), said


def test_a_model_is_asked_by_its_example_and_a_missing_number_is_null() -> None:
    answers = {
        "/models/homes": {"aliases": {"champion": 3}},
        "/models/homes/versions/3": {
            "signature": {
                "inputs": [
                    {"name": "numeric", "datatype": "FP32"},
                    {"name": "categorical", "datatype": "BYTES"},
                ],
                "example": {"numeric": [[1.5, "NaN"], [2.5, 3.0]], "categorical": [["north"], ["south"]]},
            }
        },
    }
    given = Given(
        model="homes",
        version=None,
        json=None,
        entities=None,
        example=True,
        attribute=[],
        explain=False,
        id=None,
    )
    given.client = SimpleNamespace(get=answers.__getitem__)
    assert request_of(given) == {
        "inputs": [
            {"name": "numeric", "datatype": "FP32", "shape": [1, 2], "data": [1.5, None]},
            {"name": "categorical", "datatype": "BYTES", "shape": [1, 1], "data": ["north"]},
        ]
    }


def _sources(folder: Path) -> dict[str, str]:
    """The same houses as a CSV file of another form, as Parquet with nanoseconds, and as a database."""
    frame = houses().with_columns(id=pl.int_range(pl.len()))
    (folder / "data.csv").write_bytes(
        frame.write_csv(separator=";").replace("north", "nörth").encode("cp1252")
    )
    frame.with_columns(
        id=pl.int_range(pl.len()) % 40,
        sold=pl.datetime(2024, 1, 1) + pl.duration(hours=pl.int_range(pl.len())),
    ).with_columns(pl.col("sold").cast(pl.Datetime("ns"))).write_parquet(folder / "data.parquet")
    with sqlite3.connect(folder / "data.db") as database:
        database.execute(
            "CREATE TABLE houses (area REAL, district TEXT, rooms INTEGER, price REAL, id INTEGER)"
        )
        database.executemany("INSERT INTO houses VALUES (?, ?, ?, ?, ?)", frame.rows())
    database.close()
    return {"csv": "data.csv", "parquet": "data.parquet", "sqlite": f"sqlite:///{folder / 'data.db'}"}


@pytest.mark.parametrize("kind", ["csv", "parquet", "sqlite"])
def test_a_project_of_each_source_is_read_in_full(
    here: Path, capsys: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _sources(here)[kind]
    name = f"houses_{kind}"
    encoding = ("--encoding", "cp1252") if kind == "csv" else ()
    arguments = ("init", name, "--from", source, "--label", "price", "--yes", "-o", "json", *encoding)
    code, said = toque(capsys, *arguments)
    assert code == 0, said
    made = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert made["code_lines"] <= 60
    monkeypatch.syspath_prepend(str(here / name))
    load = importlib.import_module(f"{name}.load")
    assert hasattr(load, "read") == (kind == "sqlite")  # the others are declared sources
    with use_context(context_of({"TOQUE_STORE": f"file://{here / 'store'}"})) as used:
        loaded, again = load.load(), load.load()
        assert (loaded.rows, loaded.written, loaded.labelled, again.written) == (ROWS, ROWS, ROWS, 0)
        view = importlib.import_module(f"{name}.features").view
        rows = pl.DataFrame(used.features().offline.read(view))
    assert rows.height == ROWS
    assert rows.drop("created_timestamp").null_count().sum_horizontal().item() == 0
    assert rows.schema["event_timestamp"] == pl.Datetime("us", "UTC")


def test_lines_added_to_the_file_of_a_project_are_loaded_once(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    houses().write_csv(here / "data.csv")
    assert toque(capsys, "init", "grown", "--from", "data.csv", "--label", "price", "--yes")[0] == 0
    monkeypatch.syspath_prepend(str(here / "grown"))
    load = importlib.import_module("grown.load").load
    with use_context(context_of({"TOQUE_STORE": f"file://{here / 'store'}"})):
        assert (load().rows, load().written) == (ROWS, 0)
        with (here / "data.csv").open("a") as file:
            file.write("80.5,north,3,301.5\n")
        after = load()
    assert (after.rows, after.written, after.labelled) == (ROWS + 1, 1, ROWS + 1)


def test_a_file_that_no_source_reads_as_it_is_keeps_its_reading_step(here: Path, capsys: Any) -> None:
    german = houses().with_columns(sold=pl.lit("24.12.2024"), note=pl.lit("two\nlines"))
    for name, frame in (("times", german.drop("note")), ("lines", german.drop("sold"))):
        frame.write_csv(here / "data.csv")
        assert toque(capsys, "init", name, "--from", "data.csv", "--label", "price", "--yes")[0] == 0
        assert "def read()" in (here / name / name / "load.py").read_text()


def outcomes() -> dict[str, tuple[pl.DataFrame, tuple[str, ...]]]:
    """Tables whose label shows what it is, by outcome, and the words by which the guess is explained."""
    generator = random.Random(7)
    rows = 1_200
    size = [generator.uniform(0, 3) for _ in range(rows)]
    wet = [generator.random() < 0.5 for _ in range(rows)]
    frame = pl.DataFrame({"size": size, "wet": wet, "noise": [generator.random() for _ in range(rows)]})
    names = [
        ["sun"] * (one > 1) + ["rain"] * rains + ["fog"] * (generator.random() < 0.1)
        for one, rains in zip(size, wet, strict=True)
    ]
    counts = [sum(generator.random() < one / 30 for _ in range(60)) for one in size]
    grades = [int(one) for one in size]
    return {
        "count": (of(frame, arrivals=counts), ("its name is that of a count",)),
        "multilabel": (
            of(frame, weather=["; ".join(each) for each in names]),
            ("several of 3 names, by ';'",),
        ),
        "ranking": (
            of(frame, qid=[number // 6 for number in range(rows)], grade=grades),
            ("rows are items of requests, named by qid", "several rows"),
        ),
        "vector": (
            frame.with_columns(
                place=pl.concat_list("size", 1.0 - pl.col("size"), "wet").cast(pl.List(pl.Float32))
            ),
            ("a list of 3 numbers in every row",),
        ),
    }


@pytest.mark.parametrize("outcome", ["count", "multilabel", "ranking", "vector"])
def test_a_label_of_each_outcome_is_guessed_learnt_and_passes_its_gate(
    here: Path, capsys: Any, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, words = outcomes()[outcome]
    frame.write_parquet(here / "data.parquet") if outcome == "vector" else frame.write_csv(here / "data.csv")
    name = f"made_{outcome}"
    given = "data.parquet" if outcome == "vector" else "data.csv"
    code, said = toque(capsys, "init", name, "--from", given, "--yes")
    assert code == 0, said
    for each in words:
        assert each in said, said
    monkeypatch.chdir(here / name)
    store = f"file://{here / name / '.toque' / 'store'}"
    with use_context(context_of({"TOQUE_STORE": store, "TOQUE_PROJECT": name})):
        code, said = toque(capsys, "train")
    assert code == 0, said
    assert f'outcome="{outcome}"' in (here / name / name / "model.py").read_text()


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("multilabel", "write several names as in 'rain|wind'"),
        ("vector", "a vector is a list of as many numbers in every row, in Parquet"),
        ("count", "counts are whole numbers from 0 on"),
        ("ranking", "name it by --group"),
    ],
)
def test_an_outcome_that_does_not_fit_the_label_is_refused_with_the_remedy(
    here: Path, capsys: Any, outcome: str, words: str
) -> None:
    houses().write_csv(here / "data.csv")
    code, said = toque(capsys, "init", "homes", "--from", "data.csv", "--yes", "--outcome", outcome)
    assert (code, words in said) == (1, True), said
    assert [path.name for path in here.iterdir()] == ["data.csv"]


def test_a_count_that_is_none_is_corrected_by_the_user(here: Path, capsys: Any) -> None:
    frame, _ = outcomes()["count"]
    frame.write_csv(here / "data.csv")
    code, said = toque(capsys, "init", "homes", "--from", "data.csv", "--yes", "--outcome", "number")
    assert code == 0, said
    assert 'task="regression"' in (here / "homes" / "homes" / "model.py").read_text()


def test_a_project_is_trained_and_promoted_from_a_folder_below_it(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    houses(800).write_csv(here / "data.csv")
    assert toque(capsys, "init", "homes", "--from", "data.csv", "--yes")[0] == 0
    model = here / "homes" / "homes" / "model.py"
    model.write_text(model.read_text().replace("TabularParams(", "TabularParams(epochs=8, "))
    monkeypatch.chdir(model.parent)  # a folder below the project's
    with use_context(
        context_of({"TOQUE_STORE": f"file://{here / 'homes' / '.toque' / 'store'}", "TOQUE_PROJECT": "homes"})
    ):
        code, said = toque(capsys, "train", "--promote")
        assert code == 0, said
        assert "800 rows, 800 of them new, 800 with a label" in said
        assert "homes@1: learnt from 640 rows, judged on 160 later ones" in said
        assert "next: `toque up` serves it here" in said


OWNERS = """
from toque.featurestore import SqlTable

owners = FeatureView(
    "owners",
    entities=[entity],
    schema=[Field("owners", Float64)],
    events=BatchSource(
        "owners",
        SqlTable("sqlite:///{database}", "owners", watermark="seen"),
        schema=[Field("house", Int64), Field("owners", Float64)],
        timestamp="seen",
        timezone="UTC",
        known_at="seen",
    ),
)
service = FeatureService(view.name, [view, owners])
FEATURES = [entity, view, owners, service]
"""


@pytest.mark.parametrize("of_other_keys", [False, True])
def test_a_second_source_of_the_service_is_read_before_training(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, *, of_other_keys: bool
) -> None:
    name = "apart" if of_other_keys else "joined"
    houses().select(pl.int_range(ROWS).alias("house"), pl.all()).write_csv("data.csv")
    assert toque(capsys, "init", name, "--from", "data.csv", "--label", "price", "--yes")[0] == 0
    with sqlite3.connect(here / "data.db") as database:
        database.execute("CREATE TABLE owners (house INTEGER, owners REAL, seen TEXT)")
        keys = range(ROWS, 2 * ROWS) if of_other_keys else range(ROWS)
        rows = [(house, house % 4, "1999-01-01 00:00:00") for house in keys]
        database.executemany("INSERT INTO owners VALUES (?, ?, ?)", rows)
    database.close()
    features, model = (here / name / name / f"{page}.py" for page in ("features", "model"))
    features.write_text(features.read_text() + OWNERS.replace("{database}", str(here / "data.db")))
    text = model.read_text().replace("tuple(NUMERIC)", 'tuple([*NUMERIC, "owners"])')
    model.write_text(text.replace("TabularParams(", "TabularParams(epochs=2, "))
    monkeypatch.chdir(here / name)
    store = f"file://{here / name / '.toque' / 'store'}"
    with use_context(context_of({"TOQUE_STORE": store, "TOQUE_PROJECT": name})):
        _, said = toque(capsys, "train", "--no-load")
        assert f"{name}/entities" in said, said
        _, said = toque(capsys, "train")
    assert "new rows of other views: owners 400" in said, said
    assert ("owners of 'apart': null in each of the 320 rows" in said) == of_other_keys, said
    assert (f"{name}@1: learnt from" in said) != of_other_keys


@pytest.mark.parametrize(
    ("original", "name"),
    [
        ("Prestige du métier", "Prestige_du_metier"),
        ("région", "region"),
        ("re\u0301gion", "region"),  # the accent as a mark of its own
        ("Łódź", "Lodz"),
        ("Ærø ø", "AEro_o"),
        ("Größe in cm", "Gro_e_in_cm"),
        ("Income (US $)", "Income_US"),
        ("教育 年数", "column"),
        ("教育 years", "years"),
        ("2nd", "c_2nd"),
        ("plain_Name2", "plain_Name2"),
    ],
)
def test_a_columns_name_keeps_its_letters(original: str, name: str) -> None:
    assert identifier(original, ()) == name
    assert identifier(original, {name}) == f"{name}_2"
