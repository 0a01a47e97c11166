# The base where no registry can be reached: the file system that mmdebstrap made from Debian's signed packages.
# `invoke build` runs this; the context holds rootfs.tar alone.
FROM scratch
ADD rootfs.tar /
CMD ["bash"]
