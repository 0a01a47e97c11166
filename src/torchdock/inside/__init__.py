"""What runs in the container, or in any Python environment that has torch: checks, workloads, training.

Imports torch, torchvision, numpy, pytest, pynvml and the standard library; never docker, invoke or rich.
Modules import torch only inside functions or in ``workloads``, so the pure logic can be read and tested without it.
"""
