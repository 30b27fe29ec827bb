"""Puts the figures of a report into an event file for TensorBoard, without torch or TensorFlow."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Mapping

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def event_file(images: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Return the name and the content of an event file that holds images.

    Args:
        images: Content of a PNG file for each tag under which TensorBoard shows the image.
    """
    now = time.time()
    written = io.BytesIO()
    writer = RecordWriter(written)
    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for tag, encoded in images.items():
        width, height = struct.unpack(">II", encoded[16:24])  # from the first chunk of a PNG file (ISO 15948, 11.2.2)
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=encoded)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        writer.write(Event(wall_time=now, step=0, summary=summary).SerializeToString())
    return f"events.out.tfevents.{int(now)}.report", written.getvalue()
