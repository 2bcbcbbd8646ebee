"""What all documents share: immutable, no unknown keys, finite numbers, and one line for all problems."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.text import shown, without_controls

Text = Annotated[str, AfterValidator(without_controls)]
Count = Annotated[int, Field(ge=0)]
ModelT = TypeVar("ModelT", bound=BaseModel)


class Config(BaseModel):
    """Immutable; unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def validated(document: Any, model: type[ModelT], where: str, what: str) -> ModelT:
    """A decoded document as ``model``. Raises FlasharError that names every wrong field, and ``what`` was expected."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise FlasharError(f"{where} is not {what}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The problems of a pydantic error on one line: ``key: message (got value)``."""
    parts = []
    for item in error.errors(include_url=False, include_context=False):
        if item["type"] == "default_factory_not_called":  # other fields are wrong, and have their own lines
            continue
        place = ".".join(str(piece) for piece in item["loc"]) or "document"
        message = item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] == "missing" or isinstance(item["input"], dict) else f" (got {shown(item['input'])})"
        parts.append(f"{place}: {message}{got}")
    return "; ".join(parts)
