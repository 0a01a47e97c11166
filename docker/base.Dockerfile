# The base where no registry can be reached: the file system that mmdebstrap made from Debian's signed packages.
# `invoke build` runs this; the context holds rootfs.tar alone.
# `invoke clean --build-cache` knows this step by its stage, which BuildKit notes where a file has several.
FROM scratch AS torchdock-base
ADD rootfs.tar /
FROM torchdock-base
CMD ["bash"]
