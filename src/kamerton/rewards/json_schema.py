"""`json-schema`: the answer is JSON that a schema describes (json-schema.org, any of its drafts).

Nothing is fetched: a schema that refers to another address is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field

from kamerton.errors import MissingExtra, RewardError
from kamerton.evaluation.value_metrics import read_json
from kamerton.rewards.verifier import Verifier, VerifierOptions
from kamerton.tasks.example import Example

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL)


class JsonSchemaOptions(VerifierOptions):
    """Options of `json-schema`."""

    document: str | dict[str, Any] = Field(description="the schema: a file, or its content; needed")
    fence: bool = Field(True, description="```json … ``` around the answer is taken off")
    parsed: float = Field(0.0, ge=0, le=1, description="reward of JSON that the schema does not describe")


class JsonSchema(Verifier):
    """1 where the schema describes the answer, `parsed` where it is other JSON, else 0.

    Raises:
        MissingExtra: jsonschema is not installed.
        RewardError: the schema cannot be read, or is none.
    """

    name = "json-schema"
    needs_references = False
    summary = "the answer is JSON that a schema describes"
    options = JsonSchemaOptions
    short = "document"
    o: JsonSchemaOptions

    def __init__(self, options: JsonSchemaOptions) -> None:
        super().__init__(options)
        try:
            from jsonschema.exceptions import SchemaError
            from jsonschema.validators import validator_for
            from referencing import Registry
        except ImportError:
            raise MissingExtra("jsonschema", "json-schema") from None
        schema = options.document if isinstance(options.document, dict) else self._read(Path(options.document))
        kind = validator_for(schema)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            at = ".".join(map(str, error.absolute_path)) or "its top"
            message = f"the schema is wrong at {at}: {error.message}"
            raise RewardError(message, where=f"reward {self.name}", mend="mend the schema") from None
        self._validator = kind(schema, registry=Registry())  # an empty registry fetches nothing

    def score(self, answer: str, example: Example) -> float:
        from referencing.exceptions import Unresolvable

        fenced = _FENCE.fullmatch(answer.strip()) if self.o.fence else None
        valid, value = read_json(fenced[1] if fenced else answer)
        if not valid:
            return 0.0
        try:
            return 1.0 if self._validator.is_valid(value) else self.o.parsed
        except RecursionError:  # JSON that is nested too deeply to be checked
            return 0.0
        except Unresolvable as error:
            what = f"the schema refers to {error.ref!r}, which is not in it"
            raise self.refusal(example, what, "put that part under $defs of the schema") from None

    def _read(self, path: Path) -> Any:
        try:
            schema = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise RewardError("no such schema", where=path, mend="check the path") from None
        except ValueError as error:
            raise RewardError(f"the schema is not JSON ({error})", where=path, mend="mend the file") from None
        if not isinstance(schema, dict):
            raise RewardError("the schema is no JSON object", where=path, mend="mend the file")
        return schema
