"""A model directory -> model and processor: every file is checked before it is read, and a weight that is missing is an error.

Only safetensors are read. The library behind would open a pickle where there are no others, draw missing weights at random, and take the
memory of the largest model where the configuration says nothing.
"""

from pathlib import Path

import torch

from pixellm.errors import ModelError, PixelLMError
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.modeling_pixellm import PixelLMForConditionalGeneration
from pixellm.model.processing_pixellm import PixelLMProcessor
from pixellm.model.side_files import check_model_dir, read_json_object
from pixellm.model.tensor_plan import list_tensors

MAX_NAMED = 3


def load_model_dir(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """Model (on the CPU) and processor. Raises ModelError that names the file which is damaged, missing or of another model."""
    folder = Path(folder)
    check_model_dir(folder)
    kind = read_json_object(folder / "config.json").get("model_type")
    if kind != PixelLMConfig.model_type:
        raise ModelError(f"{folder / 'config.json'} is of a model of type {kind!r}, expected {PixelLMConfig.model_type!r}; give a model "
                         "directory, as jobs.export and jobs.convert_checkpoint write it")
    if not any(folder.glob("*.safetensors")):
        others = sorted(file.name for file in folder.glob("*.bin"))
        raise ModelError(f"{folder} holds no *.safetensors" + (f", only {others[0]}: a pickle can run code and is never opened" if others
                         else "") + "; write the weights as safetensors with jobs.export or jobs.convert_checkpoint")
    try:
        _check_weights(folder)
        processor = PixelLMProcessor.from_pretrained(folder)
        processor.prompt_ids("Where?")
        return PixelLMForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True), processor
    except (PixelLMError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a library for each file, with words of its own for what it did not expect
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        raise ModelError(f"{folder} is not a model directory that can be loaded: {said}; write it again with jobs.export or "
                         "jobs.convert_checkpoint") from error


def _check_weights(folder: Path) -> None:
    """Hold the names and shapes of the stored tensors against the configuration, before any memory is taken. Raises ModelError."""
    config = PixelLMConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: source.shape for name, source in list_tensors(folder).items()}
    missing = expected.keys() - stored.keys() - model.all_tied_weights_keys.keys()
    wrong = [f"{name} is {list(stored[name])}, expected {list(expected[name])}"
             for name in sorted(expected.keys() & stored.keys()) if stored[name] != expected[name]]
    problems = [f"{len(names)} {said}: {', '.join(names[:MAX_NAMED])}" + (", …" if len(names) > MAX_NAMED else "") for names, said in (
        (sorted(missing), "missing"), (sorted(stored.keys() - expected.keys()), "not known"), (wrong, "of another shape")) if names]
    if problems:
        raise ModelError(f"the weights in {folder} do not fit its config.json: {'; '.join(problems)}; fetch the folder again")
