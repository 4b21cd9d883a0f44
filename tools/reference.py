"""Render docs/reference/{rpc,reasons}.md from the contract (`python -m tools.reference`).

Comments are not part of the generated code, so the protos are compiled once more, by the same
pinned protoc, to a descriptor set that keeps them.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from tools import gen
from trunkline.api.options.v1 import policy_pb2

TARGET = gen.ROOT / "docs" / "reference"
PACKAGE = "trunkline.api."
# Field numbers in descriptor.proto, which is how comments are addressed.
_MESSAGES, _ENUMS, _SERVICES, _FIELDS, _VALUES, _METHODS = 4, 5, 6, 2, 2, 2
_CODES = {
    "trunkline.api.errors.v1.Reason": "Reasons",
    "trunkline.api.members.v1.ValidationReason": "Validation reasons",
    "trunkline.api.imports.v1.RejectCode": "Reject codes",
}
_HEAD = "<!-- Made from protos/ by tools/reference.py. -->\n\n"
_Path = tuple[int, ...]


class Contract:
    """The files of the contract with their comments."""

    def __init__(self, descriptors: descriptor_pb2.FileDescriptorSet) -> None:
        self.files = [file for file in descriptors.file if file.package.startswith(PACKAGE)]
        self._comments = {
            (file.name, tuple(place.path)): place.leading_comments
            for file in self.files
            for place in file.source_code_info.location
            if place.leading_comments
        }

    @classmethod
    def compile(cls) -> "Contract":
        with tempfile.TemporaryDirectory() as name:
            target = Path(name) / "contract.binpb"
            sources = [source for source in gen.sources() if source.startswith("trunkline/")]
            gen.protoc("--include_source_info", f"--descriptor_set_out={target}", *sources)
            content = target.read_bytes()
        return cls(descriptor_pb2.FileDescriptorSet.FromString(content))

    def comment(self, file: descriptor_pb2.FileDescriptorProto, path: _Path) -> str:
        """Return the comment at `path` on one line; empty where there is none."""
        return " ".join(self._comments.get((file.name, path), "").split())

    def messages(self) -> Iterator["Message"]:
        for file in self.files:
            for index, message in enumerate(file.message_type):
                yield Message(self, file, message, (_MESSAGES, index))

    def enums(self) -> Iterator["Enum"]:
        for file in self.files:
            for index, enum in enumerate(file.enum_type):
                yield Enum(self, file, enum, (_ENUMS, index))

    def services(self) -> Iterator["Service"]:
        for file in self.files:
            for index, service in enumerate(file.service):
                yield Service(self, file, service, (_SERVICES, index))


class Message:
    """A message, its comment and its fields' comments."""

    def __init__(
        self,
        contract: Contract,
        file: descriptor_pb2.FileDescriptorProto,
        proto: descriptor_pb2.DescriptorProto,
        path: _Path,
    ) -> None:
        self.proto = proto
        self.name = f"{file.package}.{proto.name}"
        self.comment = contract.comment(file, path)
        self.fields = [
            (field, contract.comment(file, (*path, _FIELDS, index)))
            for index, field in enumerate(proto.field)
        ]

    def type_of(self, field: FieldDescriptorProto) -> str:
        if field.type not in (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM):
            name = f"`{FieldDescriptorProto.Type.Name(field.type).removeprefix('TYPE_').lower()}`"
        else:
            nested = self.proto.nested_type
            entry = next((n for n in nested if field.type_name.endswith(f".{n.name}")), None)
            if entry is not None and entry.options.map_entry:
                key, value = (self.type_of(part) for part in entry.field)
                return f"map of {key} to {value}"
            name = link(field.type_name.removeprefix("."))
        return f"list of {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


class Enum:
    """An enum, its comment and its values' comments."""

    def __init__(
        self,
        contract: Contract,
        file: descriptor_pb2.FileDescriptorProto,
        proto: descriptor_pb2.EnumDescriptorProto,
        path: _Path,
    ) -> None:
        self.proto = proto
        self.name = f"{file.package}.{proto.name}"
        self.comment = contract.comment(file, path)
        self.values = [
            (value, contract.comment(file, (*path, _VALUES, index)))
            for index, value in enumerate(proto.value)
        ]

    def short(self, value: descriptor_pb2.EnumValueDescriptorProto) -> str:
        prefix = self.proto.value[0].name.removesuffix("UNSPECIFIED")
        return value.name.removeprefix(prefix)


class Service:
    """A service, its comment and its methods' comments."""

    def __init__(
        self,
        contract: Contract,
        file: descriptor_pb2.FileDescriptorProto,
        proto: descriptor_pb2.ServiceDescriptorProto,
        path: _Path,
    ) -> None:
        self.proto = proto
        self.name = f"{file.package}.{proto.name}"
        self.comment = contract.comment(file, path)
        self.methods = [
            (method, contract.comment(file, (*path, _METHODS, index)))
            for index, method in enumerate(proto.method)
        ]


def policy_of(method: descriptor_pb2.MethodDescriptorProto) -> policy_pb2.Policy:
    return method.options.Extensions[policy_pb2.policy]


def link(type_name: str) -> str:
    if not type_name.startswith(PACKAGE):
        return f"`{type_name}`"
    short = type_name.removeprefix(PACKAGE)
    if type_name in _CODES:
        return f"[{short}](reasons.md#{_anchor(_CODES[type_name])})"
    return f"[{short}](#{_anchor(short)})"


def _anchor(heading: str) -> str:
    return heading.lower().replace(".", "").replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(*cells: str) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def rpc_page(contract: Contract) -> str:
    lines = [_HEAD + "# RPC reference", ""]
    lines += [
        "Roles: A agent, T trainer, R registrar, D administrator, S system. A method's deadline is",
        "the default and, after the stroke, the longest a server grants.",
        "",
    ]
    for service in contract.services():
        lines += [*_service_section(service), ""]
    lines += ["## Messages", ""]
    for message in contract.messages():
        lines += [*_message_section(message), ""]
    lines += ["## Enumerations", ""]
    for enum in contract.enums():
        if enum.name not in _CODES:
            lines += [*_enum_section(enum), ""]
    return "\n".join(lines).rstrip() + "\n"


def _service_section(service: Service) -> Iterator[str]:
    yield f"## {service.name}"
    yield ""
    yield service.comment
    yield ""
    yield _row("method", "roles", "cost", "priority", "audited", "deadline", "what it does")
    yield _row(*["---"] * 7)
    for method, comment in service.methods:
        policy = policy_of(method)
        name = method.name
        yield _row(
            f"[{name}]({_method_anchor(method)})" + _streams(method),
            _roles(policy),
            str(policy.cost),
            policy_pb2.Priority.Name(policy.priority).removeprefix("PRIORITY_"),
            "yes" if policy.audit else "",
            f"{_span(policy.default_deadline.seconds)} / {_span(policy.max_deadline.seconds)}",
            comment,
        )


def _method_anchor(method: descriptor_pb2.MethodDescriptorProto) -> str:
    return "#" + _anchor(method.input_type.removeprefix("." + PACKAGE))


def _streams(method: descriptor_pb2.MethodDescriptorProto) -> str:
    match method.client_streaming, method.server_streaming:
        case True, True:
            return " (both stream)"
        case True, False:
            return " (client streams)"
        case False, True:
            return " (server streams)"
        case _:
            return ""


_ROLE_LETTERS = {
    policy_pb2.ROLE_AGENT: "A",
    policy_pb2.ROLE_TRAINER: "T",
    policy_pb2.ROLE_REGISTRAR: "R",
    policy_pb2.ROLE_ADMIN: "D",
    policy_pb2.ROLE_SYSTEM: "S",
}


def _roles(policy: policy_pb2.Policy) -> str:
    return "anyone" if policy.anonymous else "".join(_ROLE_LETTERS[role] for role in policy.roles)


def _span(seconds: int) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _message_section(message: Message) -> Iterator[str]:
    yield f"### {message.name.removeprefix(PACKAGE)}"
    yield ""
    yield message.comment
    if not message.fields:
        return
    yield ""
    yield _row("field", "type", "meaning")
    yield _row(*["---"] * 3)
    for field, comment in message.fields:
        one_of = ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            one_of = f" One of `{message.proto.oneof_decl[field.oneof_index].name}`."
        yield _row(f"`{field.name}`", message.type_of(field), comment + one_of)


def _enum_section(enum: Enum) -> Iterator[str]:
    yield f"### {enum.name.removeprefix(PACKAGE)}"
    yield ""
    yield enum.comment
    yield ""
    yield _row("value", "number", "meaning")
    yield _row(*["---"] * 3)
    for value, comment in enum.values:
        yield _row(f"`{enum.short(value)}`", str(value.number), comment)


def reasons_page(contract: Contract) -> str:
    lines = [_HEAD + "# Reasons and codes", ""]
    enums = {enum.name: enum for enum in contract.enums()}
    for name, title in _CODES.items():
        enum = enums[name]
        lines += [f"## {title}", "", enum.comment, ""]
        lines += [*list(_enum_section(enum))[4:], ""]
    return "\n".join(lines).rstrip() + "\n"


def pages(contract: Contract) -> dict[str, str]:
    return {"rpc.md": rpc_page(contract), "reasons.md": reasons_page(contract)}


def stale_pages() -> list[str]:
    """Return the committed pages that differ from freshly rendered ones."""
    return [
        name
        for name, text in pages(Contract.compile()).items()
        if not (TARGET / name).exists() or (TARGET / name).read_text() != text
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the pages are not fresh")
    if parser.parse_args().check:
        stale = stale_pages()
        for name in stale:
            print(f"not fresh: docs/reference/{name}", file=sys.stderr)
        return 1 if stale else 0
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, text in pages(Contract.compile()).items():
        (TARGET / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
