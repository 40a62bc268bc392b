"""How tasks are stated, and how their fields are taken from records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cdgen.errors import InputError
from cdgen.evaluation.forms import FORMS, form
from cdgen.evaluation.forms.base import REQUIRED
from cdgen.evaluation.tasks import TASK_FILES, Task, group, names, number, parse_task, rows, text
from cdgen.evaluation.templates import render

PAIR = {"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep."}


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_task(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_has_a_class_of_its_name(name: str) -> None:
    found = form(name)
    assert found.name == name and found.metrics


@pytest.mark.parametrize("name", sorted({*names()} - {*FORMS}))
def test_the_task_files_that_come_with_cdgen(name: str) -> None:
    task = parse_task(f"{name}=some/path")
    assert task.name == name and task.path == "some/path"
    assert [
        key for key, default in form(task.form).fields.items() if default == REQUIRED and key not in task.fields
    ] == []


def test_a_task_is_a_form_or_a_file(tmp_path: Path) -> None:
    items = write_jsonl(tmp_path / "pairs.jsonl", [PAIR])
    stated = parse_task(f"minimal_pairs={items}", limit=3, seed=5)
    assert stated == Task("minimal_pairs", "minimal_pairs", str(items), limit=3, seed=5)
    file = write_task(tmp_path / "mine.toml", 'form = "minimal_pairs"\npath = "pairs.jsonl"\n')
    assert parse_task(str(file)).path == str(items) and parse_task(str(file)).name == "mine"
    assert parse_task(f"{file}=other.jsonl").path == "other.jsonl"
    (tmp_path / "a=b").mkdir()
    marked = write_task(tmp_path / "a=b/mine.toml", "\ufeff" + file.read_text())  # as editors on Windows write it
    assert parse_task(str(marked)).path == str(tmp_path / "a=b/pairs.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("form = ", "cannot be read as a task file"),
        ('name = "x"', "states no form; use one of perplexity"),
        ('form = "minimal_pair"', "form = 'minimal_pair': use one of perplexity"),
        ('form = "minimal_pairs"', "task mine: needs a file; write mine=PATH"),
        ('form = "minimal_pairs"\npaths = "x"', "key 'paths': is not known; use form, name"),
        ('form = "minimal_pairs"\npath = 5', "path = 5: must be text"),
        ('form = "minimal_pairs"\nname = "a/b"\npath = "p"', "task 'a/b': its name must have 1 to 100 letters"),
        ('form = "minimal_pairs"\nname = ""\npath = "p"', "task '': its name must have 1 to 100 letters"),
        (f'form = "minimal_pairs"\nname = "{"n" * 101}"', f"task '{'n' * 99}...: its name must have 1 to 100 letters"),
        ('form = "minimal_pairs"\npath = "p"\n[fields]\nright = "a"', "field 'right': is not known; use id, "),
        ('form = "minimal_pairs"\npath = "p"\n[fields]\nid = 3', "field id = 3: give a field's name or a template"),
        ('form = "minimal_pairs"\npath = "p"\n[fields]\nid = "{{a"', "field id = '{{a': is not a Jinja template"),
        ('form = "minimal_pairs"\npath = "p"\n[fields]\nid = "{{a|random}}"', "No filter named 'random'"),
        (
            f'form = "minimal_pairs"\npath = "p"\n[fields]\nid = "{{{{{"(" * 3000}1{")" * 3000}}}}}"',
            "is not a Jinja template: maximum recursion depth exceeded",
        ),
        ('form = "minimal_pairs"\npath = "p"\n[options]\nshots = 3', "option 'shots': is not known"),
        (
            'form = "math_word_problems"\npath = "p"\n[options]\nmax_tokens = "a"',
            "max_tokens = 'a': must be of the type",
        ),
    ],
)
def test_a_bad_task_file_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    file = write_task(tmp_path / "mine.toml", content)
    with pytest.raises(InputError) as error:
        parse_task(str(file))
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("blimb=x", "'blimb' is neither a task nor a .toml file; use perplexity"),
        ("blimp", "task blimp: needs a file; write blimp=PATH"),
        ("blimp=", "write NAME, NAME=PATH"),
        ("=x", "write NAME, NAME=PATH"),
        ("none.toml", "none.toml: cannot be read as a task file: No such file"),
    ],
)
def test_a_bad_task_is_one_line(stated: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_task(stated)
    assert message in str(error.value)


def test_records_of_a_folder_of_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [PAIR | {"UID": "second"}, PAIR, PAIR])
    write_jsonl(tmp_path / "a.jsonl", [PAIR, PAIR])
    (tmp_path / "readme.md").write_text("no items")
    fields = {"group": "{{file}}-{{UID|default('none')}}"}
    found = list(rows(Task("t", "minimal_pairs", str(tmp_path), fields=fields, limit=2)))
    assert [row.id for row in found] == ["a:1", "a:2", "b:1", "b:2"]
    assert [group(row) for row in found] == ["a-none", "a-none", "b-second", "b-none"]
    assert found[2].where == f"{tmp_path}/b.jsonl: line 1"


def test_a_template_gives_text_and_a_name_gives_the_value(tmp_path: Path) -> None:
    record = {"premise": "It rained.", "label": 1, "choices": ["a", "b"], "nested": {"items": "a field"}}
    assert render("f", "label", record, "p") == 1
    assert render("f", "choices", record, "p") == ["a", "b"]
    assert render("f", "{{premise[:-1]}} because\n", record, "p") == "It rained because\n"
    assert render("f", "{{nested.items}}: {{premise.upper()}} {{nested.keys()|join}}", record, "p") == (
        "a field: IT RAINED. items"
    )
    for template, message in (
        ("lable", "p has no field 'lable', which f needs; it has premise, label, choices, nested"),
        ("{{lable}}", "p: f = '{{lable}}' fails: 'lable' is undefined"),
        ("{{premise.__class__}}", "p: f = '{{premise.__class__}}' fails: access to attribute '__class__'"),
        ("{{label / 0}}", "p: f = '{{label / 0}}' fails: division by zero"),
        ("{{none}}", "p: f = '{{none}}' fails: it shows a value that is null"),
        ("{{premise.upper}}", "p: f = '{{premise.upper}}' fails: it shows the function upper, not a value; call it"),
        ("{{nested.keys}}", "p: f = '{{nested.keys}}' fails: it shows the function keys, not a value"),
        ("{{choices|unique}}", "p: f = '{{choices|unique}}' fails: it shows a generator, not a value; add |join"),
        ("{{lipsum()}}", "p: f = '{{lipsum()}}' fails: 'lipsum' is undefined"),
        (
            "{% for a in range(9999) %}{% for b in range(99999) %}abc{% endfor %}{% endfor %}",
            "p: f has more than 1,000",
        ),
    ):
        with pytest.raises(InputError) as error:
            render("f", template, record, "p")
        assert str(error.value).startswith(message)


def test_a_record_without_the_needed_field(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", [PAIR, {"sentence_good": "A."}])
    with pytest.raises(InputError) as error:
        form("minimal_pairs").items(parse_task(f"minimal_pairs={file}"))
    assert f"{file}: line 2 has no field 'sentence_bad'" in str(error.value)


@pytest.mark.parametrize(("value", "message"), [("", "is empty"), (" \n", "is empty"), (3, "is not text but int")])
def test_a_field_that_is_no_text(value: object, message: str, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", [PAIR | {"sentence_bad": value}])
    row = next(rows(parse_task(f"minimal_pairs={file}")))
    with pytest.raises(InputError, match=f"line 1: field 'bad' {message}"):
        text(row, "bad")


def test_numbers(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", [PAIR])
    row = next(rows(parse_task(f"minimal_pairs={file}")))
    row.values.update(a="1.5", b=2, c=float("nan"), d=True, e="two", f=10**400, g=-1e100)
    assert (number(row, "a"), number(row, "b")) == (1.5, 2.0)
    for name in "cdefg":
        with pytest.raises(InputError, match=f"line 1: field '{name}' = .*must be a finite number"):
            number(row, name)


def test_two_items_of_one_name(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", [PAIR | {"pairID": 7}] * 2)
    task = Task("t", "minimal_pairs", str(file), fields={"id": "pairID"})
    with pytest.raises(InputError, match=r"line 2: the item '7' is also at .*line 1; give each item its own id"):
        list(rows(task))


@pytest.mark.parametrize("field", ["id", "group"])
def test_names_that_no_table_can_hold(field: str, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", [PAIR | {"name": "\ud800"}])
    task = Task("t", "minimal_pairs", str(file), fields={field: "name"})
    with pytest.raises(InputError, match=f"line 1: character 0 of .*{field}.* is half of a surrogate pair"):
        form("minimal_pairs").items(task)


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        list(rows(Task("t", "minimal_pairs", str(tmp_path))))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"cannot read item from a file of this format; use \.jsonl"):
        list(rows(Task("t", "minimal_pairs", str(tmp_path / "a.txt"))))
    with pytest.raises(InputError, match="no such item file"):
        list(rows(Task("t", "minimal_pairs", str(tmp_path / "none"))))


def test_shipped_task_files_are_in_their_folder() -> None:
    assert sorted(TASK_FILES.glob("*.toml"))
