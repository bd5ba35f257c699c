"""A hook of mkdocs (mkdocs.yml): what the site has beyond the pages of docs/.

Links from pages to files outside docs/ (configs, model cards) work: such files are published below files/, as plain
text. The first page goes on with sections of the README, so that they are written once.
"""
from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

README_HERE = "<!-- README -->"  # the line of docs/index.md that the sections replace
README_SECTIONS = "Start", "COCO", "Models", "Config files", "Your own data"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def outside(page: str, link: str) -> str | None:
    """The path in the repository of a link from a page of docs/ (by its path there), if it leaves docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def published(path: str) -> str:
    """Where the site has a file of the repository."""
    return f"files/{path}.txt"


def readme_sections(readme: str) -> str:
    """README_SECTIONS of the README, with the links that a page of docs/ has to the same files."""
    sections = {text.split("\n", 1)[0]: f"## {text}" for text in readme.split("\n## ")[1:]}
    chosen = "\n".join(sections[title] for title in README_SECTIONS)
    return re.sub(r"\]\((?![a-z]+:|#)([^)\s]+)\)",
                  lambda match: f"]({posixpath.relpath(match[1], 'docs')})", chosen)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    texts = [(page.src_uri, page.content_string) for page in files.documentation_pages()]
    texts.append(("index.md", readme_sections((root / "README.md").read_text(encoding="utf-8"))))
    targets = {outside(page, match[2]) for page, text in texts for match in LINK.finditer(text)}
    paths = {path for path in targets if path and (root / path).is_file()}
    for path in sorted(paths):
        files.append(File.generated(config, published(path), abs_src_path=os.fspath(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here, root = page.file.src_uri, Path(config.config_file_path).parent
    if README_HERE in markdown:
        markdown = markdown.replace(README_HERE, readme_sections((root / "README.md").read_text(encoding="utf-8")))

    def replaced(match: re.Match) -> str:
        path = outside(here, match[2])
        if path is None or not (root / path).exists():
            return match[0]  # mkdocs looks at it, and warns of what does not exist
        if (root / path).is_dir():
            return match[1]
        return f"[{match[1]}]({posixpath.relpath(published(path), posixpath.dirname(here) or '.')})"

    return LINK.sub(replaced, markdown)
