"""Names of our own parameterisations in peft's enumeration of methods."""

from __future__ import annotations

from typing import Any

from peft.utils.peft_types import PeftType


def enter(name: str) -> Any:
    """Make `name` a member of peft's enumeration of methods, which is closed but asked for every adapter."""
    value = name.upper()
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_ = member._value_ = value
        type.__setattr__(PeftType, value, member)
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
    return PeftType[value]
