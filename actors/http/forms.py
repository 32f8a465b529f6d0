"""multipart/form-data in one piece: fields, files, and a closing boundary."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from archipelago.actors.http.problems import Problem

MOST_FIELDS = 16
LARGEST_FIELD = 2**20  # bytes of a field that is text


@dataclass
class Form:
    """What a form holds; of a field that is given twice the last text counts."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[bytes] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


class _Reader:
    """Callbacks of the parser: one part after another."""

    def __init__(self, most_files: int) -> None:
        self.form = Form()
        self.closed = False
        self._most_files = most_files
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._data = bytearray()
        self._name, self._is_file = "", False
        self._texts = 0

    def on_part_begin(self) -> None:
        self._disposition, self._data = b"", bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise Problem(400, "the form cannot be read: a part has no name")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._is_file = b"filename" in options
        self.form.names.add(self._name)
        self._texts += not self._is_file
        if self._texts > MOST_FIELDS:
            raise Problem(413, f"the form holds more than {MOST_FIELDS} fields")
        if self._is_file and len(self.form.files) == self._most_files:
            raise Problem(413, f"the form holds more than {self._most_files} images")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]
        if not self._is_file and len(self._data) > LARGEST_FIELD:
            raise Problem(413, f"a field of the form holds more than {LARGEST_FIELD} bytes")

    def on_part_end(self) -> None:
        if self._is_file:
            self.form.files.append(bytes(self._data))
            return
        try:
            self.form.fields[self._name] = self._data.decode()
        except UnicodeDecodeError:
            raise Problem(422, "the form cannot be read: a field is not UTF-8") from None

    def on_end(self) -> None:
        self.closed = True


def read_form(content_type: str, body: bytes | bytearray, most_files: int) -> Form:
    """The parts of a form.

    Raises:
        Problem: 400 no form, or without its closing boundary; 413 too many parts; 422 no UTF-8.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Problem(400, "the form cannot be read: the content type names no boundary")
    reader = _Reader(most_files)
    names = [name for name in dir(reader) if name.startswith("on_")]
    callbacks = {name: getattr(reader, name) for name in names}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(bytes(body))
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, f"the form cannot be read: {error}") from None
    if not reader.closed:
        raise Problem(400, "the form cannot be read: its closing boundary is missing")
    return reader.form
