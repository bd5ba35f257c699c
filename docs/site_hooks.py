"""A hook of mkdocs (mkdocs.yml): links from pages to files outside docs/ (configs, model cards) work in the site too.

Such files are published below files/, as plain text where a browser would not show them.
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

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def outside(page: str, link: str) -> str | None:
    """The path in the repository of a link from a page of docs/ (by its path there), if it leaves docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def published(path: str) -> str:
    """Where the site has a file of the repository."""
    return f"files/{path}.txt"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    paths = set()
    for page in files.documentation_pages():
        targets = (outside(page.src_uri, match[2]) for match in LINK.finditer(page.content_string))
        paths |= {path for path in targets if path and (root / path).is_file()}
    for path in sorted(paths):
        files.append(File.generated(config, published(path), abs_src_path=os.fspath(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here, root = page.file.src_uri, Path(config.config_file_path).parent

    def replaced(match: re.Match) -> str:
        path = outside(here, match[2])
        if path is None or not (root / path).exists():
            return match[0]  # mkdocs looks at it, and warns of what does not exist
        if (root / path).is_dir():
            return match[1]
        return f"[{match[1]}]({posixpath.relpath(published(path), posixpath.dirname(here) or '.')})"

    return LINK.sub(replaced, markdown)
