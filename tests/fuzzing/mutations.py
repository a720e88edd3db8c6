"""Changes to a case: of its bytes, of the values in its JSON and YAML, of its lines and cells, of headers.

A change keeps most of a file as it was, so that a reader gets past its first check. Everything follows from one random
generator. Packed files are changed inside and packed again half of the time.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

Case = dict[str, bytes]
"""Files by their names."""

LARGEST = 1 << 18
"""Bytes of a file that is changed further; larger ones start again from a first case."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), float("-inf"), "", " ", "a", "0", "-1", "1e999", "٣", "true", "null", "None", "\x00", "\ud800",
    "a\u2028b", "İ", "ﬁ", "\ufeff", "😀", "../..", "/etc/passwd", "..\\..", "a/b", "a\nb", "<script>", "{{ 7 }}",
    "{x}", "%s", "%n", "~", "~root", ".", "-", "--help", "[" * 50, [], {}, [[]], [None], {"a": None}, {"": ""},
    [1, "a"], {"role": "user", "content": "q"}, {"from": "human", "value": 1}, ["a", "b"], "x" * 5000, list(range(300)),
)  # fmt: skip
"""What nobody expects where it stands."""

TOKENS: tuple[bytes, ...] = (
    b"\0", b"\xff", b"\xed\xa0\xbd", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"\r\n", b"\r", b"\n", b"\n\n", b"\t", b",",
    b";", b'"', b'""', b"'", b"[", b"]", b"{", b"}", b":", b"- ", b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system ",
    b"!!binary ", b"? ", b"|\n", b"%", b"#", b"\\", b"\\ud800", b"\\u0000", b"1e999", b"NaN", b"-Infinity", b"9" * 400,
    b"9" * 5000, b"0x", b"0o", b"_", b"2024-01-31", b"12:30", b"<", b">", b"&", b"&#0;", b"&lol;", b"]]>", b"<![CDATA[",
    b"<!--", b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>", b"\x80\x02", b"(((((", b"(a+)+$", b".*", b"$ref",
    b"PAR1", b"WARC/1.0\r\n", b"\x1f\x8b\x08", b"BZh9", b"\x28\xb5\x2f\xfd", b"GGUF", b"\x93NUMPY", b"\xe2\x80\xa8",
)  # fmt: skip
"""Pieces that mean something to one format or another."""

PLAIN = json.JSONEncoder(ensure_ascii=True)
"""Escapes halves of surrogate pairs, and writes NaN as Python's reader takes it."""


def mutate(case: Case, others: list[Case], rng: random.Random) -> Case:
    """Another case: the given one with a few changes in one or two of its files.

    Args:
        others: cases whose parts may be put into this one.
    """
    changed = dict(case)
    for _ in range(1 if rng.random() < 0.8 else 2):
        name = rng.choice([n for n in changed if n != "r.yaml" or rng.random() < 0.3] or list(changed))
        if rng.random() < 0.02:
            del changed[name]  # a file that is not there
            if not changed:
                return {name: b""}
            continue
        donor = rng.choice(others).get(name, b"") if others else b""
        changed[name] = _file(changed[name], donor, name, rng)
    return changed


def _file(data: bytes, donor: bytes, name: str, rng: random.Random) -> bytes:
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.5:
        try:
            return gzip.compress(_file(gzip.decompress(data), b"", name.removesuffix(".gz"), rng), 1)
        except (OSError, EOFError, zlib.error):
            pass
    ways = _structured(name, data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.choice(ways) if ways and rng.random() < 0.65 else _bytes
        data = way(data, donor, rng)
        if len(data) > LARGEST:
            data = data[:LARGEST]
    return data


Change = Callable[[bytes, bytes, random.Random], bytes]


def _structured(name: str, data: bytes) -> list[Change]:
    if name.endswith((".json", ".yaml")):
        return [_json, _lines, _tokens]
    if name.endswith((".jsonl", ".ndjson")):
        return [_json_lines, _json_lines, _lines, _tokens]
    if name.endswith((".csv", ".tsv", ".conll", ".txt", ".md", ".arpa", ".jinja")):
        return [_lines, _tokens]
    if name.endswith((".html", ".xml", ".warc")):
        return [_lines, _tokens, _tokens]
    if name.endswith(".safetensors") and len(data) > 8:
        return [_safetensors]
    if name.endswith((".gguf", ".npy", ".parquet", ".sqlite")):
        return [_numbers, _tokens]
    return []


# -- bytes --------------------------------------------------------------------------------------------------------------


def _bytes(data: bytes, donor: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    length = min(int(rng.expovariate(0.1)) + 1, 2000)
    kind = rng.randrange(8)
    if kind == 0 and out:
        out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[at:at] = rng.randbytes(length)
    elif kind == 2:
        del out[at : at + length]
    elif kind == 3:
        out[at:at] = out[at : at + length] * rng.choice((1, 2, 40))
    elif kind == 4:
        del out[at:]
    elif kind == 5 and donor:
        start = rng.randrange(len(donor))
        out[at : at + length] = donor[start : start + length]
    elif kind == 6:
        out[at : at + length] = rng.choice(TOKENS)
    else:
        out[at : at + 8] = _number(rng)
    return bytes(out)


def _number(rng: random.Random) -> bytes:
    value = rng.choice(
        (0, 1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
    )
    size = rng.choice((1, 2, 4, 8))
    return (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))


def _numbers(data: bytes, donor: bytes, rng: random.Random) -> bytes:
    """A number in a binary file, more often near its beginning or end, where headers are."""
    del donor
    if not data:
        return data
    out, number = bytearray(data), _number(rng)
    place = int(rng.expovariate(1 / 300)) if rng.random() < 0.7 else rng.randrange(len(out))
    at = min(place, len(out) - 1)
    if rng.random() < 0.3:
        at = len(out) - 1 - at
    out[at : at + len(number)] = number
    return bytes(out)


def _tokens(data: bytes, donor: bytes, rng: random.Random) -> bytes:
    del donor
    at = rng.randrange(len(data) + 1)
    token = rng.choice(TOKENS)
    return data[:at] + token * rng.choice((1, 1, 1, 2, 200)) + data[at + rng.choice((0, 0, 1, len(token))) :]


def _lines(data: bytes, donor: bytes, rng: random.Random) -> bytes:
    """Lines that are dropped, doubled, swapped, cut, moved in by another file, indented."""
    lines = data.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines[i:i] = [lines[j]] * rng.choice((1, 3, 100))
    elif kind == 2:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 3:
        lines[i] = lines[i][: rng.randrange(len(lines[i]) + 1)]
    elif kind == 4 and donor:
        lines[i:i] = [rng.choice(donor.split(b"\n"))]
    else:
        lines[i] = rng.choice((b" ", b"  ", b"\t", b"- ")) + lines[i]
    return b"\n".join(lines)


# -- values -------------------------------------------------------------------------------------------------------------


def _json(data: bytes, donor: bytes, rng: random.Random) -> bytes:
    del donor
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        import yaml

        try:  # a recipe: JSON is YAML too
            value = yaml.safe_load(data)
            return PLAIN.encode(_value(value, rng)).encode()
        except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError):
            return _tokens(data, b"", rng)
    return PLAIN.encode(_value(value, rng)).encode()


def _json_lines(data: bytes, donor: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    lines[i] = _json(lines[i] or b"{}", donor, rng)
    return b"\n".join(lines)


def _places(value: Any, above: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    if above > 40:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner, above + 1)


def _value(value: Any, rng: random.Random) -> Any:
    """A value with a few places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        inside, key = rng.choice(places)
        kind = rng.randrange(9)
        if kind <= 2:
            inside[key] = copy.deepcopy(rng.choice(ODD))
        elif kind == 3:
            del inside[key]
        elif kind == 4:
            other, there = rng.choice(places)
            found = other[there] if not isinstance(other, list) or there < len(other) else None
            inside[key] = copy.deepcopy(found)
        elif kind == 5:
            inside[key] = rng.choice(([inside[key]], {"a": inside[key]}, str(inside[key])))
        elif kind == 6 and isinstance(inside, dict):
            inside[rng.choice(("x", "", "name", "\ud800", str(rng.choice(ODD))[:50]))] = inside.pop(key)
        elif kind == 7 and isinstance(inside[key], int | float) and not isinstance(inside[key], bool):
            try:
                inside[key] = rng.choice((-inside[key], inside[key] + 1, inside[key] * 10**6, inside[key] / 3, 1 << 40))
            except OverflowError:
                inside[key] = 0
        elif isinstance(inside[key], list):
            inside[key] = inside[key] * rng.choice((0, 2, 20))
        elif isinstance(inside[key], str):
            text = inside[key]
            at = rng.randrange(len(text) + 1)
            inside[key] = text[:at] + rng.choice(("", "\x00", "\ud800", "../", "\n", text * 3, "9" * 400)) + text[at:]
    return value


def _safetensors(data: bytes, donor: bytes, rng: random.Random) -> bytes:
    """The header's values, its length, or the tensors behind it."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8 or rng.random() < 0.2:
        return _numbers(data, donor, rng)
    header = _json(data[8 : 8 + length], donor, rng)
    said = len(header) if rng.random() < 0.9 else rng.choice((0, len(header) - 1, 2**63, 10**8, 10**9))
    return struct.pack("<Q", max(said, 0)) + header + data[8 + length :]
