"""Who may import whom, and which modules own the heavy libraries, by reading every module of ours."""

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "zrelay": "proto",
    "zrelay_shared": "shared",
    "zrelay_encoder": "encoder_service",
    "zrelay_vision": "vision_service",
    "zrelay_generator": "generator_service",
    "zrelay_client": "client",
    "zrelay_demo": "demo",
}
SHIPPED = {
    ".".join(path.relative_to(ROOT / folder).with_suffix("").parts).removesuffix(".__init__"): path
    for package, folder in PACKAGES.items()
    for path in sorted((ROOT / folder / package).rglob("*.py"))
    if "_pb2" not in path.name
}

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

BORDER = (
    # modules that may see messages: the tensor codec, servicers with their parsing and replies, stubs
    "zrelay_shared.wire",
    "zrelay_shared.service.info",  # common parts of GetInfo
    "zrelay_shared.tensors",
    "zrelay_shared.torch_tensors",
    "zrelay_shared.fingerprint",
    "zrelay_shared.embeds_file",
    "zrelay_shared.vision_file",
    "zrelay_shared.vision_fingerprint",
    "zrelay_shared.reference_file",
    "zrelay_encoder.service",
    "zrelay_encoder.parsing",
    "zrelay_vision.service",
    "zrelay_vision.handlers",
    "zrelay_vision.parsing",
    "zrelay_vision.parsing_conditioning",
    "zrelay_vision.messages",
    "zrelay_generator.api.servicer",
    "zrelay_generator.api.parsing",
    "zrelay_generator.api.parsing_sampling",
    "zrelay_generator.api.parsing_features",
    "zrelay_generator.features.omni.request",
    "zrelay_generator.api.messages",
    "zrelay_generator.api.contents",
    "zrelay_generator.api.requests",
    "zrelay_generator.api.uploads",
    "zrelay_generator.api.info",
    "zrelay_client._services",
    "zrelay_client._generator_service",
    "zrelay_client._requests",
    "zrelay_client._replies",
    "zrelay_client._info_replies",
    "zrelay_client._vision_messages",
)

OWNERS = {
    # library: the modules that may import it ("*" is any); what is not named here nobody may import
    "torch": (
        "zrelay_shared.torch_tensors",
        "zrelay_shared.torch_devices",
        "zrelay_shared.torch_weights",
        "zrelay_encoder.*",
        "zrelay_vision.*",
        "zrelay_generator.*",
        "zrelay_demo.*",
    ),
    "numpy": (
        "zrelay_generator.images.writing",
        "zrelay_generator.model.preview",
        "zrelay_vision.*",
        "zrelay_demo.*",
    ),
    "transformers": (
        "zrelay_encoder.encoder",
        "zrelay_encoder.loading",
        "zrelay_encoder.model",
        "zrelay_encoder.template",
        "zrelay_encoder.tokens",
        "zrelay_vision.qwen_loading",
        "zrelay_vision.qwen_model",
        "zrelay_vision.qwen_pixels",
        "zrelay_vision.qwen_prompt",
        "zrelay_vision.siglip_model",
        "zrelay_vision.siglip_pixels",
        "zrelay_demo.*",
    ),
    "tokenizers": ("zrelay_demo.*",),
    "diffusers": ("zrelay_generator.model.loading", "zrelay_demo.*"),
    "accelerate": ("zrelay_generator.model.loading",),
    "PIL": (
        "zrelay_generator.images.writing",
        "zrelay_generator.images.reading",
        "zrelay_generator.features.omni.images",
        "zrelay_vision.*",
        "zrelay_demo.*",
    ),
    "safetensors": ("zrelay_encoder.*", "zrelay_generator.*", "zrelay_demo.*"),
    "flash_attn": ("zrelay_generator.model.attention",),
    "click": ("zrelay_shared.service.command", "zrelay_client.cli.*"),
    "grpc": (
        "zrelay_shared.channels",
        "zrelay_shared.healthcheck",
        "zrelay_shared.rpc",
        "zrelay_shared.service.lifecycle",
        "zrelay_shared.status",
        "zrelay_generator.api.messages",
        "zrelay_client._services",
        "zrelay_client._health",
    ),
    "grpc_health": ("zrelay_shared.service.lifecycle", "zrelay_shared.healthcheck", "zrelay_client._health"),
    "psutil": ("zrelay_client._stack.processes",),
    "filelock": ("zrelay_client._stack.record",),
    "grpc_reflection": ("zrelay_shared.service.lifecycle",),
    "google": (
        "zrelay_shared.*",
        "zrelay_*.service",
        "zrelay_generator.api.contents",
        "zrelay_client._services",
        "zrelay_client._enums",
    ),
    "crc32c": ("zrelay_shared.tensors",),
}

READS_ENVIRONMENT = (
    "zrelay_shared",  # before gRPC is loaded
    "zrelay_shared.paths",
    "zrelay_shared.config",
    "zrelay_shared.service.command",
    "zrelay_shared.service.lifecycle",  # systemd's sockets
    "zrelay_client._settings",
    "zrelay_client._stack.launch",  # what a service that it starts inherits
)

NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "torch.load", "numpy.load"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__"}


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Every module that is imported anywhere, functions and `if TYPE_CHECKING` included; `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*home, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in SHIPPED.items()}
IMPORTS = {name: sorted(set(imports(tree, name))) for name, tree in TREES.items()}


def allowed(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(module, pattern) for pattern in patterns)


def test_every_package_is_looked_at():
    assert {name.partition(".")[0] for name in SHIPPED} == set(PACKAGES)
    assert len(SHIPPED) > 60


@pytest.mark.parametrize("package", PACKAGES)
def test_who_may_import_whom(package):
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
def test_layers_of_the_generator(layer):
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


def test_the_client_stays_without_torch():
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in IMPORTS.items()
        for imported in all_imported
        if module.startswith("zrelay_client") and imported.startswith("zrelay_shared.torch_")
    ]
    assert wrong == []


def test_messages_are_seen_at_the_border_alone():
    seeing = {
        module for module, found in IMPORTS.items() if any("_pb2" in name and "zrelay.v1" in name for name in found)
    }
    assert seeing - set(BORDER) == set(), "not a border module: pass values, or name it in BORDER and say why"
    assert {module for module in BORDER if module in SHIPPED} <= seeing | {"zrelay_vision.parsing"}


@pytest.mark.parametrize("library", OWNERS)
def test_who_owns_a_library(library):
    wrong = [
        module
        for module, found in IMPORTS.items()
        if any(name.partition(".")[0] == library for name in found) and not allowed(module, OWNERS[library])
    ]
    assert wrong == []


def test_no_library_without_an_owner():
    ours = set(PACKAGES) | set(OWNERS) | set(sys.stdlib_module_names)
    unknown = {name.partition(".")[0] for found in IMPORTS.values() for name in found} - ours
    assert unknown == set(), "name its owners in OWNERS, and it in pyproject.toml"


def test_the_environment_is_read_in_few_places():
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


def test_nothing_unpickles_or_evaluates():
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


def test_every_module_says_its_duty_and_holds_one_idea():
    bare, long = [], []
    for module, path in SHIPPED.items():
        text = path.read_text()
        if not ast.get_docstring(TREES[module]):
            bare.append(module)
        if len(text.splitlines()) > 300:
            long.append(f"{module}: {len(text.splitlines())} lines")
    assert (bare, long) == ([], [])


def test_no_bare_except_and_no_star_import():
    found = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.ExceptHandler) and node.type is None)
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names))
    ]
    assert found == []
