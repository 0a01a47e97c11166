#!/bin/sh
# Layer "devel": the wheels of the compiler, and then what a CUDA_HOME has and wheels leave out. Only adds: links, and
# nothing of a layer below is replaced.
# Usage: devel.sh    (mounts as for wheels.sh)
set -eu
# The image's own, for people: the file comes with the last layer, and this lock says everything.
unset UV_CONSTRAINT UV_BUILD_CONSTRAINT
sh /run/wheels.sh devel

site=$(echo /opt/venv/lib/python3*/site-packages)
home=$(echo "$site"/nvidia/cu*/bin/nvcc) # the wheels of one toolkit unpack into one folder
[ -x "$home" ] || { echo "torchdock: the lock of this layer brings no nvcc" >&2; exit 1; }
home=${home%/bin/nvcc}
cd "$home"
# cuDNN, NCCL and cuSPARSELt have folders of their own; their headers are looked for beside CUDA's.
for part in cudnn nccl cusparselt; do
    for header in "../$part"/include/*.h; do
        [ ! -e "$header" ] || [ -e "include/${header##*/}" ] || ln -s "../$header" include/
    done
done
# `-lcudart` looks for libcudart.so; the wheels have libcudart.so.13, the name that the loader looks for. Theirs first:
# of libnvrtc.so.13 and libnvrtc.alt.so.13 each gets a name of its own.
for library in lib/*.so.* ../cudnn/lib/*.so.* ../nccl/lib/*.so.* ../cusparselt/lib/*.so.*; do
    name=${library##*/}
    name=${name%%.so.*}.so
    case $library in
        lib/*) from=${library#lib/} ;;
        *) from=../$library ;;
    esac
    [ ! -e "$library" ] || [ -e "lib/$name" ] || ln -s "$from" "lib/$name"
done
ln -s lib lib64 # nvcc.profile and torch.utils.cpp_extension look there
# One path for CUDA_HOME, whatever Python the base has.
ln -s "$home" /opt/cuda

find "$home/include" "$home/lib" -maxdepth 1 -type l -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
touch -h -d "@$SOURCE_DATE_EPOCH" lib64 /opt/cuda
touch -d "@$SOURCE_DATE_EPOCH" include lib . /opt
