"""nms and roi_align by hand; PNG, JPEG and WebP to known pixels"""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_image, decode_jpeg, decode_png, decode_webp, encode_jpeg, encode_png
from torchvision.ops import box_iou, nms, roi_align

pytestmark = pytest.mark.quick
REMEDY = "torch and torchvision must be of one build: restore the lock's versions of both (invoke build)."

# 5x3 RGB: red 50x, green 100y, blue 31xy.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAUAAAADCAIAAADUVFKvAAAAG0lEQVR42mNkYGAwQkIsDCkMDAzycATn20EQAD+0Au+F0ocRAAAAAElFTkSuQmCC"
# The same pixels without loss.
WEBP = (
    "UklGRlQAAABXRUJQVlA4TEcAAAAvBIAAAHdAkG1T2GEd6Ihk0jbVlGtiJ9ZM2zY+xyJMhm6gd85/SACA92wsCCGkw/IDNQGANMxrZ6EkWejkbaaI"
    "/keP7Nl/CgA="
)
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


def pattern() -> torch.Tensor:
    """The picture that PNG and WEBP hold. Shape (3, 3, 5)."""
    y, x = torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij")
    return torch.stack([50 * x, 100 * y, 31 * x * y]).to(torch.uint8)


def test_png_is_exact():
    """PNG loses nothing: every pixel, in channels, rows, columns."""
    assert torch.equal(decode_png(tensor_of(PNG)), pattern())


def test_webp_is_exact():
    """Neither does lossless WebP, by its own decoder, by the one that looks for itself, and by Pillow."""
    assert torch.equal(decode_webp(tensor_of(WEBP)), pattern())
    assert torch.equal(decode_image(tensor_of(WEBP)), pattern())
    pillow = np.asarray(Image.open(io.BytesIO(base64.b64decode(WEBP))).convert("RGB"))
    assert np.array_equal(pillow, pattern().permute(1, 2, 0).numpy())


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


def test_jpeg_there_and_back():
    """A smooth picture survives quality 95 within 6 of 255, and ten times less of it is kept."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    image = torch.stack([2 * x, 3 * y, x + y]).to(torch.uint8)
    packed = encode_jpeg(image, quality=95)
    assert len(packed) < image.numel() / 10
    assert (decode_jpeg(packed).int() - image.int()).abs().max() <= 6


@pytest.mark.parametrize(("name", "encoded"), [("png", PNG), ("jpeg", JPEG), ("webp", WEBP)])
def test_a_damaged_picture_is_an_error(name, encoded):
    """Half a file must not become half a picture, nor end the worker that reads it."""
    data = tensor_of(encoded)
    for part in (data[: len(data) // 2], data[:3], torch.zeros(64, dtype=torch.uint8)):
        with pytest.raises(RuntimeError):
            decode_image(part)


def roi_align_by_hand(plane, box, size, samples):
    """The definition, in plain Python: the mean of bilinear samples in each cell; pixels have their centre at .5."""
    left, top, right, bottom = (value - 0.5 for value in box)
    height, width = len(plane), len(plane[0])

    def at(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return 0.0
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        dy, dx = y - y0, x - x0
        upper = plane[y0][x0] * (1 - dx) + plane[y0][x1] * dx
        return upper * (1 - dy) + (plane[y1][x0] * (1 - dx) + plane[y1][x1] * dx) * dy

    tall, wide = (bottom - top) / size, (right - left) / size
    steps = [(i + 0.5) / samples for i in range(samples)]
    return [
        [
            sum(at(top + (row + a) * tall, left + (column + b) * wide) for a in steps for b in steps) / samples**2
            for column in range(size)
        ]
        for row in range(size)
    ]


def test_roi_align_by_hand():
    """Boxes with fractions, one that leaves the picture; of a ramp, the mean of a box is the ramp at its centre."""
    plane = torch.rand(8, 10, dtype=torch.float64)
    for box in ([1.25, 0.5, 7.75, 6.5], [-2.0, -3.0, 4.0, 4.5], [0.0, 0.0, 10.0, 8.0]):
        found = roi_align(plane[None, None], [torch.tensor([box], dtype=torch.float64)], 3, 1.0, 2, aligned=True)
        expected = torch.tensor(roi_align_by_hand(plane.tolist(), box, 3, 2), dtype=torch.float64)
        torch.testing.assert_close(found[0, 0], expected, rtol=1e-12, atol=1e-12)
    ramp = torch.arange(10.0).expand(8, 10)[None, None]
    mean = roi_align(ramp, [torch.tensor([[2.0, 2.0, 6.0, 6.0]])], 1, 1.0, 4, aligned=True)
    assert mean.item() == pytest.approx(3.5)


def test_roi_align_gradient():
    """Where a box samples, its gradient lands; finite differences agree."""
    planes = torch.rand(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0, 0.7, 1.1, 4.9, 5.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda planes: roi_align(planes, boxes, 2, 1.0, 2, aligned=True), planes)
