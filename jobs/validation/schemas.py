"""JSON schemas: their errors as findings, and OpenAPI schemas of Kubernetes made strict."""

from typing import Any

from jsonschema import ValidationError
from jsonschema.protocols import Validator

from jobs.validation.documents import Document, Place, Report
from pixellm.settings import did_you_mean


def add_schema_errors(document: Document, validator: Validator, report: Report, place: Place = ()) -> bool:
    """A finding for each error of the values at `place`; whether there was none."""
    errors = list(validator.iter_errors(document.at(*place)))
    for error in errors:
        for within, what in _describe(error):
            path = (*place, *error.absolute_path, *within)
            report.add(document, path, f"{'.'.join(map(str, path)) or 'this document'}: {what}")
    return not errors


def _describe(error: ValidationError) -> list[tuple[Place, str]]:
    if error.validator == "additionalProperties" and isinstance(error.schema, dict):
        known = error.schema.get("properties", {})
        return [((key,), f"unknown key; {did_you_mean(key, known, 'known keys')}") for key in error.instance if key not in known]
    wanted: Any = error.validator_value
    if error.validator == "required":
        return [((), f"{key} is missing; it is needed here") for key in wanted if key not in error.instance]
    if error.validator == "enum":
        return [((), f"{error.instance!r} is none of the values; {did_you_mean(str(error.instance), map(str, wanted), 'they are')}")]
    if error.validator == "type":
        kinds = wanted if isinstance(wanted, str) else " or ".join(wanted)
        return [((), f"found {error.instance!r:.80}, write one that is a YAML {kinds}")]
    if error.validator in ("anyOf", "oneOf") and error.context:
        return _describe(error.context[0])
    return [((), f"{error.message[:200]}; see the limits of this key")]


def make_strict(schema: Any) -> Any:
    """An OpenAPI schema of a CRD in which an object takes the keys that it names and no others, and its own marks are JSON schema's."""
    if isinstance(schema, list):
        return [make_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **{key: schema[key] for key in ("pattern",) if key in schema}}
    strict = {key: ({name: make_strict(each) for name, each in value.items()} if key == "properties" else make_strict(value))
              for key, value in schema.items()}
    if "properties" in strict and "additionalProperties" not in strict and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict["additionalProperties"] = False
    if schema.get("nullable") and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    return strict
