"""torchdock: a PyTorch environment pinned to the hash, proved on the machine it runs on.

Host modules (this package) use the standard library, the docker SDK, nvidia-ml-py and rich, never torch.
``torchdock.inside`` runs in the container, with torch and without docker, invoke or rich.
"""
