"""Checks rendered manifests against the schemas that API servers publish, strictly.

    k8s_validate.py FIXTURES check FILE          every object of FILE; prints "FILE: KIND/NAME: PATH: what"
    k8s_validate.py FIXTURES seed FILE           every key of FILE misspelt, one at a time: each must be
                                                 an error; prints those that passed
    k8s_validate.py FIXTURES rules FILE          what no schema knows: names that nothing answers to,
                                                 counts that differ, containers that may do too much

FIXTURES holds openapi/*.json (Kubernetes' own kinds) and crd/*/*.yaml. An unknown field is an error
where a server would drop it without a word. Exit status 1 when anything was printed, 3 when a Python
package is missing.
"""

import copy
import glob
import json
import os
import re
import sys

try:
    import jsonschema
    import yaml
except ImportError as e:
    print(e)
    sys.exit(3)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Kinds of Kubernetes that the trimmed OpenAPI file leaves out, by hand; LabelSelector is from there.
OWN_KINDS = {
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "podSelector": "LabelSelector",
        "policyTypes": {"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
        "ingress": "from",
        "egress": "to",
    }
}
SELECTOR = "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"
META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def ref(name):
    return {"$ref": "#/components/schemas/" + name}


def strict(schema):
    """A JSON schema of an OpenAPI v3 schema: fields that it does not name are errors."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    out = {k: v for k, v in schema.items() if k in ("type", "enum", "pattern", "required", "format")}
    for limit in ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties"):
        if limit in schema:
            out[limit] = schema[limit]
    if "items" in schema:
        out["items"] = strict(schema["items"])
    # OpenAPI 3.0 wraps a reference that has a default: {"allOf": [{"$ref": ...}]}. In other places
    # these words only narrow what `properties` names, so nothing inside may be closed.
    if list(schema.get("allOf", [])) and "properties" not in schema:
        out["allOf"] = strict(schema["allOf"])
    if schema.get("type") == "object" or "properties" in schema:
        more = schema.get("additionalProperties", False)
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            more = True
        out["properties"] = {k: strict(v) for k, v in schema.get("properties", {}).items()}
        out["additionalProperties"] = strict(more)
    if schema.get("nullable") and "type" in out:
        out["type"] = [out["type"], "null"]
        if "enum" in out:
            out["enum"] = out["enum"] + [None]
    return out


class Schemas:
    def __init__(self, folder):
        self.folder = folder
        self.components = {}
        self.kinds = {}  # (apiVersion, kind): schema
        for path in glob.glob(os.path.join(folder, "openapi", "*.json")):
            with open(path, encoding="utf-8") as f:
                self.add_openapi(json.load(f)["components"]["schemas"])
        self.fix_components()
        for kind, fields in OWN_KINDS.items():
            self.kinds[kind] = self.by_hand(fields)

    def add_openapi(self, schemas):
        for name, schema in schemas.items():
            self.components[name] = strict(schema)
            for kind in schema.get("x-kubernetes-group-version-kind", []):
                group = kind["group"] + "/" if kind["group"] else ""
                self.kinds[(group + kind["version"], kind["kind"])] = ref(name)

    def fix_components(self):
        for name in self.components:
            if name.endswith(".Quantity"):
                self.components[name] = {
                    "type": ["string", "number"],
                    "pattern": r"^[+-]?[0-9]+(\.[0-9]*)?([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
                }
            elif name.endswith(".Time"):
                self.components[name] = {"type": ["string", "null"]}

    def by_hand(self, fields):
        port = {"protocol": {"enum": ["TCP", "UDP", "SCTP"]}, "port": {"type": ["integer", "string"]}}
        port["endPort"] = {"type": "integer"}
        peer = {"podSelector": ref(SELECTOR), "namespaceSelector": ref(SELECTOR)}
        peer["ipBlock"] = {"type": "object"}

        def closed(properties):
            return {"type": "object", "properties": properties, "additionalProperties": False}

        def rules(word):
            rule = {"ports": {"type": "array", "items": closed(port)}}
            rule[word] = {"type": "array", "items": closed(peer)}
            return {"type": "array", "items": closed(rule)}

        spec = {}
        for name, what in fields.items():
            spec[name] = ref(SELECTOR) if what == "LabelSelector" else what if isinstance(what, dict) else rules(what)
        top = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
        return closed(dict(top, metadata=ref(META), spec=closed(spec)))

    def add_crds(self, kind):
        """Reads the definitions of a kind; whole files are only parsed where its name stands."""
        for path in glob.glob(os.path.join(self.folder, "crd", "*", "*.yaml")):
            with open(path, encoding="utf-8") as f:
                text = f.read()
            if not re.search(r"^ +kind: %s$" % re.escape(kind), text, re.M):
                continue
            for crd in yaml.load_all(text, LOADER):
                if not crd or crd.get("kind") != "CustomResourceDefinition":
                    continue
                names = crd["spec"]["names"]
                for version in crd["spec"]["versions"]:
                    schema = strict(version["schema"]["openAPIV3Schema"])
                    schema["properties"]["metadata"] = ref(META)
                    self.kinds[(crd["spec"]["group"] + "/" + version["name"], names["kind"])] = schema

    def validator(self, doc):
        key = (doc.get("apiVersion"), doc.get("kind"))
        if key not in self.kinds:
            self.add_crds(doc.get("kind", ""))
        if key not in self.kinds:
            return None
        schema = {"allOf": [self.kinds[key]], "components": {"schemas": self.components}}
        return jsonschema.Draft7Validator(schema)


def name_of(doc):
    return "%s/%s" % (doc.get("kind"), doc.get("metadata", {}).get("name"))


def check(schemas, docs):
    for doc in docs:
        validator = schemas.validator(doc)
        if validator is None:
            yield "%s: no schema for %s" % (name_of(doc), doc.get("apiVersion"))
            continue
        for e in validator.iter_errors(doc):
            yield "%s: %s: %s" % (name_of(doc), ".".join(map(str, e.absolute_path)), e.message[:200])


# ---- seeded mistakes -----------------------------------------------------------------------------

# Maps whose keys are anybody's.
FREE = {"labels", "annotations", "matchLabels", "data", "limits", "requests", "nodeSelector"}


def keys_of(node, path=()):
    if isinstance(node, dict):
        for key, value in node.items():
            yield path + (key,)
            yield from keys_of(value, path + (key,))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from keys_of(value, path + (i,))


def is_free(doc, path):
    parent = path[-2] if len(path) > 1 else None
    return parent in FREE or (doc["kind"] == "Service" and parent == "selector")


def misspelt(doc, path):
    out = copy.deepcopy(doc)
    node = out
    for step in path[:-1]:
        node = node[step]
    node[path[-1] + "x"] = node.pop(path[-1])
    return out


def seed(schemas, docs):
    tried = 0
    for doc in docs:
        validator = schemas.validator(doc)
        for path in keys_of(doc):
            if is_free(doc, path) or path in (("apiVersion",), ("kind",)):
                continue
            tried += 1
            if validator.is_valid(misspelt(doc, path)):
                yield "%s: '%s' passed with an x behind it" % (name_of(doc), ".".join(map(str, path)))
    if tried < 50:
        yield "only %d keys were there to misspell" % tried


# ---- rules ---------------------------------------------------------------------------------------


def pod_specs(node, labels=None, path=()):
    """(labels, spec, path) of whatever holds containers; the labels are its template's."""
    if isinstance(node, dict):
        if isinstance(node.get("containers"), list):
            yield labels or {}, node, path
        for key, value in node.items():
            if key != "containers":
                given = node.get("metadata", {}).get("labels") if key == "spec" else None
                yield from pod_specs(value, given, path + (key,))


def container_rules(pod, container, runtime):
    both = dict(pod.get("securityContext", {}), **container.get("securityContext", {}))
    wanted = {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    for key, value in wanted.items():
        if both.get(key) is not value:
            yield "securityContext.%s is %r, want %r" % (key, both.get(key), value)
    if both.get("capabilities", {}).get("drop") != ["ALL"] or both.get("capabilities", {}).get("add"):
        yield "keeps capabilities"
    if both.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if not both.get("runAsUser"):
        yield "no user"
    for kind in ("requests", "limits"):
        if "memory" not in container.get("resources", {}).get(kind, {}):
            yield "no %s of memory" % kind
    volumes = {v["name"]: v for v in pod.get("volumes", [])}
    mounts = {m["mountPath"]: m["name"] for m in container.get("volumeMounts", [])}
    for path, name in mounts.items():
        if name not in volumes:
            yield "mounts '%s', which is no volume" % name
    shm = volumes.get(mounts.get("/dev/shm"), {}).get("emptyDir", {})
    if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
        yield "/dev/shm is no memory with a size"
    if not runtime and not pod.get("automountServiceAccountToken") is False:
        yield "has a token for the API server"
    for key, value in volumes.items():
        if "secret" in value and value["secret"].get("defaultMode") != 0o440:
            yield "the secret '%s' is not 0440" % key


def role_rules(pod, container, worker):
    probes = [p for p in ("startupProbe", "livenessProbe", "readinessProbe") if p in container]
    if worker and probes:
        yield "a worker has %s" % ", ".join(probes)
    if not worker:
        for probe, word in (("startup", "--startup"), ("liveness", "--live"), ("readiness", "--ready")):
            command = container.get(probe + "Probe", {}).get("exec", {}).get("command", [])
            if command[:3] != ["superpod", "probe", word]:
                yield "the %s probe is %s" % (probe, command)


def refer_rules(docs, by_kind):
    maps = {d["metadata"]["name"] for d in by_kind.get("ConfigMap", [])}
    claims = {d["metadata"]["name"] for d in by_kind.get("PersistentVolumeClaim", [])}
    for doc in docs:
        for _, pod, _ in pod_specs(doc):
            for volume in pod.get("volumes", []):
                config = volume.get("configMap", {}).get("name")
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                if config and config not in maps:
                    yield "%s: no ConfigMap '%s'" % (name_of(doc), config)
                if claim and claim not in claims:
                    yield "%s: no claim '%s'" % (name_of(doc), claim)
    for doc in by_kind.get("InferenceService", []):
        claim = doc["spec"]["predictor"]["model"]["storageUri"].split("/")[2]
        if claim not in claims:
            yield "%s: no claim '%s'" % (name_of(doc), claim)
    if by_kind.get("Secret"):
        yield "a Secret is in the manifests"


def service_rules(docs, by_kind):
    pods = [(labels, pod) for d in docs for labels, pod, _ in pod_specs(d) if labels]
    for service in by_kind.get("Service", []):
        want = service["spec"]["selector"].items()
        hit = [pod for labels, pod in pods if want <= labels.items()]
        if len(hit) != 1:
            yield "%s: selects %d templates, want 1" % (name_of(service), len(hit))
            continue
        ports = {p["name"]: p["containerPort"] for c in hit[0]["containers"] for p in c.get("ports", [])}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield "%s: no port '%s'" % (name_of(service), port["targetPort"])
            headless = service["spec"].get("clusterIP") == "None"
            if headless and ports.get(port["targetPort"]) != port["port"]:
                yield "%s: port %d is not the container's" % (name_of(service), port["port"])


def count_rules(by_kind):
    """Nodes, ranks and ports that two files say must agree."""
    for config_map in by_kind.get("ConfigMap", []):
        config = yaml.load(config_map["data"]["config.yaml"], LOADER)
        workers = [d for d in by_kind.get("Deployment", []) if d["metadata"]["name"].endswith("-worker")]
        for doc in workers:
            if config.get("nnodes") != 1 + doc["spec"]["replicas"]:
                yield "nnodes is %r, want the head and %d workers" % (config.get("nnodes"), doc["spec"]["replicas"])
        nodes = config.get("nnodes")
        for doc in by_kind.get("LeaderWorkerSet", []):
            nodes = doc["spec"]["leaderWorkerTemplate"]["size"]
            for key in ("role", "nnodes", "head", "rank"):
                if key in config:
                    yield "'%s' in the configuration hides the variables LWS_*" % key
        ranks = config["tensor-parallel-size"] * config["pipeline-parallel-size"]
        if ranks % nodes:
            yield "%d ranks on %d nodes" % (ranks, nodes)
    for doc in by_kind.get("Deployment", []):
        if doc["spec"]["strategy"]["type"] != "Recreate":
            yield "%s: two at a time" % name_of(doc)
    for doc in by_kind.get("LeaderWorkerSet", []):
        if doc["spec"]["leaderWorkerTemplate"]["restartPolicy"] != "None":
            yield "%s: one pod that ends restarts them all" % name_of(doc)


def rules(docs):
    by_kind = {}
    for doc in docs:
        by_kind.setdefault(doc["kind"], []).append(doc)
    for doc in docs:
        runtime = doc["kind"] == "ClusterServingRuntime"
        for labels, pod, path in pod_specs(doc):
            worker = "workerSpec" in path or labels.get("app.kubernetes.io/component") == "worker"
            for container in pod["containers"]:
                found = list(container_rules(pod, container, runtime)) + list(role_rules(pod, container, worker))
                for what in found:
                    yield "%s: %s: %s" % (name_of(doc), container["name"], what)
    yield from refer_rules(docs, by_kind)
    yield from service_rules(docs, by_kind)
    yield from count_rules(by_kind)


def main(argv):
    if len(argv) != 4 or argv[2] not in ("check", "seed", "rules"):
        print(__doc__)
        return 2
    schemas = Schemas(argv[1])
    with open(argv[3], encoding="utf-8") as f:
        docs = [d for d in yaml.load_all(f, LOADER) if d]
    found = list({"check": lambda: check(schemas, docs), "seed": lambda: seed(schemas, docs),
                  "rules": lambda: rules(docs)}[argv[2]]())
    if not docs:
        found.append("no objects")
    for what in found:
        print("%s: %s" % (argv[3], what))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
