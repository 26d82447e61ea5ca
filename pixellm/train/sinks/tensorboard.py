"""Figures and pictures as TensorBoard event files in the run's folder.

They are written locally and copied at checkpoints and at the end, because object stores cannot append.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pixellm.storage import join_uri, upload_folder

EVENTS_FOLDER = "tensorboard"


class TensorBoardSink:
    """`tensorboard/` for training, `tensorboard/validation/` for validation: TensorBoard shows them as two curves."""

    def __init__(self, run_uri: str, writer: str, first_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self.uri = join_uri(run_uri, EVENTS_FOLDER, *([writer] if writer != "train" else []))
        self._is_remote = "://" in run_uri
        self._temporary = tempfile.TemporaryDirectory(prefix="pixellm-events-") if self._is_remote else None
        self._folder = Path(self._temporary.name) if self._temporary else Path(self.uri)
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point for each tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def write_picture(self, step: int, tag: str, picture: Image.Image) -> None:
        """As it is."""
        self._writer.add_image(tag, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        """Bring the event files to the run's folder."""
        self._writer.flush()
        if self._is_remote:
            upload_folder(self._folder, self.uri)

    def close(self) -> None:
        """Upload a last time and let go of the files."""
        self._writer.close()
        try:
            if self._is_remote:
                upload_folder(self._folder, self.uri)
        finally:
            if self._temporary:
                self._temporary.cleanup()
