"""Who may import whom, and which modules own the heavy libraries, by reading every module of ours."""

import ast
import sys
from fnmatch import fnmatch

import pytest

from .structure import PACKAGES, ROOT, imports, shipped

SHIPPED = shipped(ROOT)

MAY_IMPORT = {
    "zrelay": {"zrelay"},
    "zrelay_shared": {"zrelay_shared", "zrelay"},
    "zrelay_encoder": {"zrelay_encoder", "zrelay_shared", "zrelay"},
    "zrelay_vision": {"zrelay_vision", "zrelay_shared", "zrelay"},
    "zrelay_generator": {"zrelay_generator", "zrelay_shared", "zrelay"},
    "zrelay_client": {"zrelay_client", "zrelay_shared", "zrelay"},
    "zrelay_demo": set(PACKAGES),
}

GENERATOR_LAYERS = {
    # sub-package of the generator: the ones it may import; what stands above them wires them together
    "images": set(),
    "store": set(),
    "cost": set(),
    "model": {"cost"},
    "features": {"model", "images", "cost"},
    "engine": {"features", "model", "images", "cost"},
    "scheduling": {"engine", "features", "model", "images", "store", "cost"},
    "jobs": {"scheduling", "engine", "features", "model", "images", "store", "cost"},
    "api": {"jobs", "scheduling", "engine", "features", "model", "images", "store", "cost"},
}

ENCODER_LAYERS = {
    # sub-package or module of the encoder: the ones it may import
    "model": set(),
    "prompts": set(),
    "embedding": {"model"},
    "runtime": {"embedding", "model", "prompts"},
    "api": {"runtime", "prompts"},
}

VISION_LAYERS = {
    # likewise of the vision service
    "engines": set(),
    "images": set(),
    "qwen3_vl": {"engines", "images", "processor_settings"},
    "processor_settings": set(),
    "siglip": {"engines", "images", "processor_settings"},
    "conditioning": {"qwen3_vl"},
    "runtime": {"conditioning", "siglip", "qwen3_vl", "engines", "images"},
    "operations": {"runtime", "conditioning", "siglip", "qwen3_vl", "engines", "images"},
    "api": {"operations", "runtime", "conditioning", "siglip", "qwen3_vl", "engines", "images"},
}

CLIENT_LAYERS = {
    # likewise of the client's private folders; the public modules beside them wire them together
    "_transport": set(),
    "_wire": set(),
    "_pool": {"_wire", "_transport"},
    "_vision": {"_wire", "_transport"},
    "_jobs": {"_pool", "_wire", "_transport"},
}

PROCESS = {"__main__", "config", "settings", "worker"}
"""Modules of every service that are not ordered: the command, the settings, the device thread."""

MESSAGE_MODULES = (
    # modules that may see messages: the tensor codec, servicers with their parsing and replies, stubs
    "zrelay_shared.wire",
    "zrelay_shared.service.info",  # common parts of GetInfo
    "zrelay_shared.service.pairing",  # the two sides of pairing
    "zrelay_shared.security.joining",
    "zrelay_shared.tensors",
    "zrelay_shared.torch_tensors",
    "zrelay_shared.fingerprint",
    "zrelay_shared.embeds_file",
    "zrelay_shared.vision_file",
    "zrelay_shared.vision_fingerprint",
    "zrelay_shared.reference_file",
    "zrelay_shared.statistics",
    "zrelay_encoder.api.servicer",
    "zrelay_encoder.api.requests",
    "zrelay_encoder.api.capabilities",
    "zrelay_vision.api.servicer",
    "zrelay_vision.api.handlers",
    "zrelay_vision.api.requests",
    "zrelay_vision.api.capabilities",
    "zrelay_generator.api.servicer",
    "zrelay_generator.service",
    "zrelay_generator.api.contents",
    "zrelay_generator.api.replies",
    "zrelay_generator.api.requests",
    "zrelay_generator.features.request",
    "zrelay_generator.features.omni.spec",
    "zrelay_client._wire.arrays",
    "zrelay_client._pool.encoders",
    "zrelay_client._pool.generators",
    "zrelay_client._vision.calls",
    "zrelay_client._wire.replies",
    "zrelay_client._wire.requests",
    "zrelay_client._wire.vision",
    # the fake services, which are servicers too
    "zrelay_client.testing.service",
    "zrelay_client.testing.encoder",
    "zrelay_client.testing.vision",
    "zrelay_client.testing.specs",
    "zrelay_client.testing.results",
    "zrelay_client.testing.generator",
)

OWNERS = {
    # library: the modules that may import it ("*" is any); what is not named here nobody may import
    "torch": (
        "zrelay_shared.torch_tensors",
        "zrelay_shared.torch_devices",
        "zrelay_shared.torch_linear",
        "zrelay_shared.torch_weights",
        "zrelay_shared.service.torch_memory",
        "zrelay_encoder.*",
        "zrelay_vision.*",
        "zrelay_generator.*",
        "zrelay_demo.*",
        "zrelay_client.embeds",  # for type checkers
        "zrelay_client._wire.arrays",  # within functions
    ),
    "numpy": (
        "zrelay_shared.statistics",
        "zrelay_client._wire.arrays",
        "zrelay_generator.cost.fit",
        "zrelay_generator.images.writing",
        "zrelay_generator.model.preview",
        "zrelay_vision.*",
        "zrelay_demo.*",
    ),
    "transformers": (
        "zrelay_shared.tokenizer",  # within a function; encoder, vision service and generator load the same tokenizer
        "zrelay_encoder.model.encoder",
        "zrelay_encoder.model.network",
        "zrelay_encoder.prompts.formatting",
        "zrelay_vision.qwen3_vl.model",
        "zrelay_vision.qwen3_vl.inputs",
        "zrelay_vision.siglip.model",
        "zrelay_vision.siglip.preprocessing",
        "zrelay_demo.*",
    ),
    "tokenizers": ("zrelay_demo.*",),
    "jinja2": ("zrelay_shared.tokenizer",),  # within a function
    "diffusers": ("zrelay_generator.model.loading", "zrelay_demo.*"),
    "accelerate": ("zrelay_generator.model.loading",),
    "PIL": ("zrelay_shared.pictures", "zrelay_generator.images.writing", "zrelay_demo.*"),
    "safetensors": ("zrelay_demo.*",),
    "flash_attn": ("zrelay_generator.model.attention",),
    "rich": ("zrelay_client.cli._output",),
    "click": ("zrelay_shared.service.command", "zrelay_shared.service.options", "zrelay_client.cli.*"),
    "cryptography": ("zrelay_shared.security.certificates",),
    "spake2": ("zrelay_shared.security.key_exchange",),
    "segno": ("zrelay_client.cli.pair",),
    "grpc": (
        "zrelay_shared.callers",
        "zrelay_shared.calls",
        "zrelay_shared.channels",
        "zrelay_shared.healthcheck",
        "zrelay_shared.rpc",
        "zrelay_shared.service.authentication",
        "zrelay_shared.service.grpc_server",
        "zrelay_shared.service.health",
        "zrelay_shared.service.lifecycle",
        "zrelay_shared.service.pairing",
        "zrelay_shared.service.reflection",
        "zrelay_shared.service.tls",
        "zrelay_shared.security.joining",
        "zrelay_shared.status",
        "zrelay_generator.api.replies",
        "zrelay_client._transport.endpoint",
        "zrelay_client._transport.handshake",
        "zrelay_client._transport.stub",
        "zrelay_client.testing.*",
    ),
    "grpc_health": (
        "zrelay_shared.service.health",
        "zrelay_shared.healthcheck",
        "zrelay_client._transport.stub",
        "zrelay_client.testing.service",
    ),
    "psutil": ("zrelay_client.stack.processes", "zrelay_shared.host_memory"),
    "filelock": (
        "zrelay_client.profiles",
        "zrelay_client.stack.record",
        "zrelay_generator.store.opening",
        "zrelay_shared.security.installation",
    ),
    "grpc_reflection": ("zrelay_shared.service.reflection",),
    "google": (
        "zrelay_shared.*",
        "zrelay_*.service",
        "zrelay_*.api.servicer",
        "zrelay_generator.api.contents",
        "zrelay_generator.api.servicer",
        "zrelay_client._transport.stub",
        "zrelay_client.testing.*",
    ),
    "crc32c": ("zrelay_shared.tensors",),
}

READS_ENVIRONMENT = (
    "zrelay_shared",  # before gRPC is loaded
    "zrelay_shared.paths",
    "zrelay_shared.config",
    "zrelay_shared.service.command",
    "zrelay_shared.service.lifecycle",  # systemd's sockets
    "zrelay_client.settings",
    "zrelay_client.stack.memory",  # the settings of services that it starts
    "zrelay_client.stack.interpreter",  # what processes that it starts inherit
)

NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "torch.load", "numpy.load"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__"}


TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in SHIPPED.items()}
IMPORTS = {
    name: sorted(set(imports(tree, name, is_package=SHIPPED[name].name == "__init__.py")))
    for name, tree in TREES.items()
}


def allowed(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(module, pattern) for pattern in patterns)


def test_every_package_is_looked_at() -> None:
    assert {name.partition(".")[0] for name in SHIPPED} == set(PACKAGES)
    assert len(SHIPPED) > 60


@pytest.mark.parametrize("package", PACKAGES)
def test_who_may_import_whom(package: str) -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in IMPORTS.items()
        for imported in all_imported
        if module.partition(".")[0] == package
        and imported.partition(".")[0] in PACKAGES
        and imported.partition(".")[0] not in MAY_IMPORT[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("layer", GENERATOR_LAYERS)
def test_layers_of_the_generator(layer: str) -> None:
    above = {"service", "runtime", "__main__"}
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in IMPORTS.items()
        for imported in all_imported
        if module.startswith(f"zrelay_generator.{layer}.")
        and imported.startswith("zrelay_generator.")
        and imported.split(".")[1] in (GENERATOR_LAYERS.keys() | above) - GENERATOR_LAYERS[layer] - {layer}
    ]
    assert wrong == []


@pytest.mark.parametrize(("package", "layers"), [("zrelay_encoder", ENCODER_LAYERS), ("zrelay_vision", VISION_LAYERS)])
def test_layers_of_the_encoder_and_the_vision_service(package: str, layers: dict[str, set[str]]) -> None:
    parts = {name.split(".")[1] for name in SHIPPED if name.startswith(f"{package}.")}
    assert parts - PROCESS == set(layers), "name the sub-package or module in the table"
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in IMPORTS.items()
        for imported in all_imported
        if module.startswith(f"{package}.")
        and imported.startswith(f"{package}.")
        and (part := module.split(".")[1]) not in PROCESS
        and imported.split(".")[1] in layers.keys() - layers[part] - {part}
    ]
    assert wrong == []


@pytest.mark.parametrize("layer", CLIENT_LAYERS)
def test_layers_of_the_client(layer: str) -> None:
    others = CLIENT_LAYERS.keys() | {"cli", "client", "sync", "doctor", "testing"}
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in IMPORTS.items()
        for imported in all_imported
        if module.startswith(f"zrelay_client.{layer}.")
        and imported.startswith("zrelay_client.")
        and imported.split(".")[1] in others - CLIENT_LAYERS[layer] - {layer}
    ]
    assert wrong == []


def test_one_place_of_the_client_opens_channels() -> None:
    """TLS and credentials are then fields of Endpoint."""
    opening = {
        module
        for module, found in IMPORTS.items()
        if module.startswith("zrelay_client")
        and not module.startswith("zrelay_client.testing.")  # it serves
        and any(name.startswith("zrelay_shared.channels") for name in found)
    }
    assert opening == {"zrelay_client._transport.endpoint"}


def test_the_client_stays_without_torch() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in IMPORTS.items()
        for imported in all_imported
        if module.startswith("zrelay_client")
        and module != "zrelay_client._wire.arrays"
        and imported.startswith("zrelay_shared.torch_")
    ]
    assert wrong == []


def test_only_generator_and_vision_service_decode_pictures() -> None:
    users = {
        module.partition(".")[0]
        for module, found in IMPORTS.items()
        if any(name.startswith("zrelay_shared.pictures") for name in found)
    }
    assert users == {"zrelay_generator", "zrelay_vision"}


def test_statistics_are_used_for_calibration_and_analysis_alone() -> None:
    users = {module for module, found in IMPORTS.items() if any("zrelay_shared.statistics" in name for name in found)}
    assert users == {"zrelay_client.calibration", "zrelay_client.analysis"}


def test_messages_are_seen_at_the_border_alone() -> None:
    seeing = {
        module for module, found in IMPORTS.items() if any("_pb2" in name and "zrelay.v1" in name for name in found)
    }
    assert seeing - set(MESSAGE_MODULES) == set(), (
        "not a border module: pass values, or name it in MESSAGE_MODULES and say why"
    )
    assert {module for module in MESSAGE_MODULES if module in SHIPPED} <= seeing


@pytest.mark.parametrize("library", OWNERS)
def test_who_owns_a_library(library: str) -> None:
    wrong = [
        module
        for module, found in IMPORTS.items()
        if any(name.partition(".")[0] == library for name in found) and not allowed(module, OWNERS[library])
    ]
    assert wrong == []


def test_no_library_without_an_owner() -> None:
    ours = set(PACKAGES) | set(OWNERS) | set(sys.stdlib_module_names)
    unknown = {name.partition(".")[0] for found in IMPORTS.values() for name in found} - ours
    assert unknown == set(), "name its owners in OWNERS, and it in pyproject.toml"


def test_the_environment_is_read_in_few_places() -> None:
    readers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {a.name for a in node.names} & {"environ", "getenv"}
        )
    }
    assert {name for name in readers if not name.startswith("zrelay_demo")} - set(READS_ENVIRONMENT) == set()


def test_nothing_unpickles_or_evaluates() -> None:
    found = []
    for module, tree in TREES.items():
        found += [f"{module}: {name}" for name in IMPORTS[module] if name in NEVER or name.partition(".")[0] in NEVER]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if name in NEVER_CALLED | NEVER or keywords.get("allow_pickle") == "True":
                    found.append(f"{module}:{node.lineno}: {name}")
                if keywords.get("trust_remote_code") == "True" or keywords.get("shell") == "True":
                    found.append(f"{module}:{node.lineno}: {name} runs code")
                if keywords.get("use_safetensors") == "False":
                    found.append(f"{module}:{node.lineno}: {name} opens pickles")
    assert found == []


def test_no_bare_except_and_no_star_import() -> None:
    found = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.ExceptHandler) and node.type is None)
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names))
    ]
    assert found == []
