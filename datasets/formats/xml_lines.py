"""Small XML files as elements that know their line, which errors name."""
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from datasets.formats.listing import read_bytes
from util.errors import UserError


@dataclass
class Element:
    """text: what is between the tags, without the spaces around it."""

    tag: str
    line: int
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> list["Element"]:
        return [child for child in self.children if child.tag == tag]

    def first(self, tag: str) -> "Element | None":
        return next((child for child in self.children if child.tag == tag), None)


def read_xml(path: Path) -> Element:
    """The outermost element. Raises UserError, with the line, for what is no XML, and for a document type: entities
    could fill the memory, or read other files."""
    parser = expat.ParserCreate()
    open_elements = [Element("", 0)]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(tag: str) -> None:
        element = open_elements.pop()
        element.text = element.text.strip()

    def text(part: str) -> None:
        open_elements[-1].text += part

    def refuse(*declaration: object) -> None:
        raise UserError(f"{path}, line {parser.CurrentLineNumber}: a document type is not read: remove it")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, refuse
    parser.buffer_text = True
    try:
        parser.Parse(read_bytes(path), True)
    except UserError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:
        line = getattr(error, "lineno", parser.CurrentLineNumber)
        raise UserError(f"{path}, line {line}: no valid XML: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return open_elements[0].children[0]
