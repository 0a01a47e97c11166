"""nms against known boxes and by hand; PNG and JPEG to known pixels"""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_jpeg, decode_png, encode_png
from torchvision.ops import box_iou, nms

pytestmark = pytest.mark.quick
REMEDY = "torch and torchvision must be of one build: restore the lock's versions of both (invoke build)."

# 5x3 RGB: red 50x, green 100y, blue 31xy.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAUAAAADCAIAAADUVFKvAAAAG0lEQVR42mNkYGAwQkIsDCkMDAzycATn20EQAD+0Au+F0ocRAAAAAElFTkSuQmCC"
# 16x16 RGB, quality 95, no chroma subsampling: left half (200, 40, 40), right half (30, 60, 220).
JPEG = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggL"
    "DAsKDAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/"
    "wAARCAAQABADAREAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAABwj/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFQEBAQAAAAAAAAAAAAAA"
    "AAAACQf/xAAUEQEAAAAAAAAAAAAAAAAAAAAA/9oADAMBAAIRAxEAPwCX0TKAMzgBPJgPzYDM4AT3/9k="
)


def tensor_of(encoded: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(encoded)), dtype=torch.uint8)


def nms_by_hand(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    """Take boxes by falling score; drop what overlaps a taken one by more than the threshold. Plain Python."""
    taken: list[int] = []
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        left, top, right, bottom = boxes[index]
        for a, b, c, d in (boxes[other] for other in taken):
            inter = max(0.0, min(right, c) - max(left, a)) * max(0.0, min(bottom, d) - max(top, b))
            if inter / ((right - left) * (bottom - top) + (c - a) * (d - b) - inter) > threshold:
                break
        else:
            taken.append(index)
    return taken


def test_nms_known_boxes():
    """Overlap 9/11 is above 0.5, 1/3 is not; the answer is in the order of the scores."""
    boxes = torch.tensor([[0, 0, 10, 10], [0, 1, 10, 11], [0, 5, 10, 15], [20, 20, 30, 30]], dtype=torch.float32)
    assert box_iou(boxes[:1], boxes)[0].tolist() == pytest.approx([1, 9 / 11, 1 / 3, 0])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.95]), 0.5).tolist() == [3, 0, 2]
    assert nms(boxes, torch.tensor([0.8, 0.9, 0.7, 0.1]), 0.3).tolist() == [1, 3]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_nms_by_hand(threshold):
    """Three hundred boxes, jittered copies of thirty, against the definition."""
    corners, sizes = torch.rand(30, 2, dtype=torch.float64) * 50, 10 + torch.rand(30, 2, dtype=torch.float64) * 20
    boxes = torch.cat([corners, corners + sizes], dim=1).repeat(10, 1) + torch.rand(300, 4, dtype=torch.float64)
    scores = torch.randperm(300).double() / 300
    kept = nms(boxes, scores, threshold).tolist()
    assert 1 < len(kept) < 300
    assert kept == nms_by_hand(boxes.tolist(), scores.tolist(), threshold)


def test_png_is_exact():
    """PNG loses nothing: every pixel, in channels, rows, columns."""
    y, x = torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij")
    expected = torch.stack([50 * x, 100 * y, 31 * x * y]).to(torch.uint8)
    assert torch.equal(decode_png(tensor_of(PNG)), expected)


def test_png_there_and_back():
    """What torchvision encodes, torchvision and Pillow decode to the same pixels."""
    image = torch.randint(0, 256, (3, 37, 53), dtype=torch.uint8)
    packed = encode_png(image)
    assert torch.equal(decode_png(packed), image)
    pillow = np.asarray(Image.open(io.BytesIO(packed.numpy().tobytes())))
    assert np.array_equal(pillow, image.permute(1, 2, 0).numpy())


def test_jpeg_to_known_pixels():
    """Two flat halves at quality 95: within 3 of 255, the rounding of JPEG's color transform."""
    image = decode_jpeg(tensor_of(JPEG)).int()
    assert image.shape == (3, 16, 16)
    expected = torch.tensor([[200, 40, 40]] * 8 + [[30, 60, 220]] * 8).T[:, None, :].expand(3, 16, 16)
    assert (image - expected).abs().max() <= 3
    pillow = np.asarray(Image.open(io.BytesIO(base64.b64decode(JPEG)))).astype(int)
    assert np.abs(pillow - image.permute(1, 2, 0).numpy()).max() <= 3
