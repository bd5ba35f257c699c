"""What a file is, from its first bytes: for a message about one that is no checkpoint."""
import zipfile
from pathlib import Path

HEADS: list[tuple[bytes, str]] = [
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched (git lfs pull)"),
    (b"<", "a web page or XML text: the download brought this instead of the file"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"GGUF", "a GGUF file"),
    (b"{", "a JSON text"),
    (b"[", "a JSON text"),
]


def file_kind(path: Path) -> str:
    """The kind of a file that is no checkpoint, such as "an empty file"; empty if the first bytes do not tell."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return _archive_kind(path)
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it"
    if not head.strip(b"\0"):
        return "filled with zeros: it was not written to its end"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for start, kind in HEADS if text.startswith(start)), "")


def is_safetensors(path: Path) -> bool:
    """Whether a file starts as safetensors do: the length of a header, and the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _archive_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile has several for a damaged list of contents
        return ""
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return "a TorchScript program (torch.jit.save), not weights: save the model's state_dict() with torch.save"
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy arrays (.npz)"
    if not any(name.endswith("data.pkl") for name in names):
        return "a zip archive: unpack it"
    return ""
