"""Files to documents, documents to passages.

A file is Markdown or plain text in UTF-8. Front matter (YAML between two `---` lines) may give
`id`, `title`, `language` and `related`; what it does not give is taken from the text. References
to other documents are written `[[id]]`.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from service.retrieval.tokenize import count_units, language_of

SUFFIXES = frozenset({".md", ".markdown", ".txt"})
MAX_FILE_BYTES = 10 * 1024 * 1024

PASSAGE_UNITS = 250
"""Words (or their worth of Han characters) a passage holds at most. Of 120, 180, 250 and 400 this
found the right article most often (docs/adr/001-retrieval-default.md)."""
OVERLAP_UNITS = 40
"""How much of the previous passage a passage of the same section begins with."""

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*$")
_FENCE = re.compile(r"^[ \t]*(```|~~~)")
_REFERENCE = re.compile(r"\[\[([^\[\]\n|]+)(?:\|[^\[\]\n]*)?\]\]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])")


@dataclass(frozen=True, slots=True)
class Document:
    """One article."""

    document_id: str
    title: str
    language: str
    text: str
    """Without front matter, references still written `[[id]]`."""
    references: tuple[str, ...] = ()
    source: str = ""
    """The file, relative to the indexed folder."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that is found and quoted as one."""

    passage_id: str
    document_id: str
    title: str
    heading: str
    """The headings it stands under or holds."""
    text: str
    language: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not taken, and why, in words for its owner."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a folder held."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    """File to the id it got because another document already had its own."""


class UnreadableFileError(Exception):
    """A file cannot become a document; the message says why and what to do."""


def find_files(root: Path) -> list[Path]:
    """Text files below `root` (or `root` itself), sorted, without hidden files and folders."""
    if root.is_file():
        return [root]
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def content_hash(root: Path) -> str:
    """Hash of every file's name and content below `root`."""
    digest = hashlib.sha256()
    for path in find_files(root):
        digest.update(_relative(path, root).encode("utf-8", "surrogateescape") + b"\0")
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            digest.update(b"unreadable")
    return digest.hexdigest()


def load(root: Path) -> Loaded:
    """Read every text file below `root`; what cannot be used is reported, not raised."""
    documents: dict[str, Document] = {}
    skipped: list[Skipped] = []
    renamed: dict[str, str] = {}
    first_with_text: dict[str, str] = {}
    for path in find_files(root):
        source = _relative(path, root)
        try:
            document = parse(_read_text(path), source)
        except UnreadableFileError as error:
            skipped.append(Skipped(source, str(error)))
            continue
        twin = first_with_text.setdefault(document.text, source)
        if twin != source:
            skipped.append(Skipped(source, f"has the same text as {twin}"))
            continue
        if document.document_id in documents:
            document = replace(document, document_id=_free_id(document.document_id, documents))
            renamed[source] = document.document_id
        documents[document.document_id] = document
    return Loaded(tuple(documents.values()), tuple(skipped), renamed)


def parse(text: str, source: str) -> Document:
    """A document from a file's text; `source` names it when the front matter does not."""
    fields, body = _split_front_matter(text)
    body = body.strip()
    if not body:
        raise UnreadableFileError("is empty")
    title = str(fields.get("title") or _first_heading(body) or _title_from_name(source)).strip()
    related = fields.get("related")
    references = [
        *(related if isinstance(related, list) else []),
        *(match[1] for match in _REFERENCE.finditer(body)),
    ]
    document_id = slug(str(fields.get("id") or "")) or slug(str(Path(source).with_suffix("")))
    return Document(
        document_id=document_id or "document",
        title=title,
        language=str(fields.get("language") or language_of(body)),
        text=body,
        references=tuple(dict.fromkeys(slug(str(reference)) for reference in references)),
        source=source,
    )


def slug(name: str) -> str:
    """`name` as an id that fits one URL path segment; letters of any script stay."""
    kept = re.sub(r"[^\w.]+", "-", unicodedata.normalize("NFKC", name).casefold())
    return kept.strip("-._")


def split(document: Document) -> Iterator[Passage]:
    """Passages of at most `PASSAGE_UNITS`: whole sections as long as they fit, else windows."""
    for number, (heading, text) in enumerate(_packed(_sections(document.text)), start=1):
        yield Passage(
            passage_id=f"{document.document_id}#{number}",
            document_id=document.document_id,
            title=document.title,
            heading=heading,
            text=_REFERENCE.sub(r"\1", text),
            language=document.language,
        )


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UnreadableFileError(
                f"is larger than {MAX_FILE_BYTES // 1024**2} MB; split it into smaller files"
            )
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"cannot be read: {error.strerror or error}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableFileError(_convert_hint("UTF-16"))
    if b"\0" in data:
        raise UnreadableFileError("is a binary file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableFileError(_convert_hint(_guess_encoding(data))) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _guess_encoding(data: bytes) -> str:
    try:
        decoded = data.decode("gb18030")
    except UnicodeDecodeError:
        return "ISO-8859-1"
    return "GB18030" if language_of(decoded) == "zh" else "ISO-8859-1"


def _convert_hint(encoding: str) -> str:
    return f"is not UTF-8 (looks like {encoding}); convert it: iconv -f {encoding} -t UTF-8"


def _split_front_matter(text: str) -> tuple[Mapping[str, Any], str]:
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        fields = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return {}, text  # a text that merely begins with a rule is a text
    if not isinstance(fields, dict):
        return {}, text
    return fields, text[match.end() :]


def _first_heading(body: str) -> str | None:
    match = _HEADING.match(body.splitlines()[0])
    return match[1] if match else None


def _title_from_name(source: str) -> str:
    return re.sub(r"[-_]+", " ", Path(source).stem).strip() or source


def _free_id(document_id: str, taken: Mapping[str, Document]) -> str:
    number = 2
    while f"{document_id}-{number}" in taken:
        number += 1
    return f"{document_id}-{number}"


def _relative(path: Path, root: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Heading and text (heading line included) of each section; a fenced `#` is no heading."""
    heading, lines, fenced = "", list[str](), False
    for line in text.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        match = None if fenced else _HEADING.match(line)
        if match is not None:
            if any(map(str.strip, lines)):
                yield heading, "\n".join(lines).strip()
            heading, lines = match[1], []
        lines.append(line)
    yield heading, "\n".join(lines).strip()


def _packed(sections: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Neighbouring sections together while they fit; a section that does not fit, in windows."""
    headings: list[str] = []
    texts: list[str] = []
    units = 0
    for heading, text in sections:
        length = count_units(text)
        if texts and units + length > PASSAGE_UNITS:
            yield " · ".join(headings), "\n\n".join(texts)
            headings, texts, units = [], [], 0
        if length > PASSAGE_UNITS:
            yield from ((heading, window) for window in _windows(text))
            continue
        headings += [heading] if heading else []
        texts.append(text)
        units += length
    if texts:
        yield " · ".join(headings), "\n\n".join(texts)


def _windows(body: str) -> Iterator[str]:
    """Pieces of a long section, each beginning with the last sentences of the one before."""
    pieces = [piece for paragraph in _paragraphs(body) for piece in _fitting(paragraph)]
    window: list[str] = []
    units = 0
    for piece in pieces:
        length = count_units(piece)
        if window and units + length > PASSAGE_UNITS:
            yield "\n\n".join(window)
            tail = _tail(window[-1])
            window, units = ([tail], count_units(tail)) if tail else ([], 0)
        window.append(piece)
        units += length
    yield "\n\n".join(window)


def _paragraphs(body: str) -> list[str]:
    return [stripped for part in re.split(r"\n[ \t]*\n", body) if (stripped := part.strip("\n"))]


def _fitting(paragraph: str) -> Iterator[str]:
    """`paragraph` whole, or cut at sentence ends, or, where there are none, by length."""
    if count_units(paragraph) <= PASSAGE_UNITS:
        yield paragraph
        return
    joiner = "" if language_of(paragraph) == "zh" else " "
    group: list[str] = []
    for sentence in _short_sentences(paragraph):
        if group and count_units(joiner.join([*group, sentence])) > PASSAGE_UNITS:
            yield joiner.join(group)
            group = []
        group.append(sentence)
    yield joiner.join(group)


def _short_sentences(paragraph: str) -> Iterator[str]:
    hard_limit = PASSAGE_UNITS * 6  # characters; no language needs more for that many words
    for sentence in filter(None, _SENTENCE_END.split(paragraph)):
        for start in range(0, len(sentence), hard_limit):
            yield sentence[start : start + hard_limit]


def _tail(text: str) -> str:
    """The last sentences of `text`, at most `OVERLAP_UNITS`; empty when the last is longer."""
    kept: list[str] = []
    for sentence in reversed([part for part in _SENTENCE_END.split(text) if part]):
        if sum(map(count_units, kept)) + count_units(sentence) > OVERLAP_UNITS:
            break
        kept.insert(0, sentence)
    return ("" if language_of(text) == "zh" else " ").join(kept)
