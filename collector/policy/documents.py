"""YAML and JSON as in Git or as kubectl prints it: documents, and in each of them fields that know where they stand.

    for document in read_documents(Path("policies")): document.kind, document.spec["hosts"].texts()

A mistake raises ConfigError with file, document and field: `egress.yaml: document 2 (ServiceEntry shop/stripe): spec.ports[0].number: …`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import yaml

from collector.errors import ConfigError
from collector.policy.calls import Selector
from collector.policy.listed import Network

SUFFIXES: Final = (".yaml", ".yml", ".json")
OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")

_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML was built with it, ten times as fast; both make plain values alone."""


@dataclass(frozen=True, slots=True)
class Field:
    """A value and where it stands; every reader raises ConfigError naming the place if it is not what is asked for."""

    value: Any
    where: str

    def __getitem__(self, key: str) -> "Field":
        """The field of a mapping; its value is None where it is missing."""
        return Field(
            self.mapping().get(key), f"{self.where}.{key}" if not self.where.endswith(": ") else self.where + key
        )

    def __bool__(self) -> bool:
        return self.value is not None

    def mapping(self) -> Mapping[str, Any]:
        """The mapping; empty where it is missing."""
        if self.value is None:
            return {}
        if isinstance(self.value, dict):
            return self.value
        raise self._refusal("a mapping")

    def items(self) -> "list[Field]":
        """The fields of a list; none where it is missing."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self._refusal("a list")
        return [Field(value, f"{self.where}[{i}]") for i, value in enumerate(self.value)]

    def text(self, expected: str = "a text") -> str:
        """The text, which must be there and not empty."""
        if isinstance(self.value, str) and self.value:
            return self.value
        raise self._refusal(expected)

    def text_or(self, default: str) -> str:
        """The text, or the default where it is missing."""
        return default if self.value is None else self.text()

    def texts(self) -> list[str]:
        """The texts of a list."""
        return [item.text() for item in self.items()]

    def choice(self, *choices: str) -> str:
        """The text, which must be one of these."""
        if isinstance(self.value, str) and self.value in choices:
            return self.value
        raise self._refusal(" or ".join(choices))

    def port(self) -> int:
        """The port, a number from 1 to 65535."""
        if isinstance(self.value, int) and not isinstance(self.value, bool) and 1 <= self.value <= 65535:
            return self.value
        raise self._refusal("a port from 1 to 65535")

    def network(self) -> Network:
        """The CIDR block, or a single address; host bits are ignored, as Kubernetes does."""
        text = self.text("a CIDR block like 10.0.0.0/8")
        try:
            return ip_network(text, strict=False)
        except ValueError as e:
            raise self._refusal("a CIDR block like 10.0.0.0/8") from e

    def selector(self) -> Selector:
        """The label selector."""
        labels = {key: Field(v, f"{self['matchLabels'].where}.{key}").text("a label's value") if v else "" for key, v in
                  self["matchLabels"].mapping().items()}  # fmt: skip
        expressions = tuple(
            (e["key"].text(), e["operator"].choice(*OPERATORS), tuple(e["values"].texts()))
            for e in self["matchExpressions"].items()
        )
        return Selector(labels, expressions)

    def _refusal(self, expected: str) -> ConfigError:
        got = "nothing" if self.value is None else f"{type(self.value).__name__} {self.value!r:.80}"
        return ConfigError(f"{self.where}: expected {expected}, got {got}")


@dataclass(frozen=True, slots=True)
class Document:
    """One document, or one item of a List.

    Attributes:
        kind: Empty where it has none.
        group: The API group: apiVersion up to the slash; empty for Kubernetes' core.
        name: metadata.name; empty where it has none.
        namespace: metadata.namespace; None where it is not said.
        body: All of it.
        place: File and number, without what it is.
    """

    kind: str
    group: str
    name: str
    namespace: str | None
    body: Field
    place: str

    @property
    def spec(self) -> Field:
        """Its `spec`."""
        return self.body["spec"]

    @property
    def title(self) -> str:
        """What findings call it: `ServiceEntry shop/stripe`."""
        path = self.name if self.namespace is None else f"{self.namespace}/{self.name}"
        return f"{self.kind} {path}".strip()


def read_documents(path: Path) -> list[Document]:
    """The documents in a file; raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: the policy cannot be read: {reason}") from e
    return parse_documents(text, name=str(path))


def parse_documents(text: str, *, name: str) -> list[Document]:
    """The documents in a text, items of Lists among them; raises ConfigError, whose message begins with `name`."""
    return [
        document
        for number, value in enumerate(_load(text, name), start=1)
        if value is not None
        for document in _documents(value, f"{name}: document {number}")
    ]


def _load(text: str, name: str) -> list[Any]:
    try:
        if name.endswith(".json"):
            return [json.loads(text)]
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        reason = getattr(e, "problem", None) or str(e).splitlines()[0]
        hint = "; a template has to be rendered first" if "{{" in text else ""
        raise ConfigError(f"{name}: not YAML{place}: {reason}{hint}") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{name}: cannot be read: {str(e) or 'nested too deeply'}") from e


def _documents(value: object, place: str) -> Iterator[Document]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected a mapping with kind and spec, got {type(value).__name__} {value!r:.80}")
    kind = value.get("kind")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(value.get("items"), list):
        for i, item in enumerate(value["items"]):
            yield from _documents(item, f"{place}, items[{i}]")
        return
    bare = Field(value, f"{place}: ")
    kind = bare["kind"].text_or("")
    metadata = bare["metadata"]
    name = metadata["name"].text_or("")
    namespace = metadata["namespace"].text_or("") or None
    title = f"{kind} {name if namespace is None else f'{namespace}/{name}'}".strip()
    body = Field(value, f"{place} ({title}): " if title else f"{place}: ")
    group = bare["apiVersion"].text_or("").rpartition("/")[0]
    yield Document(kind, group, name, namespace, body, place)
