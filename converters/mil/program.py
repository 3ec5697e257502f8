"""A saved ML Program: decoded once, run any number of times.

Values have the types that the program declares. A float16 program is therefore rounded to float16
after every operation, and overflows beyond 65504. Inside an operation, such as the sums of a
convolution or a softmax, arithmetic is float32. The GPU and the Neural Engine also store float16
between layers; their arithmetic inside a layer differs by chip and is not reproduced. The result
shows the losses of a float16 file (weights, ranges, cancellation between layers) and is therefore
fit for a gate, but it is not bit-exact to any device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmsr_edge.converters.mil import arithmetic, arrays, compressed, layers  # noqa: F401 - the table
from mmsr_edge.converters.mil.blobs import BlobFile
from mmsr_edge.converters.mil.package import Package, open_package
from mmsr_edge.converters.mil.table import OPERATIONS, call
from mmsr_edge.converters.mil.values import Value, ValueType, constant, value_type
from mmsr_edge.errors import BackendError, BundleError, MMSRError, OptionError

_FEATURES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32}


@dataclass(frozen=True)
class Port:
    """An input or output of the model."""

    name: str
    """Key in the feeds or results."""
    shape: tuple[int, ...]
    """Static shape."""
    dtype: np.dtype[Any]
    """Element type: float32, float16 or int32."""


@dataclass(frozen=True)
class Operation:
    """One operation of the program, not yet run."""

    kind: str
    """Key of `OPERATIONS`."""
    name: str
    """Name of the operation, for messages."""
    inputs: dict[str, list[str | Value]]
    """Inputs by parameter: names of values, or values given in the operation itself."""
    outputs: tuple[tuple[str, ValueType], ...]
    """Names and declared types of the outputs."""


class MILProgram:
    """A saved `.mlpackage` that runs without Core ML."""

    def __init__(self, package: Package) -> None:
        """Decode `package`; `open` is the usual constructor."""
        self.package = package
        self.inputs = _ports(package.spec.description.input)
        """Inputs of `run`."""
        self.outputs = _ports(package.spec.description.output)
        """Outputs of `run`."""
        self.kinds: Counter[str] = Counter()
        """Number of occurrences of each operation, without constants."""
        self._files: dict[str, BlobFile] = {}
        self._constants: dict[str, Value] = {}
        self._operations: list[Operation] = []
        function = _main(package)
        self._arguments = {i.name: value_type(i.type) for i in function.inputs}
        block = function.block_specializations[function.opset]
        self._check_known(block)
        for proto in block.operations:
            self._decode(proto)
        self._last_use = {
            name: i
            for i, operation in enumerate(self._operations)
            for values in operation.inputs.values()
            for name in values
            if isinstance(name, str)
        }
        self._last_use.update(dict.fromkeys(block.outputs, len(self._operations)))

    @classmethod
    def open(cls, path: Path) -> MILProgram:
        """Read a package and all its constants.

        Raises:
            BundleError: a file is missing, truncated, or does not fit the program.
            BackendError: the program has an operation that is not in the table.
            MissingExtraError: coremltools is not installed.
        """
        return cls(open_package(path))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the program once.

        Args:
            feeds: one array for each of `inputs`, in its shape; int64 becomes int32.

        Returns:
            One array for each of `outputs`, by name.

        Raises:
            OptionError: names, shapes or types of `feeds` differ from `inputs`.
            BackendError: an operation failed.
            BundleError: an operation's result differs from its declared type or shape.
        """
        values: dict[str, Value] = {**self._constants, **self._fed(feeds)}
        for i, operation in enumerate(self._operations):
            values.update(self._run(operation, values))
            for given in operation.inputs.values():
                for name in given:
                    if isinstance(name, str) and self._last_use[name] == i:
                        values.pop(name, None)
        results = {}
        for port in self.outputs:
            value = values[port.name]
            assert isinstance(value, Tensor)
            results[port.name] = value.numpy().astype(port.dtype)
        return results

    def _fed(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
        wanted = {port.name: port for port in self.inputs}
        if set(feeds) != set(wanted):
            raise OptionError(
                f"{self.package.name!r} takes {sorted(wanted)}, but was fed {sorted(feeds)}"
            )
        fed: dict[str, Value] = {}
        for name, port in wanted.items():
            given = np.asarray(feeds[name])
            if given.shape != port.shape or given.dtype.kind != port.dtype.kind:
                raise OptionError(
                    f"{self.package.name!r}: feed {name!r} is {given.dtype} {list(given.shape)}, "
                    f"it must be {port.dtype} {list(port.shape)}"
                )
            fed[name] = torch.from_numpy(given.astype(port.dtype)).to(self._arguments[name].dtype)
        return fed

    def _run(self, operation: Operation, values: Mapping[str, Value]) -> dict[str, Tensor]:
        inputs: dict[str, Sequence[Value]] = {}
        where = f"{self.package.name!r}, {operation.kind} {operation.name!r}"
        try:
            for key, given in operation.inputs.items():
                inputs[key] = [_look_up(values, item) for item in given]
            results = call(operation.kind, inputs)
        except MMSRError as error:
            raise BackendError(f"{where}: {error}") from None
        except Exception as error:
            raise BackendError(f"{where}: {type(error).__name__}: {error}") from error
        if len(results) != len(operation.outputs):
            raise BundleError(
                f"{where}: it has {len(operation.outputs)} outputs, but computed {len(results)}"
            )
        return {
            name: _declared(result, declared, f"{where}: output {name!r}")
            for result, (name, declared) in zip(results, operation.outputs, strict=True)
        }

    def _check_known(self, block: Any) -> None:
        kinds = {proto.type for proto in block.operations if proto.type != "const"}
        unknown = sorted(kinds - set(OPERATIONS))
        if unknown:
            raise BackendError(
                f"{self.package.name!r} has operations that the interpreter does not support: "
                f"{', '.join(unknown)}; add them to mmsr_edge.converters.mil"
            )

    def _decode(self, proto: Any) -> None:
        """Store a constant, decompress a compressed one, or append an operation to run."""
        attributes = {key: value for key, value in proto.attributes.items() if key != "name"}
        outputs = tuple((out.name, value_type(out.type)) for out in proto.outputs)
        name = outputs[0][0]
        try:
            if proto.type == "const":
                self._constants[name] = self._constant(attributes["val"], outputs[0][1])
                return
            # iOS 16's compressed constants have attributes; all other operations have inputs.
            inputs: dict[str, list[str | Value]] = {
                key: [self._constant(value)] for key, value in attributes.items()
            }
            for key, argument in proto.inputs.items():
                inputs[key] = [self._bound(binding, key) for binding in argument.arguments]
        except (BundleError, KeyError) as error:
            raise BundleError(f"{self.package.name!r}, {proto.type} {name!r}: {error}") from None
        operation = Operation(proto.type, name, inputs, outputs)
        self.kinds[proto.type] += 1
        if proto.type.startswith("constexpr_"):
            self._constants.update(self._run(operation, self._constants))
        else:
            self._operations.append(operation)

    def _bound(self, binding: Any, key: str) -> str | Value:
        if binding.WhichOneof("binding") == "value":
            return self._constant(binding.value)
        return str(binding.name)

    def _constant(self, proto: Any, declared: ValueType | None = None) -> Value:
        value = constant(proto, self._blob)
        if declared is not None and value_type(proto.type) != declared:
            raise BundleError(f"its value is {value_type(proto.type)}, declared is {declared}")
        return value

    def _blob(self, file: str, offset: int, element: str, count: int) -> NDArray[Any]:
        if file not in self._files:
            self._files[file] = BlobFile(self.package.weights(file))
        return self._files[file].read(offset, element, count)


def _look_up(values: Mapping[str, Value], item: str | Value) -> Value:
    return values[item] if isinstance(item, str) else item


def _declared(result: Tensor, declared: ValueType, where: str) -> Tensor:
    """Check a result's shape and kind, and round it to its declared type."""
    kinds = [(t == torch.bool, t.is_floating_point) for t in (result.dtype, declared.dtype)]
    if tuple(result.shape) != declared.shape or kinds[0] != kinds[1]:
        found = f"{str(result.dtype).removeprefix('torch.')} {list(result.shape)}"
        raise BundleError(f"{where} is {found}, the program declares {declared}")
    return result.to(declared.dtype)


def _main(package: Package) -> Any:
    name = package.spec.description.defaultFunctionName or "main"
    functions = package.spec.mlProgram.functions
    if name not in functions:
        raise BundleError(f"{package.name!r} has no function {name!r}")
    return functions[name]


def _ports(features: Sequence[Any]) -> tuple[Port, ...]:
    ports = []
    for feature in features:
        array = feature.type.multiArrayType
        element = array.ArrayDataType.Name(array.dataType)
        if feature.type.WhichOneof("Type") != "multiArrayType" or element not in _FEATURES:
            raise BundleError(f"{feature.name!r} is no array of {', '.join(_FEATURES)}")
        ports.append(Port(feature.name, tuple(array.shape), np.dtype(_FEATURES[element])))
    return tuple(ports)
