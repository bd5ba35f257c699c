"""Files that are read in parts say what the json module says."""
import json
import random

import pytest

from datasets.formats import json_parts
from datasets.formats.json_parts import read_parts


def read(path, text):
    path.write_text(text, encoding="utf-8")
    found = {}
    for key, value in read_parts(path, skipped="outline"):
        found[key] = found.get(key, []) + value if isinstance(value, list) else value
    return found


def anything(choose, depth=0):
    kind = choose.choice(["number", "text", "list", "dict", "word"] if depth < 3 else ["number", "text", "word"])
    if kind == "list":
        return [anything(choose, depth + 1) for _ in range(choose.randrange(4))]
    if kind == "dict":
        return {choose.choice(["a", "bb", "}, {", "é"]) + str(i): anything(choose, depth + 1)
                for i in range(choose.randrange(4))}
    return {"number": choose.choice([0, -1.5, 10**30, 1e-9]), "word": choose.choice([None, True, False]),
            "text": choose.choice(["", "},", "]", '"\\', "日本", "\n{"])}[kind]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("block", [1, 7, 64, 1 << 22])
@pytest.mark.parametrize("single", [1, 1000])
def test_parts_are_what_the_file_holds(tmp_path, monkeypatch, indent, ascii, block, single):
    monkeypatch.setattr(json_parts, "BLOCK", block)
    monkeypatch.setattr(json_parts, "ONE_BY_ONE", single)
    choose = random.Random(block)
    for _ in range(15):
        content = {f"key {i}": anything(choose) for i in range(choose.randrange(5))}
        content["entries"] = [{"a": anything(choose, 2), "b": [{"c": i}, {}]} for i in range(choose.randrange(30))]
        assert read(tmp_path / "x.json", json.dumps(content, indent=indent, ensure_ascii=ascii)) == content


@pytest.mark.parametrize("block", [5, 1 << 22])
def test_numbers_of_the_skipped_key_are_not_read(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_parts, "BLOCK", block)
    entries = [{"outline": [[1, 2.5], [-3e-7]], "a": 1}, {"a": "x", "outline": [[4], []]}, {"outline": []},
               {"outline": {"counts": [1, 2], "size": [3]}}, {"outline": "text"}, {"outline": ["a", [1]]},
               {"a": "\"outline\": [1", "outline": [5]}]
    read_entries = read(tmp_path / "x.json", json.dumps({"entries": entries}, indent=2))["entries"]
    expected = [entry | ({"outline": []} if i in (0, 1, 2, 6) else {}) for i, entry in enumerate(entries)]
    assert read_entries == expected


@pytest.mark.parametrize("text", [
    "", "[]", "3", "{", '{"a"', '{"a":', '{"a": [', '{"a": [1', '{"a": [1,', '{"a": [1,]}', '{"a": [{},]}', '{"a": 1,}',
    '{"a": 1} 2', '{"a": [{"b": 1} {"b": 2}]}', '{"a": [1 2]}', "{1: 2}", '{"a": 1, "a": 2}', '{"a": tru}',
    '{"a": [[1]}', '{"a": [{"outline": [1, 2]}', '{"a": [{"outline": [[1, 2], "b": 3}]}',
    '{"a": [{"outline": [1]], "b": 3}]}'])
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_what_is_no_json_object_is_refused(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr(json_parts, "BLOCK", block)
    with pytest.raises(ValueError):
        read(tmp_path / "x.json", text)


def test_a_byte_order_mark_is_no_matter(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    assert list(read_parts(tmp_path / "x.json", "outline")) == [("a", [1])]
