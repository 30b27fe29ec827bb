"""The figures of a report where TensorBoard shows them, in an event file that needs neither torch nor TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


def write_events(folder: Path, images: Mapping[str, bytes]) -> None:
    """Writes an event file with an image of each name.

    Args:
        folder: for the file; made if it is not there.
        images: PNG files by their tags.
    """
    writer = EventFileWriter(str(folder))
    try:
        for tag, encoded in images.items():
            width, height = struct.unpack(">II", encoded[16:24])  # of a PNG's first chunk (ISO 15948, 11.2.2)
            image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=encoded)
            writer.add_event(Event(step=0, summary=Summary(value=[Summary.Value(tag=tag, image=image)])))
    finally:
        writer.close()
