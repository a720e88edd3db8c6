"""Server-sent events, as a chat's answer comes from a server: lines in, the data of each event out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def event_data(lines: Iterable[bytes]) -> Iterator[str]:
    """The data of each event (WHATWG HTML, section 9.2).

    Fields other than `data` (names, ids, retry) and comments are passed over; an event that is not ended by an empty
    line is given all the same, since servers leave out the last one.

    Args:
        lines: with or without their ends, LF or CRLF.
    """
    data: list[str] = []
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text:
            name, _, value = text.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
        elif data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)
