"""Who computes a program: the delegates, what each is asked for, and where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from omnic.errors import MissingExtraError
from omnic.targets.executorch.quiet import quiet

__all__ = ["DELEGATES", "Delegate", "missing_device", "partitioners", "require_package"]


@dataclass(frozen=True)
class Delegate:
    """One way to compute.

    Attributes:
        title: its name.
        backend: what ExecuTorch's runtime calls it; empty = the runtime itself.
        device: where it runs; empty = wherever the runtime does.
        package: Python package that builds for it, and the extra of omnic that brings it.
        outside: whether its weights can lie in a file beside the program.
        symbolic: whether it takes methods whose length is a symbol.
        plain: whether the numbers of the weights lie in the program as they are.
        llama: whether states and attention are ExecuTorch's own operators for language models, which run on the CPU,
            and not plain ones that the delegate may take.
    """

    title: str
    backend: str = ""
    device: str = ""
    package: str = ""
    outside: bool = True
    symbolic: bool = True
    plain: bool = True
    llama: bool = True


DELEGATES: Mapping[str, Delegate] = {
    "xnnpack": Delegate("XNNPACK"),
    "portable": Delegate("ExecuTorch's own kernels"),
    "coreml": Delegate(
        "Core ML",
        "CoreMLBackend",
        "an iPhone or iPad with iOS 18 or a Mac with macOS 15, and an ExecuTorch with its Core ML backend",
        "coremltools",
        outside=False,
        symbolic=False,
        plain=False,
        llama=False,
    ),
    "vulkan": Delegate(
        "Vulkan",
        "VulkanBackend",
        "a device with a GPU for Vulkan 1.1, such as an Android phone, and an ExecuTorch with its Vulkan backend",
        outside=False,
        plain=False,
        llama=False,
    ),
}


def missing_device(name: str) -> str:
    """Return what the delegate needs and this machine lacks, empty where it runs here."""
    delegate = DELEGATES[name]
    if not delegate.backend:
        return ""
    from omnic.targets.executorch.runtime import backend_names

    with quiet():
        here = backend_names()
    return "" if delegate.backend in here else delegate.device


def require_package(name: str) -> None:
    """Say which package is missing to build for a delegate, before anything is lowered.

    Raises:
        MissingExtraError: it is not installed.
    """
    delegate = DELEGATES[name]
    if delegate.package and find_spec(delegate.package) is None:
        raise MissingExtraError(
            f"delegate={name} of target executorch (Python package '{delegate.package}')", "coreml"
        )


def partitioners(name: str) -> list[Any]:
    """Return the partitioners of a delegate; ``portable`` has none."""
    if name == "portable":
        return []
    if name == "coreml":
        return [_coreml()]
    if name == "vulkan":
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        return [VulkanPartitioner()]
    from omnic.targets.executorch.shortened import partitioner

    return [partitioner()]


def _coreml() -> Any:
    """Arithmetic is f32, as the IR says it is.

    States stay ExecuTorch's own: one that Core ML takes over belongs to a single method.  Methods are built apart: it
    shares weights only between methods that fall into as many parts.
    """
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import MULTIMETHOD_WEIGHT_SHARING_STRATEGY
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32
    )
    apart = CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec(
        MULTIMETHOD_WEIGHT_SHARING_STRATEGY.DISABLED
    )
    # States are written by the CPU, whose they are; coremltools 9.0 cannot convert the operator either.
    return CoreMLPartitioner(
        compile_specs=[*specs, apart],
        take_over_mutable_buffer=False,
        skip_ops_for_coreml_delegation=["aten.index_put.default"],
    )
