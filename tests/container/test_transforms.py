"""crop, flip, resize, normalise to known values; pictures and tensors agree; seeds decide"""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

REMEDY = "torch and torchvision must be of one build: restore the lock's versions of both (invoke build)."


def test_transforms_to_known_values():
    """Crop, flip, pad, scale and normalise, pixel by pixel, as a training's input is prepared."""
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
    assert v2.functional.crop(image, 1, 2, 2, 2).tolist() == [[[6, 7], [10, 11]]]
    assert v2.functional.horizontal_flip(image)[0, 0].tolist() == [3, 2, 1, 0]
    assert v2.functional.vertical_flip(image)[0, :, 0].tolist() == [8, 4, 0]
    assert v2.functional.pad(image, [1, 0, 0, 0], fill=9)[0, 0].tolist() == [9, 0, 1, 2, 3]
    assert v2.functional.rotate(torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8), 90).tolist() == [[[2, 4], [1, 3]]]
    ready = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])])
    assert ready(torch.tensor([[[0, 255, 51]]], dtype=torch.uint8)).flatten().tolist() == pytest.approx([-2, 2, -1.2])


def test_resize_to_known_values():
    """Bilinear by halves of pixels; smaller with antialiasing, so that a pixel is the mean of what it stands for."""
    row = torch.tensor([[[0.0, 4.0]]]).expand(1, 2, 2)
    assert v2.functional.resize(row, [2, 4])[0, 0].tolist() == [0, 1, 3, 4]
    stripes = torch.tensor([0.0, 8.0]).repeat(8).expand(1, 16, 16)
    assert v2.functional.resize(stripes, [4, 4], antialias=True)[0, 1, 1:3].tolist() == pytest.approx([4, 4], abs=0.3)
    nearest = v2.functional.resize(stripes, [4, 4], v2.InterpolationMode.NEAREST)
    assert set(nearest.flatten().tolist()) <= {0.0, 8.0}


def test_pictures_of_pillow_and_tensors_agree():
    """The same geometry and colours, whichever a data set gives: within 2 of 255, Pillow's own rounding."""
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    image = v2.functional.gaussian_blur(image, [5, 5])
    pillow = v2.functional.to_pil_image(image)
    steps = [v2.CenterCrop(32), v2.Resize(20, antialias=True), v2.RandomHorizontalFlip(1.0), v2.Grayscale()]
    for step in (*steps, v2.Compose(steps)):
        one, other = step(image).int(), v2.functional.pil_to_tensor(step(pillow)).int()
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 2, step


def test_random_transforms_follow_the_seed():
    """Equal seeds give the same crops, flips and colours; boxes move with their picture."""
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    chain = v2.Compose([v2.RandomResizedCrop(16, antialias=True), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5, 0.5)])

    def drawn(seed):
        torch.manual_seed(seed)
        return torch.stack([chain(image) for _ in range(4)])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    boxes = tv_tensors.BoundingBoxes([[2, 3, 10, 8]], format="XYXY", canvas_size=(32, 32))
    _, moved = v2.RandomHorizontalFlip(1.0)(tv_tensors.Image(image), boxes)
    assert moved.tolist() == [[22, 3, 30, 8]]
