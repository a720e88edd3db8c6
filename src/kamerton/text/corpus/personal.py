"""Personal data: e-mail addresses, phone, IP and card numbers become `[EMAIL]`, `[PHONE]`, `[IP]`, `[CARD]`.

datatrove's own formatter knows e-mail and IPv4 only, puts other real addresses in their place in turn (so that results
depend on what a process saw before), and counts nothing. Not found: names, postal addresses, numbers written in words.
"""

from __future__ import annotations

import ipaddress
import re

from datatrove.data import Document

from kamerton.text.corpus.options import Mask
from kamerton.text.corpus.step import Step, domain_of

_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*@"
    r"(?:[^\W_](?:[\w-]*[^\W_])?\.)+(?:[^\W\d_]{2,}|xn--[a-z0-9-]+)(?![\w@])"
)
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])")
# 13 to 19 digits, in groups or not; the checksum decides
_CARD = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w]|[.-]\d)")
# with a country's code, or with brackets or separators in the shapes that people write, which dates and prices have not
# behind a colon (but not that of a time or a ratio) only a long number with a country's code, or what is called a phone
_PHONE = re.compile(
    r"(?:(?<![\w.,/:-])|(?<=[^\W\d]:)(?=\+[1-9][\d ().\-/]{9})|(?i:(?<=tel:|fax:|тел:)|(?<=phone:)|(?<=телефон:)))(?:"
    r"(?:\+|00)[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}"  # +49 30 1234567, 00 44 20 7946 0958
    r"|8[ -]?\(?\d{3}\)?[ -]?\d{3}[ -]?\d{2}[ -]?\d{2}"  # 8 (495) 123-45-67
    r"|\(\d{2,5}\)[ .-]?\d{3,4}(?:[ .-]?\d{2,4}){1,2}"  # (555) 123-4567
    r"|\d{3}[.-]\d{3}[.-]\d{4}|\d{3} \d{3} \d{4}"  # 555-123-4567
    r"|0\d{2,4}[ /-]\d{3,4}(?:[ -]?\d{2,4}){1,2}"  # 020 7946 0958
    r")(?![\w]|[.,:/-]\d)"
)


def luhn(number: str) -> bool:
    """Whether digits (spaces and hyphens aside) have a card number's checksum (ISO/IEC 7812)."""
    digits = [int(sign) for sign in number if sign.isascii() and sign.isdigit()]
    if len(digits) < 13 or not any(digits):
        return False
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    if not text.strip(":"):
        return False  # `::` alone stands in programs, and is nobody's address
    return text.count(":") != 2 or "::" in text  # 12:30:45 is a time


def _phone(text: str) -> bool:
    return 7 <= sum(sign.isdigit() for sign in text) <= 15


def mask(text: str, kinds: tuple[str, ...] = ("email", "phone", "ip", "card")) -> tuple[str, dict[str, int]]:
    """The text with what was found masked, and how often each kind was found."""
    found: dict[str, int] = {}
    rules = (
        ("email", _EMAIL, None), ("ip", _IP6, _address), ("ip", _IP4, _address), ("card", _CARD, luhn),
        ("phone", _PHONE, _phone),
    )  # fmt: skip
    for kind, pattern, check in rules:
        if kind not in kinds:
            continue

        def replace(match: re.Match[str], kind: str = kind, check: object = check) -> str:
            if callable(check) and not check(match.group()):
                return match.group()
            found[kind] = found.get(kind, 0) + 1
            return f"[{kind.upper()}]"

        if kind == "email" and "@" not in text:
            continue
        text = pattern.sub(replace, text)
    return text, found


class MaskStep(Step):
    """Masks personal data and counts them."""

    def __init__(self, folder: str, label: str, options: Mask) -> None:
        super().__init__(folder, label)
        self.options = options

    def judge(self, doc: Document) -> str | None:
        doc.text, found = mask(doc.text, self.options.kinds)
        for kind, count in found.items():
            self.tally.note(domain_of(doc), f"{kind} masked", count)
        return None
