"""All policies together: read from files and directories, and asked of one call.

Istio, Linkerd and NetworkPolicy are layers of one way out: a call is allowed where none of those that apply forbids it and one allows it.
What our own TOML lists is allowed whatever the layers say: it is a person's word. Where no layer says anything of a call, the
TOML's list decides, if there is one.
"""

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from collector.errors import ConfigError
from collector.policy import istio, linkerd, networkpolicy
from collector.policy.calls import NO_LABELS, Call, Verdict, Workload
from collector.policy.documents import SUFFIXES, Document, read_documents
from collector.policy.istio import Istio
from collector.policy.linkerd import Linkerd
from collector.policy.listed import EgressPolicy, read_policy
from collector.policy.networkpolicy import NetworkPolicies

NOT_GIVEN: Final = EgressPolicy(is_given=False)

_TEMPLATES: Final = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "Pod": (),
}
"""Kinds that make pods, and where their pods' metadata stands."""

_SILENT_KINDS: Final = frozenset({"Namespace", *_TEMPLATES})


@dataclass(frozen=True, slots=True)
class Policies:
    """What was read.

    Attributes:
        listed: Our own list; `is_given` False where there is none.
        istio: ServiceEntry, Sidecar and MeshConfig.
        linkerd: EgressNetwork and its routes.
        network_policies: Kubernetes' own.
        workloads: Namespace and labels of workloads whose Deployment (StatefulSet, …) was read too, by name.
        notes: What was passed over.
    """

    listed: EgressPolicy = NOT_GIVEN
    istio: Istio = field(default_factory=Istio)
    linkerd: Linkerd = field(default_factory=Linkerd)
    network_policies: NetworkPolicies = field(default_factory=NetworkPolicies)
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether anything can be judged by it."""
        return any(part.is_given for part in (self.listed, self.istio, self.linkerd, self.network_policies))

    @property
    def internal(self) -> tuple[str, ...]:
        """What the list says is no egress at all."""
        return self.listed.internal

    def workload(self, name: str, namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Workload:
        """The workload of this name, with what was read of it where nothing better is known."""
        read = self.workloads.get(name, Workload(name))
        return Workload(name, namespace or read.namespace, labels if labels is not None else read.labels)

    def judge(self, call: Call) -> Verdict | None:
        """Whether the call is allowed, and by what; None: nothing says anything of it."""
        rule = self.listed.rule_for(call.workload.name, call.host, call.port)
        if rule is not None:
            return Verdict(allowed=True, rule=f"egress.allow: {rule}")
        verdicts = [v for v in (layer.judge(call) for layer in self._layers) if v is not None]
        refusing = [v.against for v in verdicts if not v.allowed]
        if refusing:
            return Verdict(allowed=False, against="; ".join(refusing))
        if verdicts:
            return Verdict(allowed=True, rule="; ".join(v.rule for v in verdicts))
        if self.listed.is_given:
            return Verdict(allowed=False, against=f"egress.allow has no entry for {call.destination}")
        return None

    @property
    def _layers(self) -> tuple[Istio, Linkerd, NetworkPolicies]:
        return self.istio, self.linkerd, self.network_policies


def read_policies(paths: Iterable[Path]) -> Policies:
    """Everything in these files and directories; raises ConfigError naming file, document and field."""
    listed: list[EgressPolicy] = []
    documents: list[Document] = []
    for path in paths:
        found = _files_in(path) if path.is_dir() else [path]
        if not found:
            raise ConfigError(
                f"{path}: no policy in there: expected files {', '.join(('*.toml', *('*' + s for s in SUFFIXES)))}"
            )
        for file in found:
            if file.suffix == ".toml":
                listed.append(read_policy(file))
            else:
                documents += read_documents(file)
    return policies_of(documents, listed)


def policies_of(documents: Sequence[Document], listed: Sequence[EgressPolicy] = ()) -> Policies:
    """What documents and lists say together; raises ConfigError."""
    given = [policy for policy in listed if policy.is_given]
    own = EgressPolicy(
        tuple(rule for policy in listed for rule in policy.rules),
        is_given=bool(given),
        internal=tuple(entry for policy in listed for entry in policy.internal),
    )
    return Policies(
        listed=own,
        istio=istio.read_istio(documents),
        linkerd=linkerd.read_linkerd(documents),
        network_policies=networkpolicy.read_network_policies(documents),
        workloads=_workloads(documents),
        notes=tuple(_notes(documents)),
    )


def listed_alone(policy: EgressPolicy) -> Policies:
    """Our own list, and nothing else."""
    return Policies(listed=policy)


def _files_in(directory: Path) -> list[Path]:
    """Policies below a directory, hidden ones left out; of TOML only what has a table [egress]: others' files live there too."""
    shown = (
        p for p in sorted(directory.rglob("*")) if not any(s.startswith(".") for s in p.relative_to(directory).parts)
    )
    return [p for p in shown if p.is_file() and (p.suffix in SUFFIXES or (p.suffix == ".toml" and _has_egress(p)))]


def _has_egress(path: Path) -> bool:
    try:
        return "egress" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return True  # read_policy says what is wrong with it


def _workloads(documents: Sequence[Document]) -> dict[str, Workload]:
    found: dict[str, Workload] = {}
    for document in documents:
        if document.kind not in _TEMPLATES or not document.name:
            continue
        template = document.body
        for key in _TEMPLATES[document.kind]:
            template = template[key]
        labels = {k: str(v) for k, v in template["metadata"]["labels"].mapping().items()} or NO_LABELS
        workload = Workload(document.name, document.namespace, labels)
        twin = found.get(document.name)
        if twin is not None and twin != workload:  # the same name in two namespaces: which one calls is not known
            workload = Workload(document.name)
        found[document.name] = workload
    return found


def _notes(documents: Sequence[Document]) -> Iterable[str]:
    readers = (istio.concerns, linkerd.concerns, networkpolicy.concerns)
    unread = Counter(
        d.kind or "no kind" for d in documents if d.kind not in _SILENT_KINDS and not any(reads(d) for reads in readers)
    )
    for kind, count in sorted(unread.items()):
        yield f"{count} document{'' if count == 1 else 's'} of {kind} say nothing of egress that is read here"
