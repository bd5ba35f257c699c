import pytest

from datasets.formats.xml_lines import read_xml
from util.errors import UserError


def test_elements_know_their_text_and_line(tmp_path):
    (tmp_path / "a.xml").write_text("<?xml version='1.0'?>\n<a>\n  <b> 1 &amp; 2 </b>\n  <c/><b>3</b>\n</a>\n")
    found = read_xml(tmp_path / "a.xml")
    assert (found.tag, found.line) == ("a", 2)
    assert [(b.text, b.line) for b in found.all("b")] == [("1 & 2", 3), ("3", 4)]
    assert found.first("c").text == "" and found.first("d") is None


@pytest.mark.parametrize("content, words", [
    (b"", "line 1: no valid XML"), (b"<a>\n<b>\n</a>", "line 3: no valid XML: mismatched tag"), (b"text", "line 1"),
    (b"\x89PNG\r\n", "no valid XML"), (b"<?xml version='1.0' encoding='nonsense'?><a/>", "no valid XML"),
    (b"<a/>\n<b/>", "line 2"),
    (b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/hostname'>]><a>&x;</a>", "line 1: a document type is not read"),
    (b"<!DOCTYPE a [<!ENTITY x 'y'><!ENTITY z '&x;&x;'>]>\n<a>&z;</a>", "a document type is not read")])
def test_what_is_no_plain_xml_is_refused_by_line(tmp_path, content, words):
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(UserError, match=f"a.xml, {words}|a.xml, line .*{words}"):
        read_xml(tmp_path / "a.xml")
    with pytest.raises(UserError, match="cannot read .*none.xml"):
        read_xml(tmp_path / "none.xml")
