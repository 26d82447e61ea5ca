"""Checkpoints of others as tables of tensors: where each one lies, what it becomes here, what is left out, and the writing of the result.

Tensors are read and written one at a time, so memory holds one shard of the output, never the model. What the names mean is in
conversion.py.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pixellm.errors import ModelError
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.side_files import check_index, describe_damage

OUTPUT_SHARD_BYTES = 256 << 20  # small, so that converting a model of any size stays below 1.5 GB
INDEX_NAME, SINGLE_NAME = "model.safetensors.index.json", "model.safetensors"

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TensorSource:
    """Where a tensor lies: file, name, shape. `read` loads it alone."""

    file: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, as stored."""
        if self.file.suffix == ".safetensors":
            with safe_open(self.file, framework="pt") as opened:
                return opened.get_tensor(self.name)
        return _load_bin(self.file)[self.name].clone()


def list_tensors(folder: Path) -> dict[str, TensorSource]:
    """Every tensor of a checkpoint folder: `*.safetensors`, else `pytorch_model*.bin` (read with `weights_only`, mapped, not loaded).

    Raises ModelError when the folder holds neither, lacks a file that its index names, holds one that is not whole, or a name twice.
    """
    files, index = _list_files(folder, "*.safetensors"), folder / INDEX_NAME
    if not files and not index.is_file():
        files, index = _list_files(folder, "pytorch_model*.bin"), folder / "pytorch_model.bin.index.json"
    if index.is_file():
        check_index(index)
    if not files:
        raise ModelError(f"{folder} holds neither *.safetensors nor pytorch_model*.bin")
    found: dict[str, TensorSource] = {}
    for file in files:
        with file.open("rb") as stream:
            damage = describe_damage(stream.read(1024))
        if damage:
            raise ModelError(f"{file} is {damage}; it is not whole: fetch it again")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as opened:
                    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file} is not whole ({error}); fetch it again") from None
        else:
            shapes = {name: tuple(tensor.shape) for name, tensor in _load_bin(file).items()}
        twice = found.keys() & shapes.keys()
        if twice:
            raise ModelError(f"{file} holds {sorted(twice)[:3]} again; the folder mixes two checkpoints")
        found.update({name: TensorSource(file, name, shape) for name, shape in shapes.items()})
    return found


def _list_files(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))  # what a Mac puts beside files begins with "._"


def _load_bin(file: Path) -> dict[str, Tensor]:
    """A `.bin` file's tensors, mapped from disk; nothing but tensors is unpickled. Raises ModelError for anything else."""
    try:
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a pickle that is cut or made of something else fails in any of torch's and pickle's ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{file} is not a whole file of tensors that can be mapped ({reason}); fetch it again, or save its state dict as "
                         "safetensors where you trust it") from None
    if not isinstance(found, Mapping):
        raise ModelError(f"{file} holds a {type(found).__name__}, expected a state dict: names of tensors with their tensors; save that")
    if others := [str(name) for name, value in found.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        raise ModelError(f"{file} holds {', '.join(others[:5])} that are not tensors: a training checkpoint around a state dict? Save the "
                         "state dict alone, as safetensors")
    return dict(found)


@dataclass
class Plan:
    """Which stored tensor becomes which of ours, and how. `unused`: stored names that are left out on purpose, and why."""

    read: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    stored: dict[str, str] = field(default_factory=dict)

    def add(self, tensors: Mapping[str, TensorSource], rules: Rules, unused: Mapping[str, str]) -> None:
        """Translate the names of `tensors`; those that no rule knows, or that become a tensor which is there already, go to `unknown`."""
        for name, source in tensors.items():
            target = translate(name, rules)
            if target and target not in self.stored:
                self.stored[target] = name
                self.put(target, source.read, source.shape)
            elif target:
                self.unknown.append(f"{name} (beside {self.stored[target]})")
            elif reason := next((reason for pattern, reason in unused.items() if re.fullmatch(pattern, name)), None):
                self.unused[name] = reason
            else:
                self.unknown.append(name)

    def put(self, target: str, read: Callable[[], Tensor], shape: tuple[int, ...]) -> None:
        """Our tensor `target` is what `read` returns, of `shape`."""
        self.read[target], self.shapes[target] = read, shape

    def change(self, target: str, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        """Apply `function` to what `target` was going to be. Nothing happens when nothing was."""
        if target in self.read:
            stored = self.read[target]
            self.put(target, lambda: function(stored()), shape)

    def drop(self, targets: Iterable[str], reason: str) -> None:
        """Leave out what `targets` were going to be."""
        for target in list(targets):
            self.unused[self.stored[target]] = reason
            del self.read[target], self.shapes[target]

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ModelError that lists every unknown, missing and wrongly shaped tensor."""
        missing = sorted(expected.keys() - self.read.keys())
        extra = sorted(self.unknown) + sorted(self.read.keys() - expected.keys())
        wrong = [f"{name} is {list(self.shapes[name])}, expected {list(expected[name])}"
                 for name in sorted(expected.keys() & self.shapes.keys()) if self.shapes[name] != expected[name]]
        problems = [f"{len(found)} {kind}: {', '.join(found)}" for kind, found in
                    (("missing", missing), ("not known", extra), ("of a wrong shape", wrong)) if found]
        if problems:
            raise ModelError("the checkpoint does not fit the model: " + "; ".join(problems))


def translate(name: str, rules: Rules) -> str | None:
    """Our name of a stored tensor, None when no rule knows it."""
    for pattern, target in rules:
        if match := re.fullmatch(pattern, name):
            return re.sub(r"\{2n:(\d+)\}", lambda number: str(2 * int(number[1])), match.expand(target))
    return None


def write_model(config: PixelLMConfig, plan: Plan, output: Path) -> None:
    """Write config.json and safetensors shards of about `OUTPUT_SHARD_BYTES`, one shard in memory at a time, the index last.

    Raises ModelError for a folder with a `model.safetensors`: a reader would take that file instead of the shards.
    """
    if (output / SINGLE_NAME).exists():
        raise ModelError(f"{output} holds a {SINGLE_NAME}, which would be read instead of the new shards; give an empty folder")
    output.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    num_shards = num_bytes = total_bytes = 0
    for position, name in enumerate(sorted(plan.read)):
        shard[name] = plan.read[name]().contiguous()
        num_bytes += shard[name].nbytes
        if num_bytes >= OUTPUT_SHARD_BYTES or position == len(plan.read) - 1:
            num_shards += 1
            file = f"model-{num_shards:05d}.safetensors"
            save_file(shard, output / file, metadata={"format": "pt"})
            index.update(dict.fromkeys(shard, file))
            total_bytes += num_bytes
            shard, num_bytes = {}, 0
    config.architectures = ["PixelLMForConditionalGeneration"]
    config.save_pretrained(output)
    (output / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": index}, indent=1))
